"""A stream's slot and registration, compared with the target's ledger."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg

from bridge.doctor.check import Check, Kind, ok
from bridge.postgres import left_behind as left
from bridge.postgres.profiles import STREAM
from bridge.postgres.progress import checkpoint, former, here, registered
from bridge.stream.spec import StreamSpec

_GIB = 1 << 30


def current(plan: StreamSpec, ledger: dict[str, Any] | None) -> str:
    """The current slot's name, or the first slot's name."""
    return f"{plan.stream}_{ledger['slot_incarnation'] if ledger and ledger['slot_incarnation'] else 1}"


def ledger_of(target: psycopg.Connection, stream: str) -> dict[str, Any] | None:
    """The checkpoint; None also if it cannot be read (the target's own checks say why)."""
    try:
        return checkpoint(target, stream)
    except psycopg.Error:
        return None


def registry(
    source: psycopg.Connection, target: psycopg.Connection, plan: StreamSpec, ledger: dict[str, Any] | None
) -> Iterator[Check]:
    """Do source and target know the same stream?"""
    row = registered(source, plan.stream)
    if row is None:
        if ledger is None and (old := former(source, target, {plan.stream, *plan.family})):
            yield Check(
                "error",
                "source",
                "stream_renamed",
                f"stream {plan.stream} is new, but {', '.join(old)} filled this database before and is served by no "
                "bridge: if it was renamed, everything in the outbox would be applied again",
                f"bridge rename-stream {old[0]} {plan.stream}   or, if it has ended for good: bridge decommission "
                f"{old[0]}   or, if another configuration has it: start its bridge",
                "advice",
            )
            return
        known = "registered at the next start" if ledger else "registered at the first start"
        yield ok("source", "registry", f"stream {plan.stream}: {known}")
        return
    if (row["target_system"], row["target_database"]) != here(target):
        yield Check(
            "error",
            "source",
            "other_target",
            f"stream {plan.stream} is registered for database {row['target_database']} of a "
            f"server that is not the one of connection {plan.connection}",
            "point the connection back; or, if this copy is the target now: bridge recover --accept-target",
            "advice",
        )
    elif ledger is None:
        yield Check(
            "error",
            "source",
            "ledger_missing",
            f"stream {plan.stream} is registered, but the target's ledger has no row for it: it "
            "was wiped, and a fresh start would apply everything twice",
            "restore the ledger together with the target's tables; or start again: bridge "
            "recover --restart-stream",
            "advice",
        )
    else:
        yield ok("source", "registry", f"stream {plan.stream} is registered for this target")


def slot(source: psycopg.Connection, plan: StreamSpec, name: str) -> Iterator[Check]:
    """Is the slot usable, and how much WAL does it retain?"""
    row = source.execute(
        "select plugin, database is not distinct from current_database(), active, wal_status,"
        " coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint,"
        " to_jsonb(s) ->> 'invalidation_reason', coalesce(to_jsonb(s) ->> 'failover', 'false') = 'true',"
        " coalesce('database ' || database, 'a standby'),"
        " (select concat_ws(' ', 'pid', a.pid, 'of', a.usename, '(' || nullif(a.application_name, '') || ')')"
        "  from pg_catalog.pg_stat_activity a where a.pid = s.active_pid"
        "  and a.application_name is distinct from %s)"
        " from pg_catalog.pg_replication_slots s where slot_name = %s",
        [STREAM.session_name(plan.stream), name],
    ).fetchone()
    if plan.failover and source.info.server_version < 170000:
        yield Check(
            "warn",
            "source",
            "slot_failover",
            "source.failover needs PostgreSQL 17: this server's slots do not survive a "
            "promotion, and the bridge then catches up from the table",
            "remove source.failover, or upgrade the source",
            "config",
        )
    if row is None:
        yield ok(
            "source",
            "slot",
            f"{name} does not exist: the bridge creates it, or catches up and creates the next one",
        )
        return
    plugin, here, active, status, retained, invalidated, failover, owner, reader = row
    drop = f"select pg_drop_replication_slot('{name}');"
    if plugin != "pgoutput" or not here:
        yield ok(
            "source",
            "slot",
            f"{name} belongs to {owner if not here else f'another program: plugin {plugin}'}: the bridge leaves it "
            "alone and takes the next number",
        )
    elif reader:
        yield Check(
            "error",
            "source",
            "slot_in_use",
            f"{name} is being read by something that is no bridge: {reader}",
            f"select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = '{name}';",
            "sql",
        )
    elif status == "lost" or invalidated:
        yield Check(
            "warn",
            "source",
            "slot",
            f"the server invalidated {name} ({invalidated or 'its WAL is gone'}): the bridge "
            "catches up from the outbox table; no event is lost",
            drop,
            "sql",
        )
    elif retained > plan.max_retained_wal:
        yield Check(
            "warn",
            "source",
            "slot_wal",
            f"{name} retains {retained / _GIB:.1f} GiB of WAL, more than max_retained_wal",
            f"start the bridge, which drains it; or drop it, and the bridge catches up from the table:\n{drop}",
            "advice",
        )
    elif plan.failover and not failover and source.info.server_version >= 170000:
        yield Check(
            "warn",
            "source",
            "slot_failover",
            f"{name} was created before source.failover was set: no standby synchronizes it",
            "stop the bridge and change the slot over a connection with replication=database:\n"
            f'ALTER_REPLICATION_SLOT "{name}" (FAILOVER true);\n'
            f"or drop it, and the bridge creates another:\n{drop}",
            "advice",
        )
    else:
        reading = "active" if active else "not being read"
        yield ok("source", "slot", f"{name} is {reading} and retains {retained >> 20} MiB of WAL")


def brakes(source: psycopg.Connection, plan: StreamSpec) -> Iterator[Check]:
    """The server's own limits for slots."""
    rows = source.execute(
        "select name, setting, setting::bigint * case unit when 'MB' then 1048576 else 1 end"
        " from pg_catalog.pg_settings where name in ('max_slot_wal_keep_size', 'idle_replication_slot_timeout')"
    ).fetchall()
    found = {name: (setting, value) for name, setting, value in rows}
    keep = found.get("max_slot_wal_keep_size", ("-1", -1))[1]
    wanted = max(1, (2 * plan.max_retained_wal) >> 30)
    fix = f"alter system set max_slot_wal_keep_size = '{wanted}GB';\nselect pg_reload_conf();"
    if keep < 0:
        yield Check(
            "warn",
            "source",
            "max_slot_wal_keep_size",
            "max_slot_wal_keep_size is not set: while the bridge is down, its slot retains WAL "
            "until the disk is full",
            fix,
            "sql",
        )
    elif keep < plan.max_retained_wal:
        yield Check(
            "warn",
            "source",
            "max_slot_wal_keep_size",
            f"max_slot_wal_keep_size ({keep >> 20} MiB) is below max_retained_wal ("
            f"{plan.max_retained_wal >> 20} MiB): the server invalidates the slot first, and each "
            "time the bridge catches up from the table",
            fix,
            "sql",
        )
    else:
        yield ok("source", "max_slot_wal_keep_size", f"{keep >> 20} MiB")
    idle = found.get("idle_replication_slot_timeout", ("0", 0))[0]
    if idle != "0":
        yield Check(
            "warn",
            "source",
            "idle_replication_slot_timeout",
            f"idle_replication_slot_timeout is {idle}: after a longer pause of the bridge its "
            "slot is invalidated, and the bridge catches up from the table",
            "alter system set idle_replication_slot_timeout = 0;\nselect pg_reload_conf();",
            "sql",
        )


def left_behind(source: psycopg.Connection, plan: StreamSpec) -> Iterator[Check]:
    """Slots and registrations that are ours and that nothing serves: slots retain WAL, registrations hold back
    pruning."""
    parameters = left.source_parameters(plan.publication, plan.family)
    for one in left.from_source(source.execute(left.SOURCE, parameters)):
        kind: Kind = "sql" if one.fix.startswith("select") else "command"
        yield Check("warn", "source", f"{one.kind}_left_over", one.message, one.fix, kind)


def units_left_behind(target: psycopg.Connection, plan: StreamSpec) -> Iterator[Check]:
    """Dead letters and messages of what the configuration no longer has: nothing retries or sends them."""
    rows = target.execute(
        left.TARGET, left.target_parameters(plan.stream, plan.family, plan.units(), plan.sinks)
    )
    for one in left.from_target(rows, plan.stream, plan.sinks):
        yield Check("warn", plan.connection, f"{one.kind}_left_over", one.message, one.fix, "command")
