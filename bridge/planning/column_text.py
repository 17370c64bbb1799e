"""A value of an event or a lookup as the text of a column.

Works by lists, because the cost per event decides the throughput: a list of one type takes one comprehension. The
kind of a column decides how numbers, lists and objects are written; the server decides whether it accepts them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from functools import lru_cache, partial
from typing import Any

from bridge.errors import ExpressionFailure
from bridge.expressions.document import digits, json_text
from bridge.expressions.server_text import SERVER_TEXTS, Money, ServerArray, ServerObject
from bridge.planning.plan import NUMBERS, Column

Texts = list[bytes | None]

_NONE = type(None)
_INTEGERS = frozenset({"int2", "int4", "int8", "smallint", "integer", "bigint"})
_PLAIN: dict[type, Callable[[Any], bytes]] = {
    str: str.encode,
    int: b"%d".__mod__,
    Decimal: lambda value: (text if "E" not in (text := str(value)) else digits(value)).encode(),
    date: lru_cache(4096)(lambda value: value.isoformat().encode()),  # a lookup's dates are few
    datetime: lambda value: value.isoformat().encode(),
    **dict.fromkeys(SERVER_TEXTS, str.encode),
}
"""The converter that scalar() uses for one type."""


def texts(column: Column, values: list[Any]) -> Texts:
    """Column text for each value, None for null. Floats must be exact already (document.py)."""
    return Printer(column)(values)


class Printer:
    """texts() of one column, for whoever prints it again and again."""

    __slots__ = ("_encode", "_odd", "_plain")

    def __init__(self, column: Column) -> None:
        self._encode = encoder(column)
        self._plain = self._encode in _ODD
        self._odd = _ODD.get(self._encode)  # the type that has no converter here

    def __call__(self, values: list[Any]) -> Texts:
        encode = self._encode
        if len(values) == 1:  # a batch of one has no need for what makes a list cheap
            (value,) = values
            if value is None:
                return [None]
            if self._plain and value.__class__ is not self._odd:
                encode = _PLAIN.get(value.__class__, encode)
            return [encode(value)]
        kinds = set(map(type, values))
        nulls = _NONE in kinds
        kinds.discard(_NONE)
        if len(kinds) == 1 and self._plain and self._odd not in kinds:
            encode = _PLAIN.get(kinds.pop(), encode)
        if nulls:
            return [None if value is None else encode(value) for value in values]
        return list(map(encode, values))


def encoder(column: Column) -> Callable[[Any], bytes]:
    """One value, not None, to its column text."""
    if column.kind == "json":
        return _json_as_it_is if "json" in (column.base, column.type_sql) else json_text
    if column.kind == "array":
        return partial(_array, column)
    if column.base in _INTEGERS or column.type_sql in _INTEGERS:
        return whole
    if column.base == "money":
        return _money
    if column.base in _ZONELESS:
        return _zoneless
    return scalar if column.kind == "text" else valued


def _json_as_it_is(value: Any) -> bytes:
    if isinstance(value, ServerObject | ServerArray) and value.type_sql == "json":
        return value.text.encode()
    return json_text(value)


def valued(value: Any) -> bytes:
    """For columns of other types than text: money by its number."""
    return scalar(value.number if value.__class__ is Money else value)


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
    if isinstance(value, bytes | memoryview):
        return b"\\x" + bytes(value).hex().encode()
    return (digits(value) if isinstance(value, Decimal) else str(value)).encode()


def whole(value: Any) -> bytes:
    """For integer columns: 100.0 is the integer 100, as in JSON."""
    if isinstance(value, Decimal) and value.is_finite() and abs(value.adjusted()) < 100:
        integer = int(value)
        if value == integer:
            return b"%d" % integer
    return scalar(value)


_ODD: dict[Callable[[Any], bytes], type | None] = {scalar: None, valued: Money, whole: Decimal}
"""Encoders that write one type in another way than scalar(), or none."""


def _money(value: Any) -> bytes:
    """A number is marked: the server reads it by way of numeric, whatever lc_monetary is."""
    number = value.number if value.__class__ is Money else value
    return NUMBERS + scalar(number) if _is_number(number) else scalar(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


# Ranges of moments, and times in a list: their input functions drop an offset, and no cast brings it back.
_ZONELESS = frozenset({"tsrange", "tsmultirange", "daterange", "datemultirange"})
_OFFSET = re.compile(r":[0-5]\d(?::[0-5]\d(?:\.\d+)?)? *(?:[+-]\d|[Zz])")


def _zoneless(value: Any) -> bytes:
    text = scalar(value)
    if _OFFSET.search(text.decode()):
        raise ExpressionFailure("a moment with an offset, for a column whose type keeps no zone")
    return text


# --- arrays -----------------------------------------------------------------------------------------


def _array(column: Column, value: Any) -> bytes:
    if value.__class__ is ServerArray and value.type_sql == column.type_sql and column.element != "money":
        return value.text.encode()
    if not isinstance(value, list):
        return scalar(value)
    element = column.element or column.type_sql.removesuffix("[]")
    if element in ("json", "jsonb"):
        return _joined([b"NULL" if item is None else _quoted(json_text(item)) for item in value], column)
    if element == "money":
        value = _numbers(value)
    if element == "money" and (kinds := set(map(_is_number, _leaves(value)))) - {False}:
        if len(kinds) > 1:
            raise ExpressionFailure("numbers and texts in one list, for a column of money[]")
        return NUMBERS + array_literal(value, scalar)
    each = whole if element in _INTEGERS else scalar
    if element == "time" or element in _ZONELESS:
        each = _zoneless
    return array_literal(value, each, column.delimiter.encode())


def _numbers(items: list[Any]) -> list[Any]:
    """A lookup's money by its number."""
    return [
        _numbers(item) if isinstance(item, list) else item.number if item.__class__ is Money else item
        for item in items
    ]


def _leaves(items: list[Any]) -> list[Any]:
    """What is not null and not a list."""
    found: list[Any] = []
    for item in items:
        found += _leaves(item) if isinstance(item, list) else [] if item is None else [item]
    return found


def array_literal(items: list[Any], each: Callable[[Any], bytes] = scalar, delimiter: bytes = b",") -> bytes:
    """A Postgres array literal (PostgreSQL manual, 8.15.6): texts quoted, null as NULL, lists as dimensions."""
    parts: list[bytes] = []
    for item in items:
        if item is None:
            parts.append(b"NULL")
        elif isinstance(item, list):
            parts.append(array_literal(item, each, delimiter))
        elif isinstance(item, int | float | Decimal):
            parts.append(each(item))
        else:
            parts.append(_quoted(each(item)))
    return b"{" + delimiter.join(parts) + b"}"


def _joined(parts: list[bytes], column: Column) -> bytes:
    return b"{" + column.delimiter.encode().join(parts) + b"}"


def _quoted(text: bytes) -> bytes:
    return b'"' + text.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
