"""A stream's slot and its row in the registry, against what the target's ledger says."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import psycopg

from bridge.doctor.check import Check, ok
from bridge.postgres.progress import checkpoint, registered
from bridge.stream.spec import StreamSpec

_GIB = 1 << 30


def current(plan: StreamSpec, ledger: dict[str, Any] | None) -> str:
    """The slot's name now, or that of the first one."""
    return f"{plan.stream}_{ledger['slot_incarnation'] if ledger and ledger['slot_incarnation'] else 1}"


def ledger_of(target: psycopg.Connection, stream: str) -> dict[str, Any] | None:
    """The checkpoint, None also where it cannot be read (the target's own checks say why)."""
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
        known = "registered at the next start" if ledger else "registered at the first start"
        yield ok("source", "registry", f"stream {plan.stream}: {known}")
        return
    here = target.execute(
        "select (select system_identifier::text from pg_control_system()), current_database()"
    ).fetchone()
    if here is not None and (row["target_system"], row["target_database"]) != here:
        yield Check(
            "error",
            "source",
            "other_target",
            f"stream {plan.stream} is registered for database {row['target_database']} of another server than "
            f"connection {plan.connection} leads to",
            "point the connection back; or, when this copy is the target now: bridge recover --accept-target",
            "advice",
        )
    elif ledger is None:
        yield Check(
            "error",
            "source",
            "ledger_missing",
            f"stream {plan.stream} is registered, but the target's ledger has no row for it: it was wiped, and "
            "beginning again would apply everything twice",
            "restore the ledger together with the target's tables; or begin anew: bridge recover --restart-stream",
            "advice",
        )
    else:
        yield ok("source", "registry", f"stream {plan.stream} is registered for this target")


def slot(source: psycopg.Connection, plan: StreamSpec, name: str) -> Iterator[Check]:
    """Is it usable, and how much WAL does it hold."""
    row = source.execute(
        "select plugin, database = current_database(), active, wal_status,"
        " coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint,"
        " to_jsonb(s) ->> 'invalidation_reason', coalesce(to_jsonb(s) ->> 'failover', 'false') = 'true'"
        " from pg_catalog.pg_replication_slots s where slot_name = %s",
        [name],
    ).fetchone()
    if plan.failover and source.info.server_version < 170000:
        yield Check(
            "warn",
            "source",
            "slot_failover",
            "source.failover needs PostgreSQL 17: this server's slots stay behind in a promotion, and the bridge then "
            "catches up from the table",
            "take source.failover out, or upgrade the source",
            "config",
        )
    if row is None:
        yield ok(
            "source", "slot", f"{name} does not exist: the bridge makes it, or catches up and makes the next"
        )
        return
    plugin, here, active, status, retained, invalidated, failover = row
    drop = f"select pg_drop_replication_slot('{name}');"
    if plugin != "pgoutput" or not here:
        yield Check(
            "error",
            "source",
            "slot",
            f"{name} is another's: plugin {plugin}",
            "choose another source.slot",
            "config",
        )
    elif status == "lost" or invalidated:
        yield Check(
            "warn",
            "source",
            "slot",
            f"{name} was given up by the server ({invalidated or 'its WAL is gone'}): the bridge catches up from "
            "the outbox table by itself; nothing is lost",
            drop,
            "sql",
        )
    elif retained > plan.max_retained_wal:
        yield Check(
            "warn",
            "source",
            "slot_wal",
            f"{name} holds {retained / _GIB:.1f} GiB of WAL, more than max_retained_wal",
            "start the bridge, which drains it; or give it up, the bridge then catches up from the table:\n"
            + drop,
            "advice",
        )
    elif plan.failover and not failover and source.info.server_version >= 170000:
        yield Check(
            "warn",
            "source",
            "slot_failover",
            f"{name} was made before source.failover: no standby synchronizes it",
            "stop the bridge and change it over a connection with replication=database:\n"
            f'ALTER_REPLICATION_SLOT "{name}" (FAILOVER true);\nor drop it, and the bridge makes another:\n{drop}',
            "advice",
        )
    else:
        reading = "active" if active else "not read now"
        yield ok("source", "slot", f"{name} is {reading} and holds {retained >> 20} MiB of WAL")


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
            "max_slot_wal_keep_size is not set: while the bridge is down its slot keeps WAL until the disk is full",
            fix,
            "sql",
        )
    elif keep < plan.max_retained_wal:
        yield Check(
            "warn",
            "source",
            "max_slot_wal_keep_size",
            f"max_slot_wal_keep_size ({keep >> 20} MiB) is below max_retained_wal ({plan.max_retained_wal >> 20} MiB): "
            "the server gives the slot up first, and each time the table is read instead",
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
            f"idle_replication_slot_timeout is {idle}: after a pause of the bridge its slot is gone, and the table is "
            "read instead",
            "alter system set idle_replication_slot_timeout = 0;\nselect pg_reload_conf();",
            "sql",
        )


def left_over(
    source: psycopg.Connection, prefix: str, streams: Collection[str], slots: Collection[str]
) -> Iterator[Check]:
    """Slots and registry rows of streams that the configuration has no longer: both hold things back."""
    rows = source.execute(
        "select slot_name from pg_catalog.pg_replication_slots where database = current_database() and not active"
        " and plugin = 'pgoutput' and starts_with(slot_name::text, %s) and slot_name::text ~ '_[0-9]+$'"
        " and not slot_name = any(%s)",
        [prefix + "_", list(slots)],
    ).fetchall()
    for (name,) in rows:
        yield Check(
            "warn",
            "source",
            "slot_left_over",
            f"slot {name} belongs to no stream of this configuration and holds WAL back",
            f"select pg_drop_replication_slot('{name}');",
            "sql",
        )
    rows = source.execute(
        "select stream from outbox.stream where starts_with(stream, %s) and not stream = any(%s)",
        [prefix + "_", list(streams)],
    ).fetchall()
    for (name,) in rows:
        quoted = name.replace("'", "''")
        yield Check(
            "warn",
            "source",
            "stream_left_over",
            f"stream {name} is registered, but not in this configuration: nothing that it has not applied is pruned",
            f"delete from outbox.stream where stream = '{quoted}';",
            "sql",
        )
