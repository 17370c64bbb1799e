"""What a target's table must be so that an effect stays and the newest event wins: asked by doctor and at every start.

An error is what loses effects or halts at the first event; a warning costs single events. What the role may do is in
target_rights.py; catalog.py asks both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import psycopg
from psycopg import sql

from bridge.planning.plan import TableShape
from bridge.planning.spec import TableSpec


@dataclass(frozen=True, slots=True)
class Finding:
    """An error stops a stream; a warning is told. reason: the word for /readyz, metrics and docs."""

    reason: str
    message: str
    fix: str
    level: Literal["error", "warn"] = "error"
    halts: bool = True  # an error that leaves events applicable does not: it is logged at every start

    @property
    def stops(self) -> bool:
        return self.level == "error" and self.halts


def quoted(*names: str) -> str:
    return sql.Identifier(*names).as_string()


def place(shape: TableShape, spec: TableSpec) -> str:
    return f"destination {spec.name}: {shape.schema}.{shape.table}"


def mapped(shape: TableShape, spec: TableSpec) -> list[str]:
    """The columns this destination writes."""
    if spec.columns is None:
        return [column.name for column in shape.columns.values() if column.writable]
    version = [spec.version_column] if spec.version_column else []
    return list(dict.fromkeys([*spec.columns, *version]))


def source_of(spec: TableSpec, column: str) -> object:
    """The value that a column is mapped from; under the default mapping the field of its name."""
    if spec.columns is not None and column in spec.columns:
        return spec.columns[column]
    if column == spec.version_column and spec.version != column:
        return spec.version
    return "$meta.id" if column == "event_id" else f"$event.{column}"


# -- rows that a crash does not take --------------------------------------------------------------------

PARTS = """with recursive part (oid) as (
        select unnest(%(tables)s::oid[])
        union all
        select i.inhrelid from pg_catalog.pg_inherits i join part on part.oid = i.inhparent
            join pg_catalog.pg_class c on c.oid = i.inhrelid where c.relispartition
    )"""
"""The tables and all their partitions. Not pg_partition_tree(), which waits for locks."""

SEQUENCES = """
    select distinct format('%%I.%%I', n.nspname, s.relname), a.attname, s.relpersistence <> 'p',
        a.attidentity <> '' or has_sequence_privilege(s.oid, 'usage') or has_sequence_privilege(s.oid, 'update')
    from pg_catalog.pg_attribute a
    left join pg_catalog.pg_attrdef f on f.adrelid = a.attrelid and f.adnum = a.attnum and a.attgenerated = ''
    join pg_catalog.pg_depend d on
        (d.classid = 'pg_catalog.pg_attrdef'::regclass and d.objid = f.oid
            and d.refclassid = 'pg_catalog.pg_class'::regclass)
        or (a.attidentity <> '' and d.classid = 'pg_catalog.pg_class'::regclass and d.deptype = 'i'
            and d.refclassid = 'pg_catalog.pg_class'::regclass and d.refobjid = a.attrelid and d.refobjsubid = a.attnum)
    join pg_catalog.pg_class s on s.relkind = 'S'
        and s.oid = case when d.classid = 'pg_catalog.pg_class'::regclass then d.objid else d.refobjid end
    join pg_catalog.pg_namespace n on n.oid = s.relnamespace
    where a.attrelid = %(table)s and not a.attname = any(%(given)s::text[]) and not a.attisdropped"""
"""A table's sequences behind defaults of columns that are not given: name, column, is it UNLOGGED, may we use it."""

_VOLATILE = f"""{PARTS}
    select format('%%I.%%I', n.nspname, c.relname), c.relpersistence = 't'
    from part join pg_catalog.pg_class c on c.oid = part.oid join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where c.relpersistence <> 'p' and c.relkind = 'r' order by 1"""


def volatile(
    connection: psycopg.Connection, tables: Sequence[int], where: str, *, halts: bool = False
) -> Iterator[Finding]:
    """Tables and partitions that a crash empties. A partitioned table has no rows of its own."""
    rows = connection.execute(_VOLATILE.encode(), {"tables": list(tables)}).fetchall()
    if not rows:
        return
    names = ", ".join(name for name, _ in rows)
    temporary = any(temporary for _, temporary in rows)
    yield Finding(
        "table_unlogged",
        f"{where}: {names} {'is' if len(rows) == 1 else 'are'} {'temporary' if temporary else 'UNLOGGED'}: a crash "
        "of the server empties it, while the ledger keeps that its events are applied",
        "name a permanent table"
        if temporary
        else "\n".join(f"alter table {name} set logged;" for name, _ in rows),
        halts=halts or temporary,
    )


# -- the version ----------------------------------------------------------------------------------------

_TYPE = """
    with recursive base (oid, modifier) as (
        select atttypid, atttypmod from pg_catalog.pg_attribute where attrelid = %s and attname = %s::text
        union all
        select t.typbasetype, case when b.modifier = -1 then t.typtypmod else b.modifier end
        from base b join pg_catalog.pg_type t on t.oid = b.oid where t.typtype = 'd'
    )
    select t.typname, t.typcategory::text, t.typtype = 'e', n.nspname = 'pg_catalog', b.modifier,
        t.typtype <> 'b' or t.typcategory = 'A' or exists (
            select from pg_catalog.pg_operator o where o.oprname = '<' and o.oprleft = o.oprright and (
                o.oprleft = t.oid or exists (
                    select from pg_catalog.pg_cast c where c.castsource = t.oid and c.casttarget = o.oprleft
                        and c.castmethod = 'b' and c.castcontext = 'i')))
    from base b join pg_catalog.pg_type t on t.oid = b.oid join pg_catalog.pg_namespace n on n.oid = t.typnamespace
    where t.typtype <> 'd'"""


@dataclass(frozen=True, slots=True)
class _Type:
    """A column's type below its domains."""

    name: str
    category: str
    enum: bool
    builtin: bool
    modifier: int
    compared: bool  # it has `<`

    @property
    def text(self) -> bool:
        return self.category == "S" or (self.builtin and self.name == "char")

    @property
    def numeric(self) -> tuple[int, int] | None:
        """Digits before the point and after it, of numeric with a modifier."""
        if self.name != "numeric" or self.modifier < 4:
            return None
        precision, scale = (self.modifier - 4) >> 16 & 0xFFFF, ((self.modifier - 4 & 0x7FF) ^ 1024) - 1024
        return precision - scale, scale


Order = Literal["seq", "integer", "number", "occurred_at", "timestamp", ""]
"""How the versions that come are ordered; "": nobody says."""

_NUMBERS: tuple[Order, ...] = ("seq", "integer", "number")
_TIMES: tuple[Order, ...] = ("occurred_at", "timestamp")
_WORDS: dict[Order, str] = {
    "seq": "the numbers of $meta.seq",
    "integer": "integers",
    "number": "numbers",
    "occurred_at": "the times of $meta.occurred_at",
    "timestamp": "times",
}
_LIMITS = {"int2": 2**15 - 1, "int4": 2**31 - 1, "oid": 2**32 - 1}
Doubt = tuple[Literal["error", "warn"], str] | None


def _order(spec: TableSpec, column: str, kinds: Mapping[str, str]) -> Order:
    source = source_of(spec, column)
    if source == "$meta.seq":
        return "seq"
    if source == "$meta.occurred_at":
        return "occurred_at"
    kind = kinds.get(column)
    return kind if kind in ("integer", "number", "timestamp") else ""  # type: ignore[return-value]


def _unfit(kind: _Type, order: Order) -> Doubt:  # noqa: PLR0911  one line a rule is the plainest form
    """Why a later version may not be greater in a column of this type."""
    words = _WORDS.get(order, "")
    if not kind.compared:
        return "error", "has no order, so no version can be compared in it"
    if kind.text:
        if order:
            return "error", f"orders text, not {words}: 10 comes before 9"
        return "warn", "orders text: where versions are numbers, 10 comes before 9"
    if kind.builtin and kind.name == "float4":
        return (
            "error",
            "holds six digits: versions that differ after them are equal, and the newer one is not written",
        )
    if kind.builtin and kind.name == "float8":
        if order in ("number", ""):
            return "warn", "holds fifteen digits: versions that differ after them are equal"
        return "error", f"does not hold {words} exactly"
    if kind.enum:
        return ("error", f"orders labels, not {words}") if order else None
    if not kind.builtin:
        return None  # an extension's own type
    if order in _NUMBERS:
        return _unfit_for_numbers(kind, order)
    if order in _TIMES:
        return _unfit_for_times(kind, order)
    return ("warn", "orders texts and numbers in its own way") if kind.name == "jsonb" else None


def _unfit_for_numbers(kind: _Type, order: Order) -> Doubt:
    if kind.numeric is not None:
        return _unfit_digits(*kind.numeric, order)
    if order == "seq" and kind.name in _LIMITS:
        return "warn", f"ends at {_LIMITS[kind.name]}: each event after that is a dead letter"
    if kind.name == "money":
        return "error", "does not hold numbers exactly, and reads them as its locale does"
    # whether it holds the contract's type is asked with all columns
    fits = order != "seq" or kind.name in ("int8", "numeric", "xid8", "jsonb")
    return None if fits else ("error", f"cannot hold {_WORDS[order]}")


def _unfit_digits(before: int, after: int, order: Order) -> Doubt:
    if after < 0:
        return "error", f"rounds {_WORDS[order]} to {-after} places before the point"
    if order == "number":
        return "warn", f"rounds to {after} places: versions that differ after them are equal"
    return ("warn", f"holds numbers of {before} digits only") if before < 19 and order == "seq" else None


def _unfit_for_times(kind: _Type, order: Order) -> Doubt:
    if kind.name not in ("timestamptz", "timestamp"):
        return "error", f"does not hold {_WORDS[order]}, or not all of them"
    if 0 <= kind.modifier < 6:
        level: Literal["error", "warn"] = "error" if order == "occurred_at" else "warn"
        return level, f"holds {kind.modifier} places of a second: times that differ after them are equal"
    return None


def version_findings(
    connection: psycopg.Connection, oid: int, shape: TableShape, spec: TableSpec, kinds: Mapping[str, str]
) -> Iterator[Finding]:
    """Is a later version greater in its column? Otherwise the newest event is the one that is not written."""
    name = spec.version_column
    if spec.mode != "upsert" or name is None or name not in shape.columns:
        return
    row = connection.execute(_TYPE.encode(), [oid, name]).fetchone()
    if row is None:
        return
    kind, order = _Type(*row), _order(spec, name, kinds)
    doubt = _unfit(kind, order)
    if doubt is None:
        return
    level, why = doubt
    better = {"number": "numeric", "timestamp": "timestamptz", "occurred_at": "timestamptz"}.get(
        order, "bigint"
    )
    column = quoted(name)
    if kind.text or kind.name in ("json", "jsonb", "money"):
        old = f"{column}::{'numeric' if kind.name == 'money' else 'text'}::{better}"
    elif kind.category == {"timestamptz": "D"}.get(better, "N") and kind.name not in ("time", "timetz"):
        old = f"{column}::{better}"
    else:
        old = f"null::{better}"  # the next event of each key sets it
    fix = f"alter table {quoted(shape.schema, shape.table)} alter column {column} type {better} using {old};"
    if not order:
        fix = f"if they are numbers: {fix}   or: version: $meta.seq, in a column of type bigint"
    declared = shape.columns[name].declared or shape.columns[name].type_sql
    yield Finding(
        "column_type",
        f"{place(shape, spec)}: the version's column {name!r}, {declared}, {why}",
        fix,
        level,
        halts=False,
    )


# -- moments --------------------------------------------------------------------------------------------

_ZONELESS = {"timestamp": "is stored", "time": "is stored", "date": "has its day"}


def zone_findings(shape: TableShape, spec: TableSpec, kinds: Mapping[str, str]) -> Iterator[Finding]:
    """Columns whose type keeps no time zone, for moments."""
    for name in mapped(shape, spec):
        column = shape.columns.get(name)
        moment = kinds.get(name) == "timestamp" or (spec.columns or {}).get(name) == "$meta.occurred_at"
        if column is None or not moment or column.type_name not in _ZONELESS:
            continue
        yield Finding(
            "column_zone",
            f"{place(shape, spec)}: column {name!r} is {column.type_sql}, which keeps no time zone: a moment "
            f"{_ZONELESS[column.type_name]} in UTC",
            f"alter table {quoted(shape.schema, shape.table)} alter column {quoted(name)} type timestamptz "
            f"using {quoted(name)} at time zone 'UTC';   or leave it: UTC is what the bridge writes"
            if column.base == "timestamp"
            else "leave it, if UTC is meant; otherwise a column of type timestamptz keeps the moment",
            "warn",
        )


# -- NULL -----------------------------------------------------------------------------------------------

_NEVER_NULL = ("$meta.id", "$meta.seq", "$meta.type", "$meta.occurred_at")


Lack = Literal["", "absent", "null"]
"""What a contract lets an event do with a field: nothing but bring a value, leave it out, or bring null."""


def null_findings(
    connection: psycopg.Connection, oid: int, shape: TableShape, spec: TableSpec, nulls: Mapping[str, Lack]
) -> Iterator[Finding]:
    """What an event without a field does. nulls: column -> may the contract's field be absent or null?"""
    table = quoted(shape.schema, shape.table)
    if spec.key and not _null_is_a_key(connection, oid, spec):
        for name in dict.fromkeys(spec.key):
            column = shape.columns.get(name)
            if column is None or column.not_null or nulls.get(name) == "":
                continue
            source = source_of(spec, name)
            if source in _NEVER_NULL or not isinstance(source, str) or not source.startswith("$"):
                continue
            yield Finding(
                "key_nullable",
                f"{place(shape, spec)}: key column {name!r} may be NULL, and NULL equals no key: each event "
                "without a value for it adds a row",
                f"alter table {table} alter column {quoted(name)} set not null;",
                "warn",
            )
    for name in spec.columns or ():
        column = shape.columns.get(name)
        lack = nulls.get(name)
        if column is None or not column.not_null or not column.writable or not lack:
            continue
        if lack == "absent" and column.has_default:
            continue  # what an event does not say is not written
        field = str(source_of(spec, name)).removeprefix("$event.")
        how = "may be null" if lack == "null" else "is optional"
        ways = [
            f"let the contract require {field}",
            f"alter table {table} alter column {quoted(name)} drop not null;",
            *(
                [f"take {name} out of `columns`, so that it always has its default"]
                if column.has_default
                else []
            ),
        ]
        yield Finding(
            "column_not_null",
            f"{place(shape, spec)}: column {name!r} is NOT NULL, and its field {field!r} {how}: such an event is "
            "a dead letter",
            "   or: ".join(ways),
            "warn",
        )


def _null_is_a_key(connection: psycopg.Connection, oid: int, spec: TableSpec) -> bool:
    """Is the key's index one with NULLS NOT DISTINCT (PostgreSQL 15)?"""
    row = connection.execute(
        "select exists (select from pg_catalog.pg_index i where i.indrelid = %s and i.indisunique and i.indisvalid"
        " and (to_jsonb(i) ->> 'indnullsnotdistinct')::boolean and"
        " (select array_agg(a.attname::text order by a.attname::text) from pg_catalog.pg_attribute a"
        "  where a.attrelid = i.indrelid and a.attnum = any((i.indkey::int2[])[0:i.indnkeyatts - 1]))"
        " = (select array_agg(k order by k) from unnest(%s::text[]) as k))",
        [oid, list(spec.key)],
    ).fetchone()
    return bool(row and row[0])
