"""The outbox: is it installed, current, published, and does it support catch-up?"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from bridge.doctor.check import Check, kind_of, ok
from bridge.doctor.grants import grants, may
from bridge.doctor.reach import place
from bridge.doctor.xids import is_partitioned, xids
from bridge.postgres.catalog import hidden_rows
from bridge.postgres.outbox import Outbox
from bridge.postgres.own_outbox import outbox_findings
from bridge.postgres.publication import publication_identity
from bridge.postgres.schema import migrations, publication_sql, published
from bridge.postgres.versions import newer
from bridge.stream.renumber import numbered
from bridge.stream.spec import StreamSpec


def outbox(source: psycopg.Connection, plan: StreamSpec, *, ingress: bool) -> Iterator[Check]:
    """The schema, the publication and the grants. Stops if the outbox does not exist."""
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
            f"the outbox is not installed here: no {', '.join(missing)} (or no privilege to see it)",
            f"correct source.table, or create {table}" if own else again if torn else "bridge install",
            "config" if own else "command",
        )
        return
    right = list(grants(source, plan.outbox, ingress=ingress, entities=_keeps_entities(source, plan)))
    yield from right
    if any(one.fix.startswith("grant usage") for one in right):
        return  # nothing else can be asked before
    hiding = hidden_rows(source, _tables(plan.outbox))
    for found in hiding:
        yield Check("error", "source", found.reason, found.message, found.fix, kind_of(found.fix))
    if hiding:
        return  # what they hide would be told wrongly
    yield from _migrations(source)
    if plan.outbox != Outbox():
        yield from _own(source, plan.outbox)
        wanted = None if plan.capture == "poll" else plan.publication
        for one in outbox_findings(source, plan.outbox, wanted):
            yield Check(one.level, "source", one.check, one.message, one.fix, kind_of(one.fix))
    if not any(one.check == "privilege_missing" for one in right):  # what follows reads rows
        yield from xids(source, plan)
        if numbered(source, plan.outbox):
            yield from _sequence(source, plan.outbox)
    if plan.capture != "poll":
        yield from _publication(source, plan, table)


def _tables(outbox: Outbox) -> list[tuple[str, str]]:
    """The outbox and the registry; those that this version of the schema does not have are left out."""
    names = ("stream", "pruned", "migration", "suppressed", "webhook_delivery", "entity", "origin", "relay")
    return [(outbox.schema, outbox.table), *(("outbox", name) for name in names)]


def _keeps_entities(source: psycopg.Connection, plan: StreamSpec) -> bool:
    """If events maintain entities, does their table exist? If it does not, the check of the migrations reports it."""
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
    elif (later := newer(source, "source")) is not None:
        yield Check("error", "source", later.reason, later.message, later.fix, "advice")
    else:
        yield ok("source", "outbox", f"installed, version {version}")


def _own(source: psycopg.Connection, outbox: Outbox) -> Iterator[Check]:
    """A customer's own outbox: the configured columns, and xid."""
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
            f"{outbox.schema}.{outbox.table} has no column {column!r}, which is configured as "
            f"source.columns.{field}",
            f"correct source.columns.{field}; the columns are: {', '.join(sorted(present))}",
            "config",
        )
    if outbox.has_xid and "seq" not in outbox.columns:
        yield Check(
            "error",
            "source",
            "seq_missing",
            "source.columns has xid but no seq, which catch-up needs to keep the order",
            f"alter table {table} add column seq bigint generated always as identity;\n"
            "-- (it rewrites the table), then source.columns.seq: seq",
            "advice",
        )
    if not outbox.has_xid:
        name = f"{outbox.schema}.{outbox.table}"
        moves = is_partitioned(source, outbox)
        add = f"alter table {table} add column seq bigint generated always as identity;\n"
        seq = "" if "seq" in outbox.columns else add
        yield Check(
            "error" if moves else "warn",
            "source",
            "xid_missing",
            f"{name} has no xid column and is partitioned: a row that moves between partitions would come again"
            if moves
            else f"{name} has no xid column: it works with a slot only, and "
            "the bridge cannot catch up after a lost slot",
            f"{seq}alter table {table} add column xid xid8 not null default pg_current_xact_id();\n"
            f"create index on {table} (xid, seq);\n"
            "-- (rows from before get this transaction's xid), then name them in\n"
            "-- source.columns (xid: xid, seq: seq) and start the bridge while its slot is there\n"
            '-- (docs/operations.md, "Add xid to an outbox of your own")',
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
            f"publication {plan.publication} publishes {tables}; it should publish every row of {table}"
            + (" alone. The bridge streams, and the server decodes more than it needs" if streams else ""),
            f"drop publication {name};\n{make}",
            "sql",
        )
    elif publishes != "insert":
        yield Check(
            "error" if "insert" not in publishes else "warn",
            "source",
            "publication",
            f"publication {plan.publication} publishes {publishes or 'nothing'}; it should "
            "publish insert only",
            f"alter publication {name} set (publish = 'insert');",
            "sql",
        )
    else:
        yield ok("source", "publication", f"{plan.publication} publishes the inserts of {table}")


def installed(source: psycopg.Connection) -> bool:
    """Does the registry exist, and may we read it?"""
    return may(
        source,
        "select has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select')"
        " from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname = 'outbox' and c.relname = 'stream'",
        [],
    )
