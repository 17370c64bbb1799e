"""What a column's text becomes: the value that a plain, hand-written INSERT of it would store, or an error.

A literal in an INSERT is read by the input function of the column's type, with its modifier, and a value that is too
long is an error. An explicit cast cuts it: `'ABCDEF'::varchar(3)`, and so does one to a domain over that. So text is
cast to the type below all domains, without a modifier; the assignment to the column checks length and scale, and
brings the domain in. The exceptions stand in value_sql().

These expressions run in a statement that fires the customer's triggers, so under the role's search_path: every name
and operator in them is qualified.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import psycopg
from psycopg import sql

from bridge.planning.plan import NUMBERS, Column, TableShape


def value_sql(column: Column, argument: str) -> str:
    """SQL for the column's value. argument: an expression of type text."""
    special = _SPECIAL.get(f"_{column.element}" if column.element else column.base)
    if special is not None:
        return special(argument)
    if column.base == "interval" and column.declared != "interval":
        return _typed(argument, column.declared)  # `5` is five months in an interval year to month
    if column.read_by_cast:
        return _typed(argument, _cast_type(column))
    return argument if column.base == "text" else f"{argument}::{_cast_type(column)}"


def _cast_type(column: Column) -> str:
    return column.cast or column.type_sql


def _typed(argument: str, declared: str) -> str:
    """By the input function, with the modifier. Slower than a cast: for few types."""
    record = f"pg_catalog.json_to_record(pg_catalog.json_build_object('v', {argument}))"
    return f"(select typed.v from {record} as typed(v {declared}))"


# A moment that goes where no zone is kept: in UTC, which is the session's zone. The types' own input drops the offset.
def _by_way_of(name: str, other: str) -> Callable[[str], str]:
    return lambda argument: f"{argument}::pg_catalog.{other}::pg_catalog.{name}"


def _date(argument: str) -> str:
    """Ten characters are a date without a time, and the years of a date go further than a timestamp's."""
    short = f"pg_catalog.length({argument}) operator(pg_catalog.<=) 10"
    far = f"{argument} operator(pg_catalog.~) '^[0-9]{{6,}}-'"
    return (
        f"case when {short} or {far} then {argument}::pg_catalog.date"
        f" else {argument}::pg_catalog.timestamptz::pg_catalog.date end"
    )


def _time(argument: str) -> str:
    """Fifteen characters are a time to the microsecond. With a date it is a moment."""
    short = f"pg_catalog.length({argument}) operator(pg_catalog.<=) 15"
    zoned = f"{argument} operator(pg_catalog.~) '[-+Zz]'"
    dated = f"{argument} operator(pg_catalog.~) '^ *[0-9]+-[0-9]+-.*:|^ *[0-9]{{8}}[T ]'"
    return (
        f"case when {short} and not {zoned} then {argument}::pg_catalog.time"
        f" when {dated} then {argument}::pg_catalog.timestamptz::pg_catalog.time"
        f" when {zoned} then ({argument}::pg_catalog.timetz at time zone 'UTC')::pg_catalog.time"
        f" else {argument}::pg_catalog.time end"
    )


def _money(argument: str, array: str = "") -> str:
    """array: an underscore for money[]."""
    numbers = f"pg_catalog.substr({argument}, 2)"
    return (
        f"case when pg_catalog.left({argument}, 1) operator(pg_catalog.=) '{NUMBERS.decode()}'"
        f" then {numbers}::pg_catalog.{array}numeric::pg_catalog.{array}money"
        f" else {argument}::pg_catalog.{array}money end"
    )


_SPECIAL: dict[str, Callable[[str], str]] = {
    "timestamp": _by_way_of("timestamp", "timestamptz"),
    "_timestamp": _by_way_of("_timestamp", "_timestamptz"),
    "date": _date,
    "_date": _by_way_of("_date", "_timestamptz"),
    "time": _time,
    "money": _money,
    "_money": partial(_money, array="_"),
}


# --- the table as it was planned for ---------------------------------------------------------------

ALTERED = "outbox-bridge: the table was altered"

_IDENTITY = """(
    select pg_catalog.concat_ws('.', c.oid, c.relkind, c.relpersistence, (
        select pg_catalog.sum(a.xmin::pg_catalog.text::pg_catalog.int8) from pg_catalog.pg_attribute a
        where a.attrelid operator(pg_catalog.=) c.oid and a.attnum operator(pg_catalog.>) 0))
    from pg_catalog.pg_class c where c.oid operator(pg_catalog.=) {}::pg_catalog.regclass)"""


def identity_sql(schema: str, table: str) -> sql.Composed:
    """Text that changes with every ALTER of the table's columns: xmin of a catalog row grows with each."""
    name = sql.Literal(sql.Identifier(schema, table).as_string())
    return sql.SQL(_IDENTITY).format(name)


def unaltered_sql(shape: TableShape) -> sql.Composed:
    """A condition that is true, or fails the statement because the table is not the one that `shape` describes.

    Evaluated once, when the statement holds its lock on the table and has taken its snapshot: whoever alters the table
    did so before, and is seen, or waits until this transaction ends."""
    return sql.SQL(
        "(select case when {} operator(pg_catalog.=) {} then '1' else {} end)::pg_catalog.int4"
        " operator(pg_catalog.=) 1"
    ).format(identity_sql(shape.schema, shape.table), sql.Literal(shape.identity), sql.Literal(ALTERED))


def is_altered(error: psycopg.Error) -> bool:
    """Did unaltered_sql() make this statement fail?"""
    return error.sqlstate == "22P02" and ALTERED in (error.diag.message_primary or "")
