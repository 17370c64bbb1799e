"""From a lookup's result to rows: numbers, booleans, JSON with exact numbers, everything else as the server's text.

psycopg's objects would not do: Python has no date after 9999, no infinite one, no interval with months, and a row with
one would fail as a whole. A value that cannot be read makes its row Unreadable, which is never a row that is missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import cache, partial
from itertools import repeat
from math import isfinite
from typing import Any

import psycopg
from psycopg.errors import error_from_result
from psycopg.generators import execute
from psycopg.pq import ExecStatus
from psycopg.types.string import TextLoader

from bridge.errors import PayloadFailure
from bridge.expressions.document import exact_json
from bridge.expressions.server_text import (
    Date,
    Money,
    ServerArray,
    ServerObject,
    ServerText,
    Time,
    Timestamp,
    Timestamptz,
    Timetz,
)
from bridge.planning.lookup import Unreadable

Row = Mapping[str, Any] | Unreadable
Convert = Callable[[Any], Any]

_types = psycopg.adapters.types
_NUMBERS = tuple(_types[name].oid for name in ("int2", "int4", "int8", "oid", "numeric", "float4", "float8"))
_FLOATS = frozenset({_types["float4"].oid, _types["float8"].oid})
_MONEY = 790
_FIRST_OF_USERS = 16384  # the oids below are the server's own types
_TEXTS = frozenset(
    _types[name].oid for name in ("text", "varchar", "bpchar", "name", '"char"', "uuid", "bytea")
)
"""Their texts have the order of their values, or none that a person would ask for."""


def _float(value: float) -> float | Decimal:
    return value if isfinite(value) else Decimal(value)  # JSON's numbers are finite


def _json(text: str) -> Any:
    value = exact_json(text)
    if isinstance(value, dict):
        return ServerObject.of(value, text)
    return ServerArray.of(value, text, "json") if isinstance(value, list) else value


_CONVERT: dict[int, Convert] = {
    _types["json"].oid: _json,
    _types["jsonb"].oid: exact_json,
    _types["date"].oid: Date,
    _types["time"].oid: Time,
    _types["timetz"].oid: Timetz,
    _types["timestamp"].oid: Timestamp,
    _types["timestamptz"].oid: Timestamptz,
    **dict.fromkeys(_FLOATS, _float),
}
_ELEMENTS: dict[int, Convert] = {
    _types["bool"].oid: "t".__eq__,
    **dict.fromkeys(_NUMBERS[:4], int),
    **dict.fromkeys(_FLOATS, lambda text: _float(float(text))),
    _types["numeric"].oid: Decimal,
}


def takes_text(connection: psycopg.Connection[Any]) -> None:
    """Let this connection load nothing but booleans and numbers into objects."""
    kept = {_types["bool"].oid, *_NUMBERS}
    for info in _types:
        for oid in {info.oid, info.array_oid} - kept - {0}:
            connection.adapters.register_loader(oid, TextLoader)


@cache
def converter(oid: int) -> Convert | None:
    """What makes the value of what the connection has loaded; None: it is the value."""
    if oid in _CONVERT:
        return _CONVERT[oid]
    info = _types.get(oid)
    if info is not None and info.array_oid == oid and info.delimiter == ",":
        element = _ELEMENTS.get(info.oid) or converter(info.oid)
        return partial(array_of, element=element, type_sql=f"{info.regtype}[]")
    if oid in _NUMBERS or oid in _TEXTS or oid == _types["bool"].oid or oid >= _FIRST_OF_USERS:
        return None
    return ServerText


def array_of(text: str, element: Convert | None, type_sql: str) -> ServerArray:
    """An array's text (PostgreSQL manual, 8.15.6) with its elements; arrays in it are lists."""
    body = text[text.index("{") :]  # before it, the bounds if they are not from 1
    if '"' not in body and body.count("{") == 1:
        items: list[Any] = body[1:-1].split(",") if body != "{}" else []
        if element is not None or "NULL" in items:
            items = [None if item == "NULL" else item if element is None else element(item) for item in items]
        return ServerArray.of(items, text, type_sql)
    element = element or str
    lists: list[list[Any]] = [[]]
    at = 0
    while at < len(body):
        sign = body[at]
        at += 1
        if sign == "{":
            lists.append([])
        elif sign == "}":
            inner = lists.pop()
            lists[-1].append(inner)
        elif sign == '"':
            item, at = _quoted(body, at)
            lists[-1].append(element(item))
        elif sign != ",":
            end = at
            while body[end] not in ",}":
                end += 1
            item, at = body[at - 1 : end], end
            lists[-1].append(None if item == "NULL" else element(item))
    return ServerArray.of(lists[0][0], text, type_sql)


def _quoted(body: str, at: int) -> tuple[str, int]:
    """The element whose opening quote is before `at`, and where it ends."""
    parts: list[str] = []
    while (sign := body[at]) != '"':
        if sign == "\\":
            at += 1
        parts.append(body[at])
        at += 1
    return "".join(parts), at + 1


def rows_of(cursor: psycopg.Cursor[Any]) -> list[tuple[str, Row]]:
    """(the first column as text, the row) of every row. Raises psycopg.Error."""
    described = cursor.description or ()
    names = [column.name for column in described]
    if not names:
        return []
    loaded = cursor.fetchall()
    converters = {n: c for n, column in enumerate(described) if (c := converter(column.type_code))}
    converters.update(_moneys(cursor, described, loaded))
    keys = [str(row[0]) for row in loaded]
    if not converters:
        return list(zip(keys, [dict(zip(names, row, strict=True)) for row in loaded], strict=True))
    columns: list[Sequence[Any]] = list(zip(*loaded, strict=True))
    try:
        for n, convert in converters.items() if loaded else ():
            columns[n] = [None if value is None else convert(value) for value in columns[n]]
    except (PayloadFailure, ValueError, ArithmeticError):
        return [(key, _converted(names, row, converters)) for key, row in zip(keys, loaded, strict=True)]
    return list(zip(keys, map(dict, map(zip, repeat(names), zip(*columns, strict=True))), strict=True))


def _converted(names: list[str], row: Sequence[Any], converters: Mapping[int, Convert]) -> Row:
    values = list(row)
    for n, convert in converters.items():
        try:
            values[n] = None if values[n] is None else convert(values[n])
        except PayloadFailure as error:
            return Unreadable(f"column {names[n]} cannot be read: {error.cause.removeprefix('the payload ')}")
        except (ValueError, ArithmeticError) as error:
            return Unreadable(f"column {names[n]} cannot be read: {type(error).__name__}")
    return dict(zip(names, values, strict=True))


def _moneys(
    cursor: psycopg.Cursor[Any], described: Sequence[psycopg.Column], loaded: Sequence[Sequence[Any]]
) -> dict[int, Convert]:
    """Converters of the money columns. What a text of money is worth only its own server can say."""
    places = [n for n, column in enumerate(described) if column.type_code == _MONEY]
    texts = list({row[n] for row in loaded for n in places} - {None})
    if not texts:
        return {}
    with cursor.connection.cursor() as asking:
        asking.execute(
            "select pg_catalog.unnest(%s::pg_catalog.text[]::pg_catalog.money[])::pg_catalog.numeric", [texts]
        )
        worth = dict(zip(texts, (number for (number,) in asking), strict=True))
    return dict.fromkeys(places, lambda text: Money.of(text, worth[text]))


_KEYS = re.compile(r"%\(keys\)s|%%")


def described(connection: psycopg.Connection[Any], sql: str) -> dict[str, int]:
    """Column -> oid of its type, as the server describes the query (Parse and Describe, PostgreSQL manual, 55.2.3):
    it is not run. Raises psycopg.Error."""
    text = _KEYS.sub(lambda found: "%" if found[0] == "%%" else "$1", sql)
    link = connection.pgconn
    with connection.transaction():  # one server, also behind a pooler
        for send in (
            partial(link.send_prepare, b"", text.encode()),
            partial(link.send_describe_prepared, b""),
        ):
            send()
            (result,) = connection.wait(execute(link))
            if result.status != ExecStatus.COMMAND_OK:
                raise error_from_result(result)
    return {(result.fname(n) or b"").decode(): result.ftype(n) for n in range(result.nfields)}
