"""Logging with structlog over the standard library: one line per entry on standard error, as JSON unless it is a
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
from functools import partial
from types import TracebackType
from typing import TextIO

import orjson
import structlog
from structlog.types import EventDict, Processor, WrappedLogger

from bridge.errors import ConfigError
from bridge.postgres.safe_error import mask_secrets, safe_error, safe_message

__all__ = ["LEVELS", "configure", "safe_error", "safe_message"]

LEVELS = ("debug", "info", "warning", "error")

# Libraries that are chatty below this level, whatever the bridge's own level is.
_LIBRARIES = {"uvicorn": logging.ERROR, "asyncio": logging.WARNING, "httpx2": logging.WARNING}


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
        raise ConfigError(f"unknown log level {level!r}", hint=f"use one of {', '.join(LEVELS)}")
    out = stream or sys.stderr
    as_json = not out.isatty() if json is None else json
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _strip_exceptions,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,  # configure() may come after a module took its logger
    )
    handler = _Handler(out)
    handler.addFilter(_strip_record)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *(_json_renderer() if as_json else _terminal_renderer(out)),
            ],
        )
    )
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


def _json_renderer() -> list[Processor]:
    serializer = partial(orjson.dumps, default=_name_of_type)
    return [structlog.processors.JSONRenderer(serializer=lambda entry, **_: serializer(entry).decode())]


def _terminal_renderer(out: TextIO) -> list[Processor]:
    return [_shorten_errors, structlog.dev.ConsoleRenderer(colors=out.isatty(), timestamp_key="time")]


def _shorten_errors(_: WrappedLogger, __: str, entry: EventDict) -> EventDict:
    """An error as one text; its fields are for machines."""
    for name, value in entry.items():
        if isinstance(value, dict) and {"error", "message"} <= value.keys():
            entry[name] = f"{value['error']}: {value['message']}"
    return entry


def _name_of_type(value: object) -> str:
    """orjson's fallback. Never str(value): an unknown object's text can contain row values."""
    return f"<{type(value).__name__}>"


def _strip_exceptions(_: WrappedLogger, __: str, entry: EventDict) -> EventDict:
    """Replace every exception in an entry by its safe form, and mask secrets in its texts."""
    raised = entry.pop("exc_info", None)
    entry.pop("stack_info", None)
    if raised is True:
        raised = sys.exc_info()
    if isinstance(raised, tuple):
        raised = raised[1]
    if isinstance(raised, BaseException):
        entry["raised"] = safe_error(raised)
    for name, value in entry.items():
        if isinstance(value, BaseException):
            entry[name] = safe_error(value)
        elif isinstance(value, str):
            entry[name] = mask_secrets(value)
    return entry


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
    structlog.get_logger("bridge").critical("uncaught exception", exc_info=error)


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not issubclass(args.exc_type, SystemExit):
        name = args.thread.name if args.thread else None
        structlog.get_logger("bridge").critical("uncaught exception", thread=name, exc_info=args.exc_value)
