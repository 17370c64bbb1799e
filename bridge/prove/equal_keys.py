"""Which keys are equal: the target's types decide, not their texts.

`A@x` and `a@x` are one citext, 1 and 1.00 one numeric, one moment has many texts; and a collation may ignore case. An
extended hash is equal where the values are, in the sense of type and collation. So each side's keys are known by hashes
that the target makes, 128 bits, in the queries that read them anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import LiteralString

import psycopg
from psycopg import sql

from bridge.planning.plan import Column
from bridge.prove.side import Sides

_HASHES: LiteralString = "hash_record_extended(row({0}), 0), hash_record_extended(row({0}), 1)"
_COLLATIONS: LiteralString = """
    select a.attname, n.nspname, o.collname
    from pg_index i join pg_class c on c.oid = i.indrelid join pg_namespace s on s.oid = c.relnamespace,
        unnest(i.indkey::int2[], i.indcollation::oid[]) with ordinality as k(attnum, sorted_by, place)
        join pg_attribute a on a.attnum = k.attnum
        join pg_collation o on o.oid = k.sorted_by join pg_namespace n on n.oid = o.collnamespace
    where s.nspname = %(schema)s::text and c.relname = %(table)s::text and a.attrelid = i.indrelid
        and i.indisunique and k.place <= i.indnkeyatts and %(names)s::text[] = (
            select array_agg(b.attname::text order by b.attname::text)
            from unnest(i.indkey::int2[]) with ordinality as kb(attnum, place)
                left join pg_attribute b on b.attrelid = i.indrelid and b.attnum = kb.attnum
            where kb.place <= i.indnkeyatts)"""


class KeyForm:
    """The form of a key in which equal ones are the same text."""

    def __init__(self, sides: Sides) -> None:
        subject = sides.subject
        names = sorted(column.name for column in subject.key)
        rows = sides.target.execute(
            _COLLATIONS, {"schema": subject.schema, "table": subject.table, "names": names}
        ).fetchall()
        self._columns = subject.key
        self._collations = {name: sql.Identifier(schema, collation) for name, schema, collation in rows}
        self._hashed = {column.name for column in subject.key if _has_hash(sides, column)}

    def text(self, values: Sequence[sql.Composable]) -> sql.Composed:
        """Over the values of the key's columns. A type that has no hash is known by its text."""
        hashed: list[sql.Composable] = []
        parts: list[sql.Composable] = []
        for column, value in zip(self._columns, values, strict=True):
            if column.name not in self._hashed:
                parts.append(sql.SQL("{}::text").format(value))
            elif column.name in self._collations:
                hashed.append(sql.SQL("{} collate {}").format(value, self._collations[column.name]))
            else:
                hashed.append(value)
        if hashed:
            parts.append(sql.SQL(_HASHES).format(sql.SQL(", ").join(hashed)))
        return sql.SQL("row({})::text").format(sql.SQL(", ").join(parts))


def _has_hash(sides: Sides, column: Column) -> bool:
    query = sql.SQL("select hash_record_extended(row(null::{}), 0)").format(
        sql.SQL(column.declared or column.type_sql)  # as format_type() prints it
    )
    try:
        sides.cast.execute(query)
    except psycopg.errors.UndefinedFunction:
        return False
    return True
