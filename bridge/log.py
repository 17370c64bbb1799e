"""What this package logs: a text and fields, over the standard library's logging.

`Log("bridge.stream", stream=name).warning("retry", reason=reason)`. observe/logs.py prints the entries, and lets no row
value and no secret through.
"""

from __future__ import annotations

import logging

FIELDS = "bridge_fields"
"""The attribute of a LogRecord that has an entry's fields."""


class Log:
    """A named log. `fields`: in each of its entries."""

    __slots__ = ("_fields", "_logger")

    def __init__(self, name: str, **fields: object) -> None:
        self._logger = logging.getLogger(name)
        self._fields = fields

    def debug(self, event: str, /, **fields: object) -> None:
        self._entry(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        self._entry(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        self._entry(logging.WARNING, event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        self._entry(logging.ERROR, event, fields)

    def critical(self, event: str, /, **fields: object) -> None:
        self._entry(logging.CRITICAL, event, fields)

    def _entry(self, level: int, event: str, fields: dict[str, object]) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, extra={FIELDS: {**self._fields, **fields}})
