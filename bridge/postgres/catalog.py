"""The target as its catalog tells it: are the ledger and the tables there, do they fit, what may the role do.

Asked when a session starts and again when a statement fails for a reason of structure. Every finding carries the
SQL that fixes it; the bridge runs none of it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from bridge.planning.plan import Column, TableShape
from bridge.planning.spec import TableSpec
from bridge.postgres.assignment import identity_sql
from bridge.postgres.target_rights import refused, right_findings
from bridge.postgres.target_rules import (
    Finding,
    Lack,
    mapped,
    null_findings,
    version_findings,
    volatile,
    zone_findings,
)
from bridge.postgres.target_rules import quoted as _quoted
from bridge.postgres.versions import newer

LEDGER_TABLES = ("checkpoint", "applied", "dead_letter", "delivery", "sink_pause")
LATER_TABLES = ("sink", "sink_hold", "sample", "audit")
"""Of later versions: the grants of a ledger from before lack them. A careful owner lets nobody change what is in audit.
"""


def ledger_findings(connection: psycopg.Connection) -> list[Finding]:
    """Does the ledger exist, and may this role use it?"""
    missing, refused = _unusable(connection, LEDGER_TABLES)
    if missing:
        return [
            Finding(
                "ledger_schema_missing",
                f"the ledger is not in this database: no {', '.join(missing)}",
                "bridge schema target | psql <target>   (as the owner of the database)",
            )
        ]
    if refused:
        return [_not_granted(connection, refused)]
    later = newer(connection, "target")
    if later is not None:
        return [later]
    oids = connection.execute(
        "select array_agg(c.oid) from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname = 'bridge' and c.relname = any(%s)",
        [list(LEDGER_TABLES)],
    ).fetchone()
    return list(volatile(connection, oids[0] if oids else [], "the ledger", halts=True))


def later_findings(connection: psycopg.Connection) -> list[Finding]:
    """May this role use the tables that only sinks and the console need? Where the ledger has them."""
    _, refused = _unusable(connection, LATER_TABLES)
    return [_not_granted(connection, refused)] if refused else []


def _unusable(connection: psycopg.Connection, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those of the ledger's tables that are not there, and those that this role may not use."""
    # by oid: to_regclass() fails in a schema that the role may not use
    usable: dict[str, bool] = dict(
        connection.execute(
            "select c.relname, has_schema_privilege(n.oid, 'usage') and"
            " has_table_privilege(c.oid, 'select') and has_table_privilege(c.oid, 'insert') and"
            " (c.relname = 'audit' or"
            "  has_table_privilege(c.oid, 'update') and has_table_privilege(c.oid, 'delete'))"
            " from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace"
            " where n.nspname = 'bridge' and c.relname = any(%s)",
            [list(names)],
        ).fetchall()
    )
    missing = [f"bridge.{name}" for name in names if name not in usable]
    refused = [f"bridge.{name}" for name in names if not usable.get(name, True)]
    return missing, refused


def _not_granted(connection: psycopg.Connection, refused: Sequence[str]) -> Finding:
    (role,) = connection.execute("select quote_ident(current_user)").fetchone() or ("",)
    return Finding(
        "privilege_missing",
        f"role {role} may not use {', '.join(refused)}",
        f"grant usage on schema bridge to {role}; "
        f"grant select, insert, update, delete on all tables in schema bridge to {role};",
    )


def table_shape(
    connection: psycopg.Connection,
    spec: TableSpec,
    kinds: Mapping[str, str],
    nulls: Mapping[str, Lack] | None = None,
) -> tuple[TableShape | None, list[Finding]]:
    """The table of a destination and its findings, errors first. kinds: column -> contract type ("number", "object",
    ...) for columns mapped from one field. nulls: column -> may the contract's field be absent or null?"""
    schema, table = spec.schema, spec.table  # compared as text: as `name`, 64 bytes would be cut to 63
    row = connection.execute(
        "select c.oid, c.relkind, row_security_active(c.oid), quote_ident(current_user),"
        " has_schema_privilege(n.oid, 'usage') from pg_catalog.pg_class c"
        " join pg_catalog.pg_namespace n on n.oid = c.relnamespace where n.nspname = %s::text and c.relname = %s::text",
        [schema, table],
    ).fetchone()
    if row is None:
        return None, [
            Finding(
                "table_missing",
                f"destination {spec.name}: table {schema}.{table} does not exist",
                "create it (the bridge runs no DDL on a target; bridge doctor prints a CREATE TABLE for the mapping); "
                "delivery goes on by itself then",
            )
        ]
    oid, relkind, filtered, role, usage = row
    quoted = _quoted(schema, table)
    if relkind not in ("r", "p"):
        return None, [Finding("table_kind", f"{schema}.{table} is not a table", "name a table")]
    if not usage:
        return None, [
            Finding(
                "privilege_missing",
                f"role {role} may not look into schema {schema}",
                f"grant usage on schema {_quoted(schema)} to {role};",
            )
        ]
    shape = TableShape(schema, table, _columns(connection, oid), _identity(connection, schema, table))
    findings = [*_column_findings(shape, spec, kinds), *_key_findings(connection, oid, shape, spec)]
    findings += volatile(connection, [oid], f"destination {spec.name}")
    findings += version_findings(connection, oid, shape, spec, kinds)
    findings += zone_findings(shape, spec, kinds)
    findings += null_findings(connection, oid, shape, spec, nulls or {})
    findings += right_findings(connection, oid, shape, spec, nulls or {})
    if filtered:
        findings.append(
            Finding(
                "row_security",
                f"row-level security of {schema}.{table} applies to role {role}: rows could be hidden from it",
                f"alter role {role} bypassrls;   or: alter table {quoted} disable row level security;",
            )
        )
    if not any(finding.level == "error" for finding in findings):
        findings += refused(connection, shape, spec, nulls or {})
    return shape, sorted(findings, key=lambda finding: finding.level != "error")


def hidden_rows(connection: psycopg.Connection, tables: Sequence[tuple[str, str]]) -> list[Finding]:
    """The tables, (schema, name), whose row-level security applies to our role; missing ones are left out. Behind a
    view that is asked by a query without rows, which row_security = off makes fail."""
    rows = connection.execute(
        "select n.nspname, c.relname, row_security_active(c.oid), c.relkind = 'v', quote_ident(current_user)"
        " from unnest(%s::text[], %s::text[]) as t(schema, name)"
        " join pg_catalog.pg_namespace n on n.nspname::text = t.schema"
        " join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname::text = t.name",
        [[schema for schema, _ in tables], [name for _, name in tables]],
    ).fetchall()
    findings = []
    for schema, name, filtered, view, role in rows:
        quoted = _quoted(schema, name)
        if filtered:
            what = (
                f"row-level security of {schema}.{name} applies to role {role}: rows could be hidden from it"
            )
            fix = f"alter role {role} bypassrls;   or: alter table {quoted} disable row level security;"
            findings.append(Finding("row_security", what, fix))
        elif view and (refused := _security_behind(connection, quoted)) is not None:
            what = f"row-level security behind the view {schema}.{name} could hide rows ({refused})"
            fix = "give the view to an owner to whom its tables show every row   or: disable their row level security"
            findings.append(Finding("row_security", what, fix))
    return findings


def _security_behind(connection: psycopg.Connection, view: str) -> str | None:
    try:
        connection.execute(f"select from {view} limit 0".encode())
    except psycopg.errors.InsufficientPrivilege as error:
        return error.diag.message_primary if hides_rows(error) else None
    return None


HIDDEN = "bridge doctor names the table and both ways out: bypassrls for the role, or no row-level security"
"""The fix for a statement of which hides_rows() is true."""


def hides_rows(error: psycopg.Error) -> bool:
    """Did row_security = off make this statement fail? Its SQLSTATE is that of every missing privilege, and its
    message may be in any language."""
    return error.diag.source_function == "check_enable_rls"


# Follows a column's type through its domains to the base type, and an array's on to its element.
_COLUMNS = """
    with recursive chain as (
        select a.attnum, 0 as depth, a.atttypid as oid
        from pg_catalog.pg_attribute a where a.attrelid = %(table)s and a.attnum > 0 and not a.attisdropped
        union all
        select c.attnum, c.depth + 1, case when t.typtype = 'd' then t.typbasetype else t.typelem end
        from chain c join pg_catalog.pg_type t on t.oid = c.oid
        where t.typtype = 'd'
            or exists (select from pg_catalog.pg_type e where e.oid = t.typelem and e.typarray = t.oid)
    ), typed as (
        select c.attnum, c.depth, t.oid, t.typname, t.typcategory, t.typnotnull, t.typtype = 'd' as is_domain,
               t.typtypmod, t.typdelim, n.nspname
        from chain c join pg_catalog.pg_type t on t.oid = c.oid
        join pg_catalog.pg_namespace n on n.oid = t.typnamespace
    ), base as (
        select distinct on (attnum) * from typed where not is_domain order by attnum, depth
    ), named as ( -- a domain without a modifier by its own name: the base's schema may be closed to the role
        select distinct on (t.attnum) t.* from typed t join base b on b.attnum = t.attnum and t.depth <= b.depth
        where t.depth = b.depth or not exists (
            select from typed d where d.attnum = t.attnum and d.depth < b.depth and d.typtypmod <> -1)
        order by t.attnum, t.depth
    ), element as (
        select distinct on (e.attnum) e.* from typed e join base b on b.attnum = e.attnum and e.depth > b.depth
        where not e.is_domain order by e.attnum, e.depth
    )
    select a.attname, format_type(a.atttypid, -1),
        case when b.typname in ('json', 'jsonb') then 'json' when b.typname = 'bytea' then 'bytea'
            when e.oid is not null then 'array' when b.typcategory = 'S' then 'text' else 'other' end,
        a.attnotnull or exists (
            select from typed d where d.attnum = a.attnum and d.depth < b.depth and d.typnotnull),
        a.atthasdef or a.attidentity <> '', a.attgenerated = '' and a.attidentity <> 'a',
        format_type(a.atttypid, a.atttypmod), b.typname, format('%%I.%%I', m.nspname, m.typname),
        coalesce(e.typname, ''), coalesce(e.typdelim, ',')::text,
        exists (select from pg_catalog.pg_cast k
            where k.castsource = 'text'::regtype and k.casttarget = b.oid and k.castmethod = 'f')
    from pg_catalog.pg_attribute a join base b on b.attnum = a.attnum
    join named m on m.attnum = a.attnum left join element e on e.attnum = a.attnum
    where a.attrelid = %(table)s order by a.attnum"""


def _columns(connection: psycopg.Connection, oid: int) -> dict[str, Column]:
    rows = connection.execute(_COLUMNS, {"table": oid}).fetchall()
    return {row[0]: Column(*row) for row in rows}


def _identity(connection: psycopg.Connection, schema: str, table: str) -> str:
    """As the statements that write the table compare it."""
    row = connection.execute(sql.SQL("select {}").format(identity_sql(schema, table))).fetchone()
    return str(row[0]) if row else ""


def _column_findings(shape: TableShape, spec: TableSpec, kinds: Mapping[str, str]) -> Iterable[Finding]:
    where = f"destination {spec.name}: {shape.schema}.{shape.table}"
    quoted = _quoted(shape.schema, shape.table)
    names = mapped(shape, spec)
    for name in dict.fromkeys([*names, *spec.key]):
        column = shape.columns.get(name)
        if column is None:
            near = difflib.get_close_matches(name, shape.columns, 1)
            guess = f"; did you mean {near[0]!r}?" if near else ""
            yield Finding(
                "column_missing",
                f"{where} has no column {name!r}{guess}",
                f"alter table {quoted} add column {_quoted(name)} <type>;   or take it out of bridge.yaml",
            )
        elif not column.writable:
            yield Finding(
                "column_generated",
                f"{where}: column {name!r} is generated always and cannot be written",
                "remove it from bridge.yaml",
            )
        elif (problem := _misfit(column, kinds.get(name))) is not None:
            yield Finding(
                "column_type",
                f"{where}: column {name!r} is {column.type_sql}, but the contract says {problem}",
                "map another field, or change the column's type",
            )
    if spec.columns is not None:
        for column in shape.columns.values():
            if column.not_null and not column.has_default and column.writable and column.name not in names:
                yield Finding(
                    "column_required",
                    f"{where}: column {column.name!r} is NOT NULL, has no default and is not mapped",
                    f"map it in bridge.yaml, or: alter table {quoted} "
                    f"alter column {_quoted(column.name)} drop not null;",
                )


_NUMBERS = ("smallint", "integer", "bigint", "numeric", "real", "double precision")


def _misfit(column: Column, kind: str | None) -> str | None:
    """A contract type that this column's type can never hold."""
    if kind is None or column.kind in ("text", "json"):
        return None
    numeric = column.type_sql in _NUMBERS
    never = (
        (kind == "boolean" and column.type_sql != "boolean")
        or (
            kind in ("number", "integer")
            and not numeric
            and column.type_sql not in ("money", "oid", "boolean")
        )
        or (kind == "object" and column.kind != "json" and column.type_sql != "hstore")
        or (kind == "array" and column.kind != "array")
    )
    return kind if never and not (kind != "boolean" and "." in column.type_sql) else None


def _key_findings(
    connection: psycopg.Connection, oid: int, shape: TableShape, spec: TableSpec
) -> Iterable[Finding]:
    if not spec.key:
        return
    row = connection.execute(
        "select exists (select from pg_catalog.pg_index i where i.indrelid = %s and i.indisunique"
        " and i.indisvalid and i.indimmediate and i.indpred is null and i.indexprs is null and"
        " (select array_agg(a.attname::text order by a.attname::text) from pg_catalog.pg_attribute a"
        "  where a.attrelid = i.indrelid and a.attnum = any((i.indkey::int2[])[0:i.indnkeyatts - 1]))"
        " = (select array_agg(k order by k) from unnest(%s::text[]) as k))",
        [oid, list(spec.key)],
    ).fetchone()
    if row is None or not row[0]:
        columns = ", ".join(map(_quoted, spec.key))
        yield Finding(
            "key_not_unique",
            f"destination {spec.name}: no unique index on exactly ({', '.join(spec.key)}) "
            f"of {shape.schema}.{shape.table}",
            f"create unique index concurrently on {_quoted(shape.schema, shape.table)} ({columns});",
        )


@dataclass(frozen=True, slots=True)
class Powers:
    """Of the current role: its name, whether it is a superuser or has BYPASSRLS, and (table, new owner) of each table
    it owns: the database's owner, or postgres where that is the role itself. Names quoted as in SQL."""

    role: str
    superuser: bool
    bypasses: bool
    owned: tuple[tuple[str, str], ...] = ()


def powers(connection: psycopg.Connection, tables: Sequence[tuple[str, str]] = ()) -> Powers:
    """Read from the catalog. tables: (schema, table) that the role should not own; missing tables are left out."""
    row = connection.execute(
        "select quote_ident(rolname), rolsuper, rolbypassrls from pg_catalog.pg_roles where rolname = current_user"
    ).fetchone()
    role, superuser, bypasses = row or ("", False, False)
    owned = connection.execute(
        "select format('%%I.%%I', n.nspname, c.relname), case when d.datdba = c.relowner then 'postgres'"
        " else quote_ident(pg_get_userbyid(d.datdba)) end"
        " from unnest(%s::text[], %s::text[]) as t(schema, name)"
        " join pg_catalog.pg_namespace n on n.nspname = t.schema"
        " join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = t.name"
        " join pg_catalog.pg_database d on d.datname = current_database()"
        " where pg_has_role(current_user, c.relowner, 'usage')",
        [[schema for schema, _ in tables], [name for _, name in tables]],
    ).fetchall()
    return Powers(role, superuser, bypasses, tuple((table, owner) for table, owner in owned))


def excess_powers(connection: psycopg.Connection, tables: Sequence[tuple[str, str]] = ()) -> list[str]:
    """In words: superuser, BYPASSRLS, owner of one of `tables`, (schema, table)."""
    found = powers(connection, tables)
    if found.superuser:  # it may do everything else as well
        return [f"role {found.role} is a superuser"]
    words = []
    if found.bypasses:
        words.append(f"role {found.role} has BYPASSRLS")
    if found.owned:
        words.append(f"role {found.role} owns {', '.join(table for table, _ in found.owned)}")
    return words
