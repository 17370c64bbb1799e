"""Who drains: native logical replication, native with an upsert trigger, and the bridge.

Each can prepare a slot, start reading it, and stop. A backlog is made between the first two.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import LiteralString, Protocol

import psycopg
from psycopg import sql

from bench.servers import NATIVE, NATIVE_UPSERT, WAREHOUSE, Servers
from bridge.demo.process import Bridge

EVENT_TABLE = ("outbox", "event", "id")
LIMITS_TABLE = ("events", "usage_limits", "event_id")
_SLOTS = "outbox_bridge_warehouse_%"


class Contestant(Protocol):
    """name: for the report. database, table (schema, name, key column): where its rows become visible.
    clock: SQL for when a row did: the commit's timestamp, or where that is the origin's the insert's."""

    name: str
    database: str
    table: tuple[str, str, str]
    clock: LiteralString

    def prepare(self) -> None:
        """Have a slot from which what comes next will be read."""
        ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def processes(self) -> dict[str, int]:
        """Process ids by part: bridge, walsender, target."""
        ...


class Native:
    """`create subscription`: the C code's own apply worker. One transaction on the target for each one
    at the source; the subscription's synchronous_commit is `commit`."""

    clock: LiteralString = "applied_at"

    def __init__(self, servers: Servers, *, upsert: bool = False, commit: str = "off") -> None:
        self.name = f"native{' + upsert trigger' if upsert else ''}, synchronous_commit = {commit}"
        self.database = NATIVE_UPSERT if upsert else NATIVE
        self.table = LIMITS_TABLE if upsert else EVENT_TABLE
        self._servers = servers
        self._commit = commit
        self._slot = self.database

    def prepare(self) -> None:
        self._servers.on_target(self.database, f"truncate {self.table[0]}.{self.table[1]}")
        self._servers.on_source("select pg_create_logical_replication_slot(%s, 'pgoutput')", [self._slot])

    def start(self) -> None:
        statement = sql.SQL(
            "create subscription bench connection {} publication outbox_bridge with (create_slot = false,"
            " slot_name = {}, copy_data = false, synchronous_commit = {})"
        ).format(self._servers.source_dsn, sql.Identifier(self._slot), sql.Literal(self._commit))
        with psycopg.connect(self._servers.database_dsn(self.database), autocommit=True) as connection:
            connection.execute(statement)

    def stop(self) -> None:
        for statement in (
            "alter subscription bench disable",
            "alter subscription bench set (slot_name = none)",
            "drop subscription bench",
        ):
            self._servers.on_target(self.database, statement)
        drop_slot(self._servers, self._slot)

    def processes(self) -> dict[str, int]:
        worker = self._servers.on_target(
            self.database,
            "select pid from pg_stat_subscription where subname = 'bench' and worker_type = 'apply'",
        )
        return {
            **walsender(self._servers, self._slot),
            **({"target": worker[0][0]} if worker and worker[0][0] else {}),
        }


class Ours:
    """`bridge run` on the demo's configuration, a process of its own. Always durable on the target."""

    name = "bridge, synchronous_commit = on"
    database = WAREHOUSE
    table = LIMITS_TABLE
    clock: LiteralString = "pg_xact_commit_timestamp(xmin)"

    def __init__(self, servers: Servers, directory: Path) -> None:
        self._servers = servers
        self.bridge = Bridge(servers.bridge_environment, directory / "bridge.log")

    def prepare(self) -> None:
        """Its slot stays from round to round, as it does for its users."""
        self._servers.on_target(self.database, "truncate events.usage_limits")
        self.bridge.start().wait_ready()
        end = time.monotonic() + 30
        mode = "select 1 from bridge.checkpoint where mode = 'stream'"
        while not self._servers.on_target(self.database, mode):  # ready while it still makes its slot
            if time.monotonic() > end:
                raise TimeoutError(f"the bridge does not stream\n{self.bridge.log_tail()}")
            time.sleep(0.05)
        self.bridge.terminate()

    def start(self) -> None:
        self.bridge.start()

    def stop(self) -> None:
        self.bridge.terminate()

    def processes(self) -> dict[str, int]:
        worker = self._servers.on_target(
            self.database,
            "select pid from pg_stat_activity where datname = 'warehouse'"
            " and application_name ~ '^bridge/outbox_bridge_warehouse/[0-9]+$'",
        )
        return {
            "bridge": self.bridge.pid,
            **walsender(self._servers, _SLOTS),
            **({"target": worker[0][0]} if worker else {}),
        }


def walsender(servers: Servers, slot: str) -> dict[str, int]:
    """The process that reads a slot; the name may be a LIKE pattern."""
    rows = servers.on_source(
        "select active_pid from pg_replication_slots where slot_name like %s and active", [slot]
    )
    return {"walsender": rows[0][0]} if rows else {}


def drop_slot(servers: Servers, slot: str) -> None:
    """Once its reader has gone."""
    end = time.monotonic() + 10
    while servers.on_source("select 1 from pg_replication_slots where slot_name = %s and active", [slot]):
        if time.monotonic() > end:
            break  # then dropping it says who reads it
        time.sleep(0.01)
    servers.on_source("select pg_drop_replication_slot(%s)", [slot])
