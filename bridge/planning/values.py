"""Value sources, and JSON values as the text of a Postgres column.

A source is what a configuration writes where a value is wanted: `$name...` is an expression, `$$` a literal
dollar, a text with `{{` a template, objects and arrays hold sources themselves, anything else is a literal.
Column text is made by lists, because the cost an event decides the throughput: a list of one type takes one
comprehension.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any
from uuid import UUID

import orjson

from bridge.errors import ExpressionFailure
from bridge.expressions.document import json_text
from bridge.expressions.expression import Expression, compile_expression
from bridge.expressions.template import Template, compile_template
from bridge.planning.plan import Column, ColumnKind
from bridge.planning.rows import Rows

_EXPRESSION = re.compile(r"\$[A-Za-z_]")


@dataclass(frozen=True, slots=True)
class Literal:
    """The same value for every event."""

    value: Any


@dataclass(frozen=True, slots=True)
class Structure:
    """An object or array with sources inside."""

    items: dict[str, ValueSource] | list[ValueSource]


@dataclass(frozen=True, slots=True)
class Escaped:
    """An expression whose text must be inert in a vendor's markup."""

    source: Expression
    escape: Callable[[str], str]

    @property
    def names(self) -> frozenset[str]:
        return self.source.names

    def made_inert(self, value: Any) -> Any:
        """Texts and numbers; anything else is no markup."""
        if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
            return value
        return self.escape(str(value))


ValueSource = Expression | Escaped | Template | Literal | Structure


def classify(  # noqa: PLR0911  one return a form of value
    value: Any, escape: Callable[[str], str] | None = None
) -> ValueSource:
    """Compile what was written; raises ExpressionSyntaxError or TemplateSyntaxError.

    escape: what values go through on their way into a text; what is written literally does not.
    """
    if isinstance(value, str):
        if _EXPRESSION.match(value):
            expression = compile_expression(value)
            return expression if escape is None else Escaped(expression, escape)
        text = value.replace("$$", "$")
        return compile_template(text, escape) if "{{" in text else Literal(text)
    if isinstance(value, Mapping):
        items = {str(name): classify(item, escape) for name, item in value.items()}
        if all(isinstance(item, Literal) for item in items.values()):
            return Literal({name: item.value for name, item in items.items() if isinstance(item, Literal)})
        return Structure(items)
    if isinstance(value, list | tuple):
        elements = [classify(item, escape) for item in value]
        if all(isinstance(item, Literal) for item in elements):
            return Literal([item.value for item in elements if isinstance(item, Literal)])
        return Structure(elements)
    return Literal(value)


def names_of(source: ValueSource) -> frozenset[str]:
    """Every dotted name a source reads."""
    if isinstance(source, Literal):
        return frozenset()
    if isinstance(source, Structure):
        inner = source.items.values() if isinstance(source.items, dict) else source.items
        return frozenset().union(*map(names_of, inner))
    return source.names


def values_of(source: ValueSource, rows: Rows) -> list[Any]:
    """A source's value in every row, numbers of events exact where they are only carried."""
    if isinstance(source, Literal):
        return [source.value] * len(rows)
    if isinstance(source, Expression):
        if source.plain_path == ("event",):
            return [orjson.Fragment(payload) for payload in rows.payloads()]
        return rows.exact(source.plain_path) if source.plain_path else rows.evaluate(source)
    if isinstance(source, Escaped):
        return [source.made_inert(value) for value in values_of(source.source, rows)]
    if isinstance(source, Template):
        return [source.render(context) for context in rows.contexts(source.roots)]
    return structures(source, rows)


def structures(source: Structure, rows: Rows) -> list[Any]:
    """Objects and arrays, built for every row."""
    if isinstance(source.items, dict):
        names = list(source.items)
        columns = [values_of(item, rows) for item in source.items.values()]
        return [dict(zip(names, items, strict=True)) for items in zip(*columns, strict=True)]
    return [list(items) for items in zip(*(values_of(item, rows) for item in source.items), strict=True)]


_KEY_TYPES = frozenset({str, int, type(None)})


def keys_of(source: ValueSource, rows: Rows, what: str) -> list[Any]:
    """The key that a source names in every row: a text, an integer or None. what: for the message of one that is
    none of them."""
    values = values_of(source, rows)
    if set(map(type, values)) <= _KEY_TYPES:
        return values
    return [_key(value, what) for value in values]


def _key(value: Any, what: str) -> str | int | None:
    if value is None or value.__class__ in _KEY_TYPES:
        return value  # type: ignore[no-any-return]  # its class was just asked for
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Decimal | float) and value == int(value):
        return int(value)
    raise ExpressionFailure(f"{what} is neither a text nor an integer")


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
