"""The source's server: its settings, free slots, and long transactions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta

import psycopg

from bridge.doctor.check import Check, Kind, Severity, ok
from bridge.errors import CannotConnect
from bridge.postgres.capture import refusals
from bridge.postgres.profiled import ProfiledConnection
from bridge.stream.spec import StreamSpec

_RESTART = "-- then restart the server"


def settings(source: ProfiledConnection, plan: StreamSpec) -> Iterator[Check]:
    """What capture needs from the server. With `auto` a lack is not an error, because polling takes over."""
    row = source.execute(
        "select pg_is_in_recovery(), current_setting('wal_level'), current_setting('synchronous_commit'),"
        " quote_ident(current_user)"
    ).fetchone()
    recovery, level, commit, role = row or (False, "", "", "")
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
            "synchronous_commit is off: a crash of the server can lose events that it reported as committed",
            "alter system set synchronous_commit = 'on';\nselect pg_reload_conf();",
            "sql",
        )
    else:
        yield ok("source", "synchronous_commit", f"synchronous_commit is {commit}")
    if plan.capture == "poll":
        yield ok("source", "capture", "capture is poll: no slot and no REPLICATION are needed")
        return
    lacking: Severity = "error" if plan.capture == "slot" else "warn"
    try:
        found = {refused.reason: refused for refused in refusals(source, plan.source_dsn, trial=True)}
    except CannotConnect:
        if source.lent:
            return  # the check of the pooler says so
        raise
    for refused in found.values():
        fix: Kind = "sql" if refused.fix.startswith(("alter", "grant")) else "advice"
        said = f"{refused.message} (source.capture: poll needs no slot)"
        yield Check(lacking, "source", refused.reason, said, refused.fix, fix)
    fine = {
        "wal_level": f"wal_level is {level}",
        "output_plugin_libraries": "the server decodes with pgoutput",
        "replication": f"role {role} may use slots",
    }
    yield from (ok("source", name, said) for name, said in fine.items() if name not in found)


def free_slots(source: psycopg.Connection, wanted: Sequence[str]) -> Iterator[Check]:
    """Free slots for those that do not exist yet. To replace a slot, the old one is dropped first."""
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


def history(
    source: psycopg.Connection,
    *,
    session: timedelta = timedelta(minutes=5),
    prepared: timedelta = timedelta(minutes=1),
) -> Iterator[Check]:
    """Transactions that are open for longer than this: vacuum and slot creation wait for them. The start time of
    another role's transaction needs pg_read_all_stats; without it the age is counted in transactions."""
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
            f"{what} is open {age}: slot creation waits for it, and deleted rows cannot be vacuumed",
            fix,
            "sql",
        )
    if not rows:
        yield ok("source", "long_transaction", "no transaction is open for long")
