"""The source: settings, role, the outbox and what is granted on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from bridge.apply.stream_plan import StreamPlan
from bridge.doctor.check import Check, Level, ok
from bridge.doctor.reach import place
from bridge.errors import BridgeError
from bridge.postgres.outbox import Outbox
from bridge.postgres.schema import migrations, publication_sql, published

_RESTART = "-- then restart the server"


def settings(source: psycopg.Connection, plan: StreamPlan) -> Iterator[Check]:
    """What capture needs of the server. Under `auto` its lack is no error: polling takes over."""
    row = source.execute(
        "select pg_is_in_recovery(), current_setting('wal_level'), current_setting('synchronous_commit'),"
        " (select rolreplication or rolsuper from pg_catalog.pg_roles where rolname = current_user),"
        " quote_ident(current_user)"
    ).fetchone()
    recovery, level, commit, replication, role = row or (False, "", "", False, "")
    if recovery:
        yield Check(
            "error",
            "source",
            "primary",
            "this server is a standby: events are read from the primary",
            "name all hosts in the dsn and add target_session_attrs: read-write",
            "config",
        )
    if commit == "off":
        yield Check(
            "warn",
            "source",
            "synchronous_commit",
            "synchronous_commit is off: a crash of the server can take back events that it said were committed",
            "alter system set synchronous_commit = 'on';\nselect pg_reload_conf();",
            "sql",
        )
    else:
        yield ok("source", "synchronous_commit", f"synchronous_commit is {commit}")
    if plan.capture == "poll":
        yield ok("source", "capture", "capture is poll: no slot and no REPLICATION are needed")
        return
    lacking: Level = "error" if plan.capture == "slot" else "warn"
    if level != "logical":
        yield Check(
            lacking,
            "source",
            "wal_level",
            f"wal_level is {level}, and a slot needs logical (source.capture: poll does not)",
            f"alter system set wal_level = 'logical';\n{_RESTART}",
            "sql",
        )
    else:
        yield ok("source", "wal_level", "wal_level is logical")
    if not replication:
        yield Check(
            lacking,
            "source",
            "replication",
            f"role {role} has no REPLICATION attribute, and a slot needs it (source.capture: poll does not)",
            f"alter role {role} replication;",
            "sql",
        )
    else:
        yield ok("source", "replication", f"role {role} may use slots")


def free_slots(source: psycopg.Connection, wanted: Sequence[str]) -> Iterator[Check]:
    """Room for the slots that are not there yet. While one is replaced, the old one is dropped first."""
    row = source.execute(
        "select current_setting('max_replication_slots')::int, current_setting('max_wal_senders')::int,"
        " (select count(*) from pg_catalog.pg_replication_slots)::int,"
        " (select count(*) from pg_catalog.pg_stat_replication)::int,"
        " (select count(*) from pg_catalog.pg_replication_slots where slot_name = any(%s))::int,"
        " (select count(*) from pg_catalog.pg_replication_slots where slot_name = any(%s) and active)::int",
        [list(wanted), list(wanted)],
    ).fetchone()
    slots, senders, used_slots, used_senders, ours, reading = row or (0, 0, 0, 0, 0, 0)
    for name, limit, used, need in (
        ("max_replication_slots", slots, used_slots, len(wanted) - ours),
        ("max_wal_senders", senders, used_senders, len(wanted) - reading),
    ):
        if limit - used < need:
            yield Check(
                "error",
                "source",
                name,
                f"{name} is {limit}, {used} are in use, and the bridge needs {need} more",
                f"alter system set {name} = {used + need + 4};\n{_RESTART}",
                "sql",
            )
        else:
            yield ok("source", name, f"{limit - used} of {limit} free")


def outbox(source: psycopg.Connection, plan: StreamPlan, *, ingress: bool) -> Iterator[Check]:
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
    right = list(grants(source, plan.outbox, ingress=ingress))
    yield from right
    if any(one.fix.startswith("grant usage") for one in right):
        return  # nothing else can be asked before
    yield from _migrations(source)
    if plan.outbox != Outbox():
        yield from _own(source, plan.outbox)
    if plan.capture != "poll":
        yield from _publication(source, plan, table)


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


def _publication(source: psycopg.Connection, plan: StreamPlan, table: str) -> Iterator[Check]:
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
        yield Check(
            "error",
            "source",
            "publication",
            f"publication {plan.publication} is for {tables}; wanted: every row of {table}",
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


# (relation, privilege, columns: None is the whole table), for the outbox that install makes
_GRANTS: tuple[tuple[str, str, tuple[str, ...] | None], ...] = (
    ("outbox.event", "select", None),
    ("outbox.event", "delete", None),
    ("outbox.event", "update", ("payload", "headers")),
    ("outbox.stream", "select", None),
    ("outbox.stream", "insert", None),
    ("outbox.stream", "update", None),
    ("outbox.stream", "delete", None),
    ("outbox.pruned", "select", None),
    ("outbox.pruned", "update", None),
    ("outbox.migration", "select", None),
    ("outbox.suppressed", "select", None),
    ("outbox.suppressed", "delete", None),
    ("outbox.suppressed", "insert", None),
    ("outbox.suppressed", "update", ("count",)),
)


_INGRESS: tuple[tuple[str, str, tuple[str, ...] | None], ...] = (
    (
        "outbox.event",
        "insert",
        ("id", "type", "key", "payload", "idempotency_key", "headers", "occurred_at"),
    ),
    ("outbox.webhook_delivery", "select", None),
    ("outbox.webhook_delivery", "insert", None),
    ("outbox.webhook_delivery", "delete", None),
    ("outbox.webhook_delivery", "update", ("event_id",)),
)
_FIRST_ID = "outbox.first_id(text, text)"

_RIGHT = """
    select case when %s::text[] is null then has_table_privilege(c.oid, %s)
           else (select bool_and(has_column_privilege(c.oid, name, %s)) from unnest(%s::text[]) as name) end
    from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where n.nspname = %s and c.relname = %s"""

_EXECUTES = """
    select bool_and(has_function_privilege(p.oid, 'execute'))
    from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
    where n.nspname = 'outbox' and p.proname = 'first_id'"""


def grants(source: psycopg.Connection, outbox: Outbox, *, ingress: bool = False) -> Iterator[Check]:
    """Each right that is missing, with the GRANT. ingress: also those to put events in."""
    row = source.execute("select quote_ident(current_user)").fetchone()
    role = row[0] if row else ""
    table = f"{outbox.schema}.{outbox.table}"
    wanted = [*_GRANTS, *(_INGRESS if ingress else ())]
    if table != "outbox.event":  # of one of theirs we only read
        wanted = [(table, "select", None)] + [each for each in wanted if each[0] != "outbox.event"]
    missing = 0
    for schema in dict.fromkeys(("outbox", outbox.schema)):
        if not _may(source, "select has_schema_privilege(%s, 'usage')", [schema]):
            missing += 1
            yield _ungranted(f"look into schema {schema}", f'grant usage on schema "{schema}" to {role};')
    for relation, privilege, columns in wanted:
        quoted = sql.Identifier(*relation.split(".", 1)).as_string()
        named = list(columns) if columns else None
        if not _may(source, _RIGHT, [named, privilege, privilege, named, *relation.split(".", 1)]):
            missing += 1
            which = f" ({', '.join(columns)})" if columns else ""
            yield _ungranted(
                f"{privilege}{which} on {relation}", f"grant {privilege}{which} on {quoted} to {role};"
            )
    if ingress and not _may(source, _EXECUTES, []):
        missing += 1
        yield _ungranted("execute outbox.first_id", f"grant execute on function {_FIRST_ID} to {role};")
    if not missing:
        yield ok("source", "grants", f"role {role} has what it needs on the outbox and its registry")


def _may(source: psycopg.Connection, query: str, values: list[Any]) -> bool:
    row = source.execute(query.encode(), values).fetchone()
    return bool(row and row[0])


def _ungranted(what: str, grant: str) -> Check:
    return Check("error", "source", "privilege_missing", f"the bridge's role may not {what}", grant, "sql")


def history(
    source: psycopg.Connection,
    *,
    session: timedelta = timedelta(minutes=5),
    prepared: timedelta = timedelta(minutes=1),
) -> Iterator[Check]:
    """What is open for longer than this: vacuum waits for it, and so does a slot that is made.

    Since when a session of another role is in its transaction is for pg_read_all_stats to know; without it
    the age in transactions tells.
    """
    rows = source.execute(
        "select format('session %%s of %%s in database %%s (%%s)', pid, coalesce(usename, '?'),"
        " coalesce(datname, '?'), coalesce(nullif(application_name, ''), 'unnamed')),"
        " format('select pg_terminate_backend(%%s);', pid), xact_start"
        " from pg_catalog.pg_stat_activity where pid <> pg_backend_pid() and backend_type is distinct from 'walsender'"
        " and usesysid is not null and (backend_xid is not null or backend_xmin is not null)"
        " and (xact_start <= now() - %(session)s or (xact_start is null and greatest(age(backend_xid),"
        " age(backend_xmin)) >= case when %(session)s = interval '0' then 0 else 100000 end))"
        " union all select format('prepared transaction %%s in database %%s', gid, database),"
        " format('rollback prepared %%L;', gid), prepared"
        " from pg_catalog.pg_prepared_xacts where prepared <= now() - %(prepared)s",
        {"session": session, "prepared": prepared},
    ).fetchall()
    for what, fix, since in rows:
        age = f"since {since:%Y-%m-%d %H:%M}" if since is not None else "for many transactions"
        yield Check(
            "warn",
            "source",
            "long_transaction",
            f"{what} is open {age}: making a slot waits for it, and deleted rows cannot be vacuumed",
            fix,
            "sql",
        )
    if not rows:
        yield ok("source", "long_transaction", "no transaction is old")


def asked(where: str, checks: Iterator[Check]) -> Iterator[Check]:
    """The checks, and where one cannot be asked because the server refuses, that."""
    try:
        yield from checks
    except BridgeError as error:
        yield Check("error", where, error.reason, str(error.args[0]), error.hint, "advice")
    except psycopg.Error as error:
        primary = error.diag.message_primary or type(error).__name__
        yield Check(
            "error",
            where,
            "refused",
            f"the server refused a question: {primary} ({error.sqlstate or 'connection lost'})",
            "grant what the message names, or try again",
            "advice",
            unreachable=error.sqlstate is None,
        )


def installed(source: psycopg.Connection) -> bool:
    """Is the registry there, and may we read it."""
    return _may(
        source,
        "select has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select')"
        " from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname = 'outbox' and c.relname = 'stream'",
        [],
    )
