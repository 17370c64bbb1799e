"""JSON values to the text of a Postgres column.

By lists, because per-event cost is what decides the throughput: a list of one type takes one
comprehension. The kind of a column decides what a text or an object becomes; whether the server
accepts it is the server's business.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any

from bridge.core.document import json_text
from bridge.core.plan import Column, ColumnKind

Texts = list[bytes | None]

_NONE = type(None)
_INTEGER_TYPES = frozenset({"smallint", "integer", "bigint"})
_PLAIN: dict[type, Callable[[Any], bytes]] = {
    str: str.encode,
    int: b"%d".__mod__,
    Decimal: lambda value: str(value).encode(),
    date: lru_cache(4096)(lambda value: value.isoformat().encode()),  # a lookup's dates are few
    datetime: lambda value: value.isoformat().encode(),
}
"""What scalar() does for one type, without asking which it is."""


def texts(column: Column, values: list[Any]) -> Texts:
    """Column text for each value, None for null. Floats must be exact already (document.py)."""
    kinds = set(map(type, values))
    nulls = _NONE in kinds
    kinds.discard(_NONE)
    encode = encoder(column)
    if len(kinds) == 1 and (encode is scalar or (encode is whole and Decimal not in kinds)):
        encode = _PLAIN.get(kinds.pop(), scalar)
    return (
        [None if value is None else encode(value) for value in values] if nulls else list(map(encode, values))
    )


def encoder(column: Column) -> Callable[[Any], bytes]:
    """One value, not None, to its column text."""
    if column.kind == "json":
        return json_text
    if column.kind == "array":
        element: ColumnKind = "json" if column.type_sql.startswith("json") else "other"
        return lambda value: array_literal(value, element) if isinstance(value, list) else scalar(value)
    if column.type_sql in _INTEGER_TYPES:
        return whole
    return scalar


def scalar(value: Any) -> bytes:  # noqa: PLR0911  one line a type is the plainest form
    """Text of anything for a column that is neither JSON nor an array."""
    if value.__class__ is str:
        return value.encode()
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, float):
        text = repr(value)
        return (text[:-2] if text.endswith(".0") else text).encode()
    if isinstance(value, dict | list | tuple):
        return json_text(value)
    if isinstance(value, date | datetime | time):
        return value.isoformat().encode()
    if isinstance(value, timedelta):
        return f"{value.days} days {value.seconds} seconds {value.microseconds} microseconds".encode()
    if isinstance(value, bytes | memoryview):
        return b"\\x" + bytes(value).hex().encode()
    return str(value).encode()


def whole(value: Any) -> bytes:
    """For integer columns: 100.0 is the integer 100, as JSON has it."""
    if isinstance(value, Decimal) and value.is_finite() and abs(value.adjusted()) < 100:
        integer = int(value)
        if value == integer:
            return b"%d" % integer
    return scalar(value)


def array_literal(items: list[Any], element: ColumnKind) -> bytes:
    """A Postgres array literal (PostgreSQL manual, 8.15.6): texts quoted, null as NULL, arrays nested."""
    parts: list[bytes] = []
    for item in items:
        if item is None:
            parts.append(b"NULL")
        elif isinstance(item, list):
            parts.append(array_literal(item, element))
        elif element == "json":
            parts.append(_quoted(json_text(item)))
        elif isinstance(item, int | float | Decimal):
            parts.append(scalar(item))
        else:
            parts.append(_quoted(scalar(item)))
    return b"{" + b",".join(parts) + b"}"


def _quoted(text: bytes) -> bytes:
    return b'"' + text.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
