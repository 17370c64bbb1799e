"""What the role may do on a target: the columns, and what an INSERT runs besides (defaults, checks, triggers).

Foreign keys need nothing: the server checks them as the table's owner. Nor do partitions: rows that come through their
parent need rights on the parent alone. What the catalog says is asked first, because it has the GRANT; then the server
itself, which plans the very statement.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import psycopg
from psycopg import pq

from bridge.planning.plan import TableShape
from bridge.planning.spec import TableSpec
from bridge.postgres.target_rules import PARTS, SEQUENCES, Finding, Lack, mapped, place, quoted
from bridge.postgres.triggers import body_findings, trigger_findings
from bridge.postgres.write import compile_write

_MISSING = "privilege_missing"
_ALWAYS = ("event_id", "payload", "occurred_at", "idempotency_key")
"""Columns that the default mapping fills, if they are there, whatever an event has."""


@dataclass(frozen=True, slots=True)
class Right:
    """One table's rights are asked for this role. oid: of the table."""

    connection: psycopg.Connection
    oid: int
    role: str
    where: str


def right_findings(
    connection: psycopg.Connection,
    oid: int,
    shape: TableShape,
    spec: TableSpec,
    nulls: Mapping[str, Lack],
) -> Iterator[Finding]:
    """nulls: the columns of which a contract speaks."""
    [role] = connection.execute("select quote_ident(current_user)").fetchone() or ("",)
    asked = Right(connection, oid, role, place(shape, spec))
    names = [name for name in mapped(shape, spec) if name in shape.columns]
    sure = _written(shape, spec, nulls)
    optional = [name for name in sure if nulls.get(name)]  # absent, it has its default
    left_out = [name for name in shape.columns if name not in sure or name in optional]
    known = spec.columns is not None or bool(nulls)
    yield from _columns(asked, shape, spec, names, sure)
    yield from _types(asked, sure)
    yield from _sequences(asked, [name for name in sure if name not in optional], certain=known)
    yield from _functions(asked, left_out, certain=known)
    yield from trigger_findings(connection, oid, role, asked.where, updates=spec.mode == "upsert")


def _written(shape: TableShape, spec: TableSpec, nulls: Mapping[str, Lack]) -> list[str]:
    """The columns that are written for certain: under the default mapping those that a contract knows."""
    always = {*_ALWAYS, *nulls, *spec.key, spec.version_column}
    names = [name for name in mapped(shape, spec) if name in shape.columns]
    return names if spec.columns is not None else [name for name in names if name in always]


# -- the table's own ------------------------------------------------------------------------------------


def _columns(
    asked: Right, shape: TableShape, spec: TableSpec, names: Sequence[str], sure: Sequence[str]
) -> Iterator[Finding]:
    """Column by column: a grant on the columns that are written is enough. sure: those that every event fills."""
    key = [name for name in spec.key if name in shape.columns]
    wanted = {"insert": names}
    others = [name for name in names if name not in key]
    if spec.mode == "upsert" and key:
        wanted["update"] = others
    if key:  # the key is compared, and an upsert reads what it writes: `set v = excluded.v`
        wanted["select"] = [*key, *(others if spec.mode == "upsert" else [])]
    table = quoted(shape.schema, shape.table)
    for privilege, columns in wanted.items():
        row = asked.connection.execute(
            "select array_agg(c) filter (where not has_column_privilege(%(oid)s::oid, c, %(privilege)s)),"
            " has_any_column_privilege(%(oid)s::oid, %(privilege)s) from unnest(%(columns)s::text[]) as c",
            {"oid": asked.oid, "privilege": privilege, "columns": columns},
        ).fetchone()
        lacking, some = row or (None, True)
        if not lacking:
            continue
        certain = not some or any(name in sure for name in lacking)
        if certain and some:
            lacking = [name for name in lacking if name in sure]
        if len(lacking) == len(columns) and not some:
            which, what = "", ""
        else:
            which = f" ({', '.join(map(quoted, lacking))})"
            what = f" ({', '.join(lacking)})"
        event = "" if certain else ": an event with a field of that name would stop the stream"
        yield Finding(
            _MISSING,
            f"role {asked.role} lacks {privilege}{what} on {shape.schema}.{shape.table}{event}",
            f"grant {privilege}{which} on {table} to {asked.role};",
            "error" if certain else "warn",
        )


def _types(asked: Right, columns: Sequence[str]) -> Iterator[Finding]:
    """A value is cast to its column's type by name. What is inside a domain or an array has no name there."""
    rows = asked.connection.execute(
        "select quote_ident(n.nspname), string_agg(a.attname, ', ' order by a.attnum)"
        " from pg_catalog.pg_attribute a join pg_catalog.pg_type t on t.oid = a.atttypid"
        " join pg_catalog.pg_namespace n on n.oid = t.typnamespace"
        " where a.attrelid = %s and a.attname = any(%s::text[]) and not has_schema_privilege(n.oid, 'usage')"
        " group by 1",
        [asked.oid, list(columns)],
    ).fetchall()
    for schema, names in rows:
        yield Finding(
            _MISSING,
            f"{asked.where}: role {asked.role} may not look into schema {schema}, which has the type of {names}",
            f"grant usage on schema {schema} to {asked.role};",
        )


def _sequences(asked: Right, given: Sequence[str], *, certain: bool) -> Iterator[Finding]:
    """Of columns that are not given. An identity column needs no right on its own."""
    values = {"table": asked.oid, "given": list(given)}
    for name, column, unlogged, may in asked.connection.execute(SEQUENCES.encode(), values).fetchall():
        if not may:
            yield Finding(
                _MISSING,
                f"{asked.where}: role {asked.role} may not use sequence {name}, the default of column {column!r}",
                f"grant usage on sequence {name} to {asked.role};",
                "error" if certain else "warn",
            )
        if unlogged:
            yield Finding(
                "table_unlogged",
                f"{asked.where}: sequence {name}, the default of column {column!r}, is UNLOGGED: after a crash of the "
                "server it begins again",
                f"alter sequence {name} set logged;",
                "error" if certain else "warn",
                halts=False,
            )


_FUNCTIONS = f"""{PARTS}, base (oid) as (
        select a.atttypid from pg_catalog.pg_attribute a
            where a.attrelid = any(%(tables)s::oid[]) and a.attnum > 0 and not a.attisdropped
        union
        select t.typbasetype from base join pg_catalog.pg_type t on t.oid = base.oid where t.typtype = 'd'
    ), expression (classid, objid, what, bare, level) as (
        select 'pg_catalog.pg_attrdef'::regclass, f.oid,
            case when a.attgenerated = '' then 'the default of column ' else 'the generated column ' end || a.attname,
            a.attgenerated = '' and pg_catalog.pg_get_expr(f.adbin, f.adrelid) ~ '^[^ ()]+\\([^()]*\\)$',
            case when a.attgenerated = '' and not %(certain)s then 'warn' else 'error' end
        from pg_catalog.pg_attrdef f
            join pg_catalog.pg_attribute a on a.attrelid = f.adrelid and a.attnum = f.adnum
        where f.adrelid = any(%(tables)s::oid[]) and (
            a.attgenerated = 's' or (a.attgenerated = '' and a.attname = any(%(columns)s::text[])))
        union all
        select 'pg_catalog.pg_constraint'::regclass, k.oid, 'constraint ' || k.conname, false,
            case when k.conrelid = 0 or k.conrelid = any(%(tables)s::oid[]) then 'error' else 'warn' end
        from pg_catalog.pg_constraint k
        where k.contype = 'c' and coalesce((to_jsonb(k) ->> 'conenforced')::boolean, true)
            and (k.conrelid in (select oid from part) or k.contypid in (select oid from base))
        union all
        select 'pg_catalog.pg_class'::regclass, i.indexrelid, 'index ' || c.relname, false,
            case when i.indrelid = any(%(tables)s::oid[]) then 'error' else 'warn' end
        from pg_catalog.pg_index i join pg_catalog.pg_class c on c.oid = i.indexrelid
        where i.indrelid in (select oid from part) and (i.indexprs is not null or i.indpred is not null)
        union all
        select 'pg_catalog.pg_class'::regclass, p.partrelid, 'the partition key', false,
            case when p.partrelid = any(%(tables)s::oid[]) then 'error' else 'warn' end
        from pg_catalog.pg_partitioned_table p where p.partrelid in (select oid from part)
        union all  -- before PostgreSQL 15 the column depends on its functions, not its expression
        select distinct 'pg_catalog.pg_class'::regclass, a.attrelid, 'a generated column', false, 'error'
        from pg_catalog.pg_attribute a where a.attrelid = any(%(tables)s::oid[]) and a.attgenerated = 's'
        union all
        select 'pg_catalog.pg_trigger'::regclass, g.oid, 'the condition of trigger ' || g.tgname, false,
            case when g.tgrelid = any(%(tables)s::oid[]) and g.tgtype & 4 <> 0 then 'error' else 'warn' end
        from pg_catalog.pg_trigger g where g.tgrelid in (select oid from part) and not g.tgisinternal
            and g.tgenabled in ('O', 'A') and g.tgtype & 20 <> 0 and g.tgqual is not null
    )
    select p.oid, p.oid::regprocedure::text, min(e.what), min(e.level),
        bool_or(e.bare and e.level = 'error'), has_function_privilege(p.oid, 'execute')
    from expression e join pg_catalog.pg_depend d on d.classid = e.classid and d.objid = e.objid
    left join pg_catalog.pg_operator o on d.refclassid = 'pg_catalog.pg_operator'::regclass and o.oid = d.refobjid
    join pg_catalog.pg_proc p on p.oid = case when d.refclassid = 'pg_catalog.pg_proc'::regclass then d.refobjid
        else o.oprcode end
    left join pg_catalog.pg_trigger g on d.classid = 'pg_catalog.pg_trigger'::regclass and g.oid = d.objid
    where g.tgfoid is distinct from p.oid
    group by p.oid order by 2"""


def _functions(asked: Right, columns: Sequence[str], *, certain: bool) -> Iterator[Finding]:
    """Functions that an INSERT calls by itself: in defaults of `columns`, generated columns, checks of the table and of
    its domains, indexes, partition keys, conditions of triggers. A trigger's own function needs no right."""
    values = {"tables": [asked.oid], "columns": list(columns), "certain": certain}
    rows = asked.connection.execute(_FUNCTIONS.encode(), values).fetchall()
    for _, name, what, level, _, may in rows:
        if not may:
            yield Finding(
                _MISSING,
                f"{asked.where}: role {asked.role} may not execute {name}, which {what} calls",
                f"grant execute on function {name} to {asked.role};",
                level,
            )
    for oid, name, what, _, bare, may in rows:
        if may:
            told = f"{asked.where}: {what} calls {name}"
            yield from body_findings(asked.connection, oid, asked.role, told, always=bare)


# -- the server's own word ------------------------------------------------------------------------------


def refused(
    connection: psycopg.Connection, shape: TableShape, spec: TableSpec, nulls: Mapping[str, Lack]
) -> Iterator[Finding]:
    """What the server says to the statement that will run: it plans it, checks the rights and runs nothing. For what
    the catalog was not asked. Asked only where nothing else was found, outside of a transaction."""
    if connection.info.transaction_status != pq.TransactionStatus.IDLE or getattr(connection, "lent", False):
        return
    names = _written(shape, spec, nulls)
    if not names or not set(spec.key) <= set(names):
        return
    statement = b"explain " + compile_write(spec, shape, names, ["text"] * len(names))
    empty: list[list[str]] = [[] for _ in names]
    try:
        with closing(psycopg.RawCursor(connection)) as cursor:
            cursor.execute(statement, empty)
    except psycopg.Error as error:
        state = error.sqlstate or ""
        if state not in ("42501", "0A000"):
            return  # a lock, a timeout; or a name that another search_path has
        reason = _MISSING if state == "42501" else "target_structure"
        said = (
            f"{place(shape, spec)}: the server refuses the statement: {error.diag.message_primary} ({state})"
        )
        fix = (
            "grant the role what is denied"
            if reason == _MISSING
            else "change the table, or the mapping in bridge.yaml"
        )
        yield Finding(reason, said, fix)
