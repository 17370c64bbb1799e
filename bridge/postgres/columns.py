"""The types of a table's columns and of a query's: what lint knows of a server (config/snapshot.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import psycopg

from bridge.planning.column_fit import ColumnType
from bridge.postgres.looked_up import described

_OF_TABLE = """
    with recursive base (name, place, declared, oid) as (
        select a.attname::text, a.attnum, format_type(a.atttypid, a.atttypmod), a.atttypid
        from pg_catalog.pg_attribute a
        join pg_catalog.pg_class c on c.oid = a.attrelid
        join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where n.nspname = %s::text and c.relname = %s::text and a.attnum > 0 and not a.attisdropped
        union all
        select b.name, b.place, b.declared, t.typbasetype
        from base b join pg_catalog.pg_type t on t.oid = b.oid where t.typtype = 'd'
    )
    select b.name, b.declared, b.oid from base b join pg_catalog.pg_type t on t.oid = b.oid
    where t.typtype <> 'd' order by b.place"""
_TYPES = """
    select t.oid, t.typname::text, coalesce((
        select array_agg(e.enumlabel::text order by e.enumsortorder)
        from pg_catalog.pg_enum e where e.enumtypid = t.oid), '{}')
    from pg_catalog.pg_type t where t.oid = any(%s::oid[])"""


def of_table(connection: psycopg.Connection, schema: str, table: str) -> dict[str, ColumnType]:
    """Column -> its type, in the table's order; none if there is no such table. Raises psycopg.Error."""
    rows = connection.execute(_OF_TABLE.encode(), [schema, table]).fetchall()
    types = _types(connection, [oid for _, _, oid in rows])
    return {
        name: ColumnType(base, declared, labels)
        for name, declared, oid in rows
        for base, labels in [types[oid]]
    }


def of_query(connection: psycopg.Connection, sql: str) -> dict[str, ColumnType]:
    """Column -> its type, in the query's order. sql: of a lookup, which is not run. Raises psycopg.Error."""
    columns = described(connection, sql)
    types = _types(connection, list(columns.values()))
    return {
        name: ColumnType(base, labels=labels)
        for name, oid in columns.items()
        for base, labels in [types.get(oid, ("", ()))]
    }


def _types(connection: psycopg.Connection, oids: Sequence[int]) -> Mapping[int, tuple[str, tuple[str, ...]]]:
    """oid -> typname, labels."""
    rows = connection.execute(_TYPES.encode(), [list(oids)]).fetchall()
    return {oid: (name, tuple(labels)) for oid, name, labels in rows}
