"""The outbox: is it installed, of this version, published, and one that can be caught up from."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from bridge.doctor.check import Check, ok
from bridge.doctor.grants import grants, may
from bridge.doctor.reach import place
from bridge.postgres.outbox import Outbox
from bridge.postgres.schema import migrations, publication_sql, published
from bridge.postgres.source import publication_identity
from bridge.stream.renumber import numbered
from bridge.stream.spec import StreamSpec


def outbox(source: psycopg.Connection, plan: StreamSpec, *, ingress: bool) -> Iterator[Check]:
    """The schema, the publication and the grants. Nothing else is asked where the outbox is not there."""
    table = f"{plan.outbox.schema}.{plan.outbox.table}"
    missing = [name for name in (table, "outbox.stream", "outbox.pruned") if not _exists(source, name)]
    if missing:
        own = table in missing and table != "outbox.event"
        torn = _exists(source, "outbox.migration")  # install takes what it applied for done
        again = f'bridge schema source --publication {plan.publication} | psql "{place(plan.source_dsn)}"'
        yield Check(
            "error",
            "source",
            "outbox",
            f"the outbox is not installed here: no {', '.join(missing)} (or no right to see it)",
            f"correct source.table, or create {table}" if own else again if torn else "bridge install",
            "config" if own else "command",
        )
        return
    right = list(grants(source, plan.outbox, ingress=ingress, entities=_keeps_entities(source, plan)))
    yield from right
    if any(one.fix.startswith("grant usage") for one in right):
        return  # nothing else can be asked before
    yield from _migrations(source)
    if plan.outbox != Outbox():
        yield from _own(source, plan.outbox)
    if numbered(source, plan.outbox):
        yield from _sequence(source, plan.outbox)
    if plan.capture != "poll":
        yield from _publication(source, plan, table)


def _keeps_entities(source: psycopg.Connection, plan: StreamSpec) -> bool:
    """Do events keep entities, and is there a table for them? Where there is none, the migrations say so."""
    steps = [step for pipeline in plan.pipelines for step in pipeline.steps]
    kept = any(step.keeps or (step.lookup is not None and step.lookup.kept) for step in steps)
    return kept and _exists(source, "outbox.entity")


def _exists(source: psycopg.Connection, name: str) -> bool:
    schema, _, table = name.rpartition(".")
    row = source.execute(
        "select exists (select from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname = %s and c.relname = %s)",
        [schema, table],
    ).fetchone()
    return bool(row and row[0])


def _migrations(source: psycopg.Connection) -> Iterator[Check]:
    newest = max(each.version for each in migrations("source"))
    try:
        row = source.execute("select max(version) from outbox.migration").fetchone()
    except psycopg.errors.InsufficientPrivilege:
        return  # grants() says so
    version = row[0] if row and row[0] is not None else 0
    if version < newest:
        yield Check(
            "error",
            "source",
            "migrations",
            f"the outbox is at version {version}, this bridge needs {newest}",
            "bridge install",
            "command",
        )
    elif version > newest:
        yield Check(
            "error",
            "source",
            "migrations",
            f"the outbox is at version {version}, from a newer bridge than this ({newest})",
            "pip install --upgrade outbox-bridge",
            "advice",
        )
    else:
        yield ok("source", "outbox", f"installed, version {version}")


def _own(source: psycopg.Connection, outbox: Outbox) -> Iterator[Check]:
    """An outbox of the customer's own: the columns that were named, and xid."""
    rows = source.execute(
        "select a.attname from pg_catalog.pg_attribute a join pg_catalog.pg_class c on c.oid = a.attrelid"
        " join pg_catalog.pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname = %s and c.relname = %s and a.attnum > 0 and not a.attisdropped",
        [outbox.schema, outbox.table],
    ).fetchall()
    present = {row[0] for row in rows}
    lacking = {field: column for field, column in outbox.columns.items() if column not in present}
    table = outbox.name.as_string()
    for field, column in lacking.items():
        yield Check(
            "error",
            "source",
            "column_missing",
            f"{outbox.schema}.{outbox.table} has no column {column!r}, which source.columns.{field} names",
            f"correct source.columns.{field}; there are: {', '.join(sorted(present))}",
            "config",
        )
    if outbox.has_xid and "seq" not in outbox.columns:
        yield Check(
            "error",
            "source",
            "seq_missing",
            "source.columns names an xid but no seq, by which catch-up keeps the order",
            f"alter table {table} add column seq bigint generated always as identity;\n"
            "-- (it rewrites the table), then source.columns.seq: seq",
            "advice",
        )
    if not outbox.has_xid:
        yield Check(
            "warn",
            "source",
            "xid_missing",
            f"{outbox.schema}.{outbox.table} has no xid column: it is slot-only, and a lost slot cannot be caught up",
            f"alter table {table} add column xid xid8;\n"
            f"alter table {table} alter column xid set default pg_current_xact_id();\n"
            "-- (neither rewrites the table), then source.columns.xid: xid, and seq: an identity column",
            "sql",
        )


def _sequence(source: psycopg.Connection, outbox: Outbox) -> Iterator[Check]:
    """Is the sequence above its newest rows? After a move without it, a newer row would have a lower seq."""
    name, column = outbox.name.as_string(), outbox.columns["seq"]
    query = sql.SQL(
        "select (select max({seq}) from (select {seq} from {table} order by {xid} desc limit 1000) as newest),"
        " pg_sequence_last_value(pg_get_serial_sequence(%s, %s)::regclass)"
    ).format(seq=outbox.column("seq"), xid=outbox.column("xid"), table=outbox.name)
    try:
        newest, last = source.execute(query, [name, column]).fetchone() or (None, None)
    except psycopg.errors.InsufficientPrivilege:
        return
    if newest is not None and last is not None and last < newest:
        quoted = sql.Identifier(column).as_string()
        yield Check(
            "error",
            "source",
            "seq_behind",
            f"the sequence of {name}.{quoted} is at {last}, below rows up to {newest}: newer events would count as "
            "older ones",
            f"select setval(pg_get_serial_sequence('{name}', '{column}'), (select max({quoted}) from {name}));",
            "sql",
        )


def _publication(source: psycopg.Connection, plan: StreamSpec, table: str) -> Iterator[Check]:
    with source.cursor(row_factory=tuple_row) as cursor:
        found = published(cursor, plan.publication, table)
    make = publication_sql(plan.publication, table)
    if found is None:
        fix = "bridge install"
        yield Check(
            "error", "source", "publication", f"publication {plan.publication} does not exist", fix, "command"
        )
        return
    publishes, tables, fits = found
    name = sql.Identifier(plan.publication).as_string()
    if not fits:
        # What the bridge itself asks at its start: where it streams, this is no error.
        row = source.execute(
            f"select {publication_identity(source.info.server_version)} is not null",
            {"publication": plan.publication, "table": plan.outbox.name.as_string()},
        ).fetchone()
        streams = bool(row and row[0])
        yield Check(
            "warn" if streams else "error",
            "source",
            "publication",
            f"publication {plan.publication} is for {tables}; wanted: every row of {table}"
            + (" alone. The bridge streams, and the server decodes more than it needs" if streams else ""),
            f"drop publication {name};\n{make}",
            "sql",
        )
    elif publishes != "insert":
        yield Check(
            "error" if "insert" not in publishes else "warn",
            "source",
            "publication",
            f"publication {plan.publication} publishes {publishes or 'nothing'}; wanted: insert alone",
            f"alter publication {name} set (publish = 'insert');",
            "sql",
        )
    else:
        yield ok("source", "publication", f"{plan.publication} publishes the inserts of {table}")


def installed(source: psycopg.Connection) -> bool:
    """Is the registry there, and may we read it."""
    return may(
        source,
        "select has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select')"
        " from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname = 'outbox' and c.relname = 'stream'",
        [],
    )
