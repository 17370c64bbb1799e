"""`bridge.emit`: put one event in, inside the caller's own transaction. Loads nothing but psycopg.

The payload becomes JSON text that jsonb takes, every number exact. The standard library's encoder cannot write a
Decimal, writes NaN, and lets through what jsonb refuses: all of that is found before anything is sent, because an
error raised by the server would cost the producer its whole transaction.
"""

from __future__ import annotations

import math
import re
from collections.abc import Coroutine, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from json.encoder import encode_basestring
from typing import Any, Literal, LiteralString, overload
from uuid import UUID
from zoneinfo import ZoneInfo, available_timezones

from psycopg import AsyncClientCursor, AsyncConnection, AsyncCursor, ClientCursor, Connection, Cursor
from psycopg.rows import tuple_row

MAX_DEPTH = 200
"""Levels of nesting. Python's own stack ends at 1,000 frames, jsonb at some thousand levels."""


def strict_json(value: object, name: str = "payload") -> str:
    """`value` as JSON text. `name` is its name in error messages.

    Accepts mappings with str keys, lists, tuples, str, bool, None, int, finite float and Decimal; writes date, time,
    datetime (ISO 8601) and UUID as text. Raises ValueError for NaN, infinities, NUL characters, lone surrogates and
    nesting deeper than MAX_DEPTH, TypeError for other types and keys. Messages name the place
    (`payload.items[2].price`), never the value.
    """
    parts: list[str] = []
    _write(value, name, 0, parts)
    return "".join(parts)


def refuse_text(text: str, name: str) -> None:
    """Raise ValueError if `text` contains what Postgres cannot store: NUL or a lone surrogate."""
    if "\x00" in text:
        raise ValueError(f"{name} contains a NUL character (\\u0000), which Postgres cannot store: remove it")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            surrogate = f"\\u{ord(text[error.start]):04x}"
            raise ValueError(
                f"{name} contains half of a surrogate pair ({surrogate} at {error.start}), which "
                "is not a character"
            ) from None


def _write(value: object, name: str, depth: int, parts: list[str]) -> None:
    if isinstance(value, str):
        refuse_text(value, name)
        parts.append(encode_basestring(value))
    elif value is None or value is True or value is False:
        parts.append("null" if value is None else "true" if value else "false")
    elif isinstance(value, (int, float, Decimal)):
        parts.append(_number(value, name))
    elif isinstance(value, (Mapping, list, tuple)):
        _write_container(value, name, depth, parts)
    elif isinstance(value, (datetime, date, time)):
        parts.append(f'"{value.isoformat()}"')
    elif isinstance(value, UUID):
        parts.append(f'"{value}"')
    else:
        raise TypeError(f"{name} is a {type(value).__name__}, which has no JSON form")


def _number(value: int | float | Decimal, name: str) -> str:
    if isinstance(value, int):
        return int.__repr__(value)  # an IntEnum prints its name otherwise
    finite = value.is_finite() if isinstance(value, Decimal) else math.isfinite(value)
    if not finite:
        number = "NaN" if "nan" in str(value).lower() else "an infinity"
        raise ValueError(f"{name} is {number}: JSON has no such number; send null or leave the field out")
    return float.__repr__(value) if isinstance(value, float) else str(value)


def _write_container(
    value: Mapping[object, object] | list[object] | tuple[object, ...],
    name: str,
    depth: int,
    parts: list[str],
) -> None:
    if depth >= MAX_DEPTH:
        raise ValueError(f"{name[:80]}... is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        before = "{"
        for key, each in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{name} has a key of type {type(key).__name__}; JSON's keys are text")
            refuse_text(key, f"a key of {name}")
            parts += (before, encode_basestring(key), ":")
            _write(each, f"{name}.{key}", depth + 1, parts)
            before = ","
        parts.append("}" if value else "{}")
        return
    before = "["
    for index, each in enumerate(value):
        parts.append(before)
        _write(each, f"{name}[{index}]", depth + 1, parts)
        before = ","
    parts.append("]" if value else "[]")


Period = Literal["hour", "day", "week", "month", "year"]

_EMIT = "select outbox.emit(%s::text, %s::jsonb, %s::text, %s::text, %s::jsonb)"
_EMIT_ONCE_PER = """
    select outbox.emit(%s::text, %s::jsonb, outbox.period_key(%s::text, %s::text, %s::text), %s::text, %s::jsonb)"""
# As the table's check constraints (sql/source/001_outbox.sql): a refusal by the server ends the transaction.
_LONGEST = {"type": 200, "idempotency_key": 255, "key": 500}
_ZONE = re.compile(r"[A-Za-z_]+(/[A-Za-z_-]+)+|Etc/GMT[+-]?[0-9]{1,2}")  # as outbox.period_key wants it
# What outbox.period_key (sql/source/003_suppressed.sql) appends: a colon and a name as long as these.
_NAMED = {
    "hour": "2026-11-23T08:00Z",
    "day": "2026-11-23",
    "week": "2026-W48",
    "month": "2026-11",
    "year": "2026",
}


@overload
def emit(
    connection: Connection[Any] | Cursor[Any],
    type: str,
    payload: Mapping[str, object],
    *,
    idempotency_key: str | None = None,
    key: str | None = None,
    headers: Mapping[str, object] | None = None,
    period: Period | None = None,
    time_zone: str | ZoneInfo | None = None,
) -> UUID: ...


@overload
def emit(
    connection: AsyncConnection[Any] | AsyncCursor[Any],
    type: str,
    payload: Mapping[str, object],
    *,
    idempotency_key: str | None = None,
    key: str | None = None,
    headers: Mapping[str, object] | None = None,
    period: Period | None = None,
    time_zone: str | ZoneInfo | None = None,
) -> Coroutine[Any, Any, UUID]: ...


def emit(
    connection: Connection[Any] | Cursor[Any] | AsyncConnection[Any] | AsyncCursor[Any],
    type: str,
    payload: Mapping[str, object],
    *,
    idempotency_key: str | None = None,
    key: str | None = None,
    headers: Mapping[str, object] | None = None,
    period: Period | None = None,
    time_zone: str | ZoneInfo | None = None,
) -> UUID | Coroutine[Any, Any, UUID]:
    """Insert one event and return its id; with an asynchronous connection or cursor, await it.

    `connection` is a psycopg 3 connection or cursor in the transaction that the event belongs to; it is neither
    committed nor closed, and its cursor_factory and row_factory play no part. If `idempotency_key` was used before
    for this type, nothing is inserted and the first event's id is returned. With `period`, the key is valid for the
    calendar hour, day, ISO week, month or year in which the transaction began, in `time_zone` (default UTC). Events
    with the same `key` stay in order. Numbers keep their exact value.

    Raises ValueError or TypeError, before anything is sent, for values that Postgres would refuse (NaN, NUL
    characters, names too long, no such period or time zone), so that the caller's transaction is not aborted. Raises
    psycopg's errors for everything else.
    """
    parameters = _parameters(type, payload, idempotency_key, key, headers)
    query = _EMIT
    if period is not None or time_zone is not None:
        query = _EMIT_ONCE_PER
        parameters[3:3] = _period(idempotency_key, period, time_zone)
    if isinstance(connection, (Connection, Cursor)):
        own = connection.connection if isinstance(connection, Cursor) else connection
        with Cursor(own, row_factory=tuple_row) as cursor:
            return _id(cursor.execute(query, parameters, prepare=_may_prepare(own)).fetchone())
    if isinstance(connection, (AsyncConnection, AsyncCursor)):
        return _emit_async(connection, query, parameters)
    raise TypeError(
        f"emit takes a psycopg 3 connection or cursor, not a {connection.__class__.__module__}."
        f"{connection.__class__.__qualname__}: take the driver's own connection from it, "
        "or run `select outbox.emit(...)` through it (docs/producers.md)"
    )


async def _emit_async(
    connection: AsyncConnection[Any] | AsyncCursor[Any], query: LiteralString, parameters: list[str | None]
) -> UUID:
    own = connection.connection if isinstance(connection, AsyncCursor) else connection
    async with AsyncCursor(own, row_factory=tuple_row) as cursor:
        await cursor.execute(query, parameters, prepare=_may_prepare(own))
        return _id(await cursor.fetchone())


def _may_prepare(connection: Connection[Any] | AsyncConnection[Any]) -> bool | None:
    """Whether a statement that is repeated may be prepared; None: the connection's own rule. Cursors that bind on the
    client's side are used with poolers that lose prepared statements."""
    return False if issubclass(connection.cursor_factory, (ClientCursor, AsyncClientCursor)) else None


def _parameters(
    type_: str,
    payload: Mapping[str, object],
    idempotency_key: str | None,
    key: str | None,
    headers: Mapping[str, object] | None,
) -> list[str | None]:
    for name, text in (("type", type_), ("idempotency_key", idempotency_key), ("key", key)):
        if text is None and name != "type":
            continue
        if not isinstance(text, str):
            raise TypeError(f"{name} is a {text.__class__.__name__}, not a str")
        if not text and name != "key":
            raise ValueError(f"{name} is empty")
        if len(text) > _LONGEST[name]:
            raise ValueError(f"{name} has {len(text)} characters; at most {_LONGEST[name]} are allowed")
        refuse_text(text, name)
    for name, document in (("payload", payload), ("headers", headers)):
        if not isinstance(document, Mapping) and (document is not None or name == "payload"):
            raise TypeError(f"{name} is a {document.__class__.__name__}, not a mapping of its fields")
    return [
        type_,
        strict_json(payload),
        idempotency_key,
        key,
        None if headers is None else strict_json(headers, "headers"),
    ]


def _period(
    idempotency_key: str | None, period: str | None, time_zone: str | ZoneInfo | None
) -> tuple[str, str]:
    """The period and the time zone's name, validated."""
    if period is None:
        raise ValueError("time_zone says where a period begins: give period, too")
    if period not in _NAMED:
        raise ValueError(f"period is {period!r}; it can be {', '.join(_NAMED)}")
    if idempotency_key is None:
        raise ValueError(f"period={period!r} needs an idempotency_key: it says how long that key is valid")
    longest = _LONGEST["idempotency_key"] - len(f":{_NAMED[period]}")
    if len(idempotency_key) > longest:
        raise ValueError(
            f"idempotency_key has {len(idempotency_key)} characters; with period={period!r} at "
            f"most {longest} are allowed"
        )
    return period, _zone(time_zone)


def _zone(time_zone: str | ZoneInfo | None) -> str:
    name = "UTC" if time_zone is None else time_zone.key if isinstance(time_zone, ZoneInfo) else time_zone
    if not isinstance(name, str):
        raise TypeError(f"time_zone is a {time_zone.__class__.__name__}, not a name such as Europe/Berlin")
    if name == "UTC":
        return name
    # A machine without time zone data leaves it to the server, which ends the transaction over a wrong name.
    if not _ZONE.fullmatch(name) or not _known(name):
        raise ValueError(
            f"time_zone is {name!r}, which is not a time zone: use a name such as Europe/Berlin, or UTC"
        )
    return name


def _known(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return not available_timezones()
    return True


def _id(row: tuple[Any, ...] | None) -> UUID:
    if row is None:  # a function call has one row
        raise RuntimeError("outbox.emit returned no row")
    return row[0] if isinstance(row[0], UUID) else UUID(str(row[0]))
