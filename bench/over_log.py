"""Contestants that go over a log: `bridge relay`, JetStream (one node, R1), `bridge worker`; each with what it uses."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import yaml

from bench.capped import used
from bench.contestants import LIMITS_TABLE, Contestant
from bench.drain import peak_memory
from bench.servers import Servers
from bridge.demo.log_server import LogNode
from bridge.demo.process import CONFIG, Bridge
from bridge.demo.world import make_target

_READY_SECONDS = 60.0
_SOURCE_PARTS = "select active_pid, slot_name from pg_replication_slots where active and slot_name like %s"
_TARGET_PARTS = (
    "select pid from pg_stat_activity where backend_type = 'client backend' and usename = 'outbox_bridge'"
    " and datname is not null"
)


def document(
    servers: Servers, targets: Sequence[str], *, url: str = "", partitions: int = 1, slot: str = "over_log"
) -> dict[str, Any]:
    """The demo's configuration for these databases of the target's server; url: over this log."""
    made: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    made["source"]["slot"] = slot
    dsn = servers.bridge_environment["WAREHOUSE_DSN"]
    made["connections"] = {
        name: {"type": "postgres", "dsn": psycopg.conninfo.make_conninfo(dsn, dbname=name)}
        for name in targets
    }
    [pipeline] = made["pipelines"].values()
    [table] = pipeline["destinations"].values()
    pipeline["destinations"] = {name: {**table, "connection": name} for name in targets}
    if url:
        made["connections"]["bus"] = {"type": "nats", "servers": [url]}
        made["scale"] = {"log": "bus", "partitions": partitions, "log_size": "3GiB"}
    return made


class OverLog:
    """A relay and workers, one process each. `relays`: only those run; the log keeps everything."""

    clock: LiteralString = "pg_xact_commit_timestamp(xmin)"
    table = LIMITS_TABLE

    def __init__(
        self,
        servers: Servers,
        node: LogNode,
        directory: Path,
        *,
        workers: int = 1,
        partitions: int = 3,
        targets: int = 1,
    ) -> None:
        """Into databases of its own: a target knows whose events it had before."""
        self.name = f"over a log, {workers} worker{'s' if workers > 1 else ''}, {partitions} partitions"
        self._servers = servers
        self._node = node
        self.partitions = partitions
        directory.mkdir(exist_ok=True)
        config = directory / "bridge.yaml"
        slot = f"log_{directory.name.replace('-', '_')}"
        self.targets = make_targets(servers, slot, targets)
        self.database = self.targets[0]
        self.relay_name = f"{slot}_bus"
        made = document(servers, self.targets, url=node.url, partitions=partitions, slot=slot)
        config.write_text(yaml.safe_dump(made, sort_keys=False))
        publish(servers, slot)
        environment = servers.bridge_environment
        self.relay = Bridge(environment, directory / "relay.log", config)
        self.relay.verb = "relay"
        self.workers = [Bridge(environment, directory / f"worker-{n}.log", config) for n in range(workers)]
        for worker in self.workers:
            worker.verb = "worker"

    @property
    def parts(self) -> list[Bridge]:
        return [self.relay, *self.workers]

    def prepare(self) -> None:
        """All partitions have a place in the chain, and everybody has ended."""
        for target in self.targets:
            self._servers.on_target(target, "truncate events.usage_limits")
        for part in self.parts:
            part.start()
        wanted = (
            "select count(*) from outbox.stream s join outbox.relay r using (relay, incarnation)"
            " where s.confirmed is not null and relay = %s"
        )
        end = time.monotonic() + _READY_SECONDS
        while self._servers.on_source(wanted, [self.relay_name])[0][0] < self.partitions * len(self.targets):
            if time.monotonic() > end:
                raise TimeoutError("\n".join(part.log_tail() for part in self.parts))
            time.sleep(0.05)
        self.stop()

    def start(self) -> None:
        for part in self.parts:
            part.start()

    def stop(self) -> None:
        for part in self.parts:
            if part.running:
                part.terminate()

    def processes(self) -> dict[str, int]:
        found = {"relay": self.relay.pid, "nats": self._node.pid}
        found |= {f"worker {n}": worker.pid for n, worker in enumerate(self.workers)}
        rows = self._servers.on_source(_SOURCE_PARTS, [f"{self.relay_name}%"])
        found |= {f"walsender {n}": pid for n, (pid, _) in enumerate(rows)}
        rows = self._servers.on_target(self.database, _TARGET_PARTS)
        return found | {f"target {n}": pid for n, (pid,) in enumerate(rows)}


def make_targets(servers: Servers, prefix: str, count: int) -> list[str]:
    """Databases like the warehouse."""
    names = [f"{prefix}_{n}" for n in range(count)]
    for name in names:
        servers.target.execute(f"create database {name}")
        with psycopg.connect(servers.database_dsn(name), autocommit=True) as connection:
            make_target(connection)
    return names


class Usage:
    """Meter (drain.py) of everything that works for a contestant: parts of one kind together. Sessions that are opened
    meanwhile count from their beginning, those that ended as far as they were seen."""

    def __init__(self, contestant: Contestant) -> None:
        self._contestant = contestant
        self._kinds: dict[int, str] = {}
        self._used: dict[int, float] = {}

    def seconds(self) -> dict[str, float]:
        self._kinds |= {pid: part.partition(" ")[0] for part, pid in self._contestant.processes().items()}
        used: dict[str, float] = {}
        for pid, kind in self._kinds.items():
            self._used[pid] = max(self._used.get(pid, 0.0), cpu(pid) or 0.0)
            used[kind] = used.get(kind, 0.0) + self._used[pid]
        return used

    def peak_memory(self) -> int | None:
        """Of the largest process of ours."""
        ours = [
            peak_memory(pid) or 0
            for pid, kind in self._kinds.items()
            if kind in ("relay", "worker", "bridge")
        ]
        return max(ours, default=None)


def cpu(pid: int) -> float | None:
    """CPU seconds of a process; None: it has ended. /proc has ticks of 10 ms: too coarse for a bar of a tenth."""
    try:
        return used(pid)
    except OSError:
        return None


def publish(servers: Servers, name: str) -> None:
    """A publication for this slot."""
    if not servers.on_source("select 1 from pg_publication where pubname = %s", [name]):
        with psycopg.connect(servers.source_dsn, autocommit=True) as connection:
            connection.execute(
                f"create publication {name} for table outbox.event with (publish = 'insert',"
                " publish_via_partition_root = true)".encode()
            )
