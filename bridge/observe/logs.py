"""Prints log entries, the bridge's (log.py) and its libraries': one line each on standard error, as JSON unless it is a
terminal.

Every entry passes one rule: no row values and no secrets. Exceptions never reach a renderer. `safe_error` first
turns them into names and codes, whether they come from this package, a library, asyncio's handler, or an uncaught
exception of a thread.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, ClassVar, TextIO

import orjson
from click import style

from bridge.errors import ConfigError
from bridge.log import FIELDS, Log
from bridge.postgres.safe_error import mask_secrets, safe_error, safe_message
from bridge.problem import suggestion

__all__ = ["LEVELS", "configure", "safe_error", "safe_message"]

LEVELS = ("debug", "info", "warning", "error")

# Libraries that are chatty below this level, whatever the bridge's own level is.
_LIBRARIES = {
    "uvicorn": logging.ERROR,
    "asyncio": logging.WARNING,
    "httpx2": logging.WARNING,
    "psycopg.pool": logging.ERROR,  # whoever wanted a connection says why there is none
}


class _Handler(logging.StreamHandler[TextIO]):
    """The standard handler prints the arguments of an entry that it cannot render; this one does not."""

    def handleError(self, record: logging.LogRecord) -> None:  # logging's name
        kind = sys.exc_info()[0]
        name = kind.__name__ if kind else "an error"
        sys.stderr.write(f"bridge: a log entry of {record.name} could not be rendered: {name}\n")


def configure(level: str = "info", json: bool | None = None, stream: TextIO | None = None) -> None:
    """Set logging up for this process. json None: JSON unless the stream is a terminal. Raises ConfigError for an
    unknown level. It can be called again; the last call wins."""
    if level.lower() not in LEVELS:
        raise ConfigError(f"unknown log level {level!r}", hint=suggestion(level.lower(), LEVELS))
    out = stream or sys.stderr
    as_json = not out.isatty() if json is None else json
    handler = _Handler(out)
    handler.addFilter(_strip_record)
    handler.setFormatter(_Json() if as_json else _Terminal(colors=out.isatty()))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name, least in _LIBRARIES.items():
        logging.getLogger(name).setLevel(max(least, root.level))
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread


class _Json(logging.Formatter):
    """An entry as a JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        return _json(_entry_of(record))


class _Terminal(logging.Formatter):
    """An entry as a line for people: time, level, text, logger, fields."""

    _COLORS: ClassVar = {
        "debug": "blue",
        "info": "green",
        "warning": "yellow",
        "error": "red",
        "critical": "red",
    }

    def __init__(self, *, colors: bool) -> None:
        super().__init__()
        self._colors = colors

    def format(self, record: logging.LogRecord) -> str:
        entry = _entry_of(record)
        time, level, event, logger = (entry.pop(name) for name in ("time", "level", "event", "logger"))
        parts = [
            self._in(time, dim=True),
            f"[{self._in(f'{level:<8}', fg=self._COLORS.get(level), bold=True)}]",
            self._in(f"{event:<30}", bold=True),
            f"[{self._in(logger, fg='blue')}]",
            *(f"{self._in(name, fg='cyan')}={_shown(value)}" for name, value in sorted(entry.items())),
        ]
        return " ".join(parts)

    def _in(self, text: str, **look: Any) -> str:
        return style(text, **look) if self._colors else text


def _shown(value: object) -> str:
    """A field on a terminal; of an error only name and text: its fields are for machines."""
    if isinstance(value, dict) and {"error", "message"} <= value.keys():
        return f"{value['error']}: {value['message']}"
    return value if isinstance(value, str) else _json(value)


def _json(value: object) -> str:
    return orjson.dumps(value, default=_name_of_type).decode()


def _name_of_type(value: object) -> str:
    """orjson's fallback. Never str(value): an unknown object's text can contain row values."""
    return f"<{type(value).__name__}>"


def _entry_of(record: logging.LogRecord) -> dict[str, Any]:
    """The fields of an entry. Every exception is replaced by its safe form, and secrets in texts are masked."""
    entry: dict[str, Any] = {
        **getattr(record, FIELDS, {}),
        "event": record.getMessage(),
        "logger": record.name,
        "level": record.levelname.lower(),
    }
    if record.exc_info and record.exc_info[1] is not None:
        entry["raised"] = record.exc_info[1]
    for name, value in entry.items():
        if isinstance(value, BaseException):
            entry[name] = safe_error(value)
        elif isinstance(value, str):
            entry[name] = mask_secrets(value)
    time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")
    return {**entry, "time": time.removesuffix("+00:00") + "Z"}


def _strip_record(record: logging.LogRecord) -> bool:
    """The same for records of libraries, before `logging` formats their arguments into the message."""
    if isinstance(record.args, tuple):
        record.args = tuple(
            safe_message(value) if isinstance(value, BaseException) else value for value in record.args
        )
    elif isinstance(record.args, dict):
        record.args = {
            name: safe_message(value) if isinstance(value, BaseException) else value
            for name, value in record.args.items()
        }
    if record.name == asyncio.__name__ and isinstance(record.msg, str):
        # its further lines print the task with its exception, and so the row
        record.msg = record.msg.partition("\n")[0]
    return True


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    Log("bridge").critical("uncaught exception", raised=error)


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not issubclass(args.exc_type, SystemExit):
        name = args.thread.name if args.thread else None
        Log("bridge").critical("uncaught exception", thread=name, raised=args.exc_value)
