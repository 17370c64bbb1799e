"""`python -m bench.idle_streams 20 2`: what streams cost that have nothing to do: 20 sources, 2 targets, one process.

The sources are databases of one server, the targets of another; every source goes to every target, so there are 40
streams. Nobody writes an event. What the process uses is read from /proc, what the servers are asked from
pg_stat_statements and pg_stat_database. `--load` writes events into one source meanwhile, and tells what they took.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import psycopg
import yaml

from bench.report import machine
from bridge.demo.process import CONFIG, Bridge
from bridge.demo.servers import Cluster, Workspace
from bridge.demo.world import make_roles, make_source, make_target

_SETTINGS: dict[str, str | int] = {
    "shared_preload_libraries": "pg_stat_statements",
    "max_connections": 400,
    "max_replication_slots": 100,
    "max_wal_senders": 100,
    "autovacuum": "off",  # its WAL and CPU are not the bridge's
    "checkpoint_timeout": "1h",
    "log_checkpoints": "off",
}
_READY_SECONDS = 180.0
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """Totals since the start of each; their difference over a minute is what is told."""

    cpu: float  # seconds, user and system, of the bridge
    wakes: int  # times that a thread of it waited and was woken
    source_queries: int
    target_queries: int
    source_sessions: int  # connections that were made
    target_sessions: int
    source_wal: int  # bytes
    target_wal: int
    source_cpu: float  # of all of the server's processes
    target_cpu: float

    def since(self, other: Usage, seconds: float) -> dict[str, float]:
        """A minute's part of the difference."""
        return {
            each.name: (getattr(self, each.name) - getattr(other, each.name)) * 60 / seconds
            for each in fields(self)
        }


class Rig:
    """The two servers with their databases, and the bridge between them."""

    def __init__(self, workspace: Workspace, sources: int, targets: int) -> None:
        self.source = self._server(workspace, "sources")
        self.target = self._server(workspace, "targets")
        self.sources = self._databases(self.source, "app", sources)
        self.targets = self._databases(self.target, "warehouse", targets)
        self.directory = workspace.root / "bridge"
        self.directory.mkdir()
        self.streams = sources * targets
        self.bridge = Bridge({}, self.directory / "bridge.log", self.directory / "bridge.yaml")
        self.bridge.config.write_text(yaml.safe_dump(self._document(), sort_keys=False))

    @staticmethod
    def _server(workspace: Workspace, name: str) -> Cluster:
        cluster = Cluster(workspace, name, settings=_SETTINGS).init().start()
        cluster.execute("create extension pg_stat_statements")
        with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
            make_roles(connection, "bridge")
        return cluster

    @staticmethod
    def _databases(cluster: Cluster, kind: str, count: int) -> list[str]:
        names = [f"{kind}_{number}" for number in range(count)]
        for name in names:
            cluster.execute(f"create database {name}")
            with psycopg.connect(cluster.dsn(name), autocommit=True) as connection:
                make_source(connection) if kind == "app" else make_target(connection)
        return names

    def _document(self) -> dict[str, Any]:
        """One file for all sources."""
        document: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
        section = document.pop("source")
        sections = {
            name: {**section, "dsn": self.source.dsn(name, user="outbox_bridge"), "slot": f"outbox_s{number}"}
            for number, name in enumerate(self.sources)
        }
        document |= {"sources": sections} if len(sections) > 1 else {"source": next(iter(sections.values()))}
        document["admin"] = {"listen": self.bridge.admin}
        [pipeline] = document["pipelines"].values()
        [table] = pipeline["destinations"].values()
        document["connections"] = {
            name: {"type": "postgres", "dsn": self.target.dsn(name, user="outbox_bridge")}
            for name in self.targets
        }
        pipeline["destinations"] = {name: {**table, "connection": name} for name in self.targets}
        for name, one in sections.items():
            with psycopg.connect(self.source.dsn(name), autocommit=True) as connection:
                connection.execute(
                    f"create publication {one['slot']} for table outbox.event with (publish = 'insert')".encode()
                )
        return document

    def usage(self) -> Usage:
        """The totals by now."""
        source, target = _server(self.source), _server(self.target)
        return Usage(
            cpu=_cpu(self.bridge.pid),
            wakes=_wakes(self.bridge.pid),
            source_queries=source["queries"],
            target_queries=target["queries"],
            source_sessions=source["sessions"],
            target_sessions=target["sessions"],
            source_wal=source["wal"],
            target_wal=target["wal"],
            source_cpu=_tree_cpu(self.source),
            target_cpu=_tree_cpu(self.target),
        )

    def held(self) -> dict[str, int]:
        """What the process holds now: threads, files, bytes, connections."""
        process = Path(f"/proc/{self.bridge.pid}")
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        return {
            "threads": int(status["Threads"]),
            "files": len(list((process / "fd").iterdir())),
            "rss_bytes": int(status["VmRSS"].split()[0]) * 1024,
            "source_connections": _connections(self.source),
            "target_connections": _connections(self.target),
        }

    def statements(self, most: int) -> list[tuple[str, int, str]]:
        """(server, calls, text) of the statements that were called most since the start."""
        found = []
        for name, cluster in (("source", self.source), ("target", self.target)):
            rows = cluster.execute(
                "select calls, left(regexp_replace(query, '\\s+', ' ', 'g'), 110) from pg_stat_statements"
                " where userid = 'outbox_bridge'::regrole order by calls desc limit %s",
                [most],
            )
            found += [(name, calls, text) for calls, text in rows]
        return found

    def reset(self) -> None:
        """Forget which statements were called."""
        for cluster in (self.source, self.target):
            cluster.execute("select pg_stat_statements_reset()")

    def latency(self, seconds: float) -> list[float]:
        """Seconds from an event's commit in the first source to its row in the first target, one after another."""
        took = []
        with (
            psycopg.connect(self.source.dsn(self.sources[0]), autocommit=True) as producer,
            psycopg.connect(self.target.dsn(self.targets[0]), autocommit=True) as warehouse,
        ):
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                began = time.monotonic()
                row = producer.execute(
                    'select outbox.emit(\'usage.limit_reached\', \'{"customer_id": "cus_1", "metric": "seats",'
                    ' "limit": 1, "used": 1, "plan": "pro"}\')'
                ).fetchone()
                assert row is not None
                there = "select 1 from events.usage_limits where event_id = %s"
                while warehouse.execute(there, row).fetchone() is None:
                    time.sleep(0.001)
                took.append(time.monotonic() - began)
                time.sleep(0.05)
        return took


def _server(cluster: Cluster) -> dict[str, int]:
    [(queries, sessions, wal)] = cluster.execute(
        "select (select coalesce(sum(calls), 0)::bigint from pg_stat_statements"
        " where userid = 'outbox_bridge'::regrole), (select sum(sessions)::bigint from pg_stat_database),"
        " pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint"
    )
    return {"queries": queries, "sessions": sessions, "wal": wal}


def _connections(cluster: Cluster) -> int:
    [(count,)] = cluster.execute("select count(*) from pg_stat_activity where usename = 'outbox_bridge'")
    return int(count)


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _cpu(pid: int) -> float:
    return sum(map(int, _stat(pid)[11:13])) / _TICK


def _tree_cpu(cluster: Cluster) -> float:
    """Of the server and its processes, those that have ended too."""
    [postmaster] = [int((cluster.data / "postmaster.pid").read_text().split()[0])]
    total = sum(map(int, _stat(postmaster)[11:15])) / _TICK
    for child in Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split():
        try:
            total += _cpu(int(child))
        except OSError:
            continue  # it has ended: the server has its time by now
    return total


def _wakes(pid: int) -> int:
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            lines = (task / "status").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
    return total


@contextmanager
def idle(sources: int, targets: int) -> Iterator[Rig]:
    """A bridge that has caught up with nothing."""
    with Workspace() as workspace:
        rig = Rig(workspace, sources, targets)
        rig.bridge.start()
        try:
            rig.bridge.wait_ready(_READY_SECONDS)
            yield rig
        finally:
            rig.bridge.close()


def measure(rig: Rig, seconds: float) -> dict[str, Any]:
    """Wait until the start is over, then count for `seconds`."""
    time.sleep(20)
    rig.reset()
    before, began = rig.usage(), time.monotonic()
    time.sleep(seconds)
    after, took = rig.usage(), time.monotonic() - began
    return {"held": rig.held(), "minute": after.since(before, took), "statements": rig.statements(12)}


def told(streams: int, found: dict[str, Any]) -> None:
    """The table."""
    print(f"{'':34}{'process':>12}{'a stream':>12}")
    for name, value in found["held"].items():
        print(f"{name.replace('_', ' '):34}{value:>12,}{value / streams:>12,.1f}")
    for name, value in found["minute"].items():
        print(f"{name.replace('_', ' ') + ' a minute':34}{value:>12,.1f}{value / streams:>12,.2f}")


def main() -> None:
    """Measure, print, write build/idle_streams.json."""
    parser = argparse.ArgumentParser(prog="python -m bench.idle_streams", description=__doc__)
    parser.add_argument("sources", type=int, nargs="?", default=20)
    parser.add_argument("targets", type=int, nargs="?", default=2)
    parser.add_argument("--seconds", type=float, default=60.0, help="to count for (default %(default)s)")
    parser.add_argument(
        "--load", action="store_true", help="then write events into one source, and time them"
    )
    parser.add_argument("--statements", action="store_true", help="print what the servers are asked")
    chosen = parser.parse_args()
    with idle(chosen.sources, chosen.targets) as rig:
        found = measure(rig, chosen.seconds)
        print(f"{chosen.sources} sources, {chosen.targets} targets, {rig.streams} streams, idle")
        told(rig.streams, found)
        if chosen.statements:
            for server, calls, text in found["statements"]:
                print(f"  {server} {calls:6} {text}")
        if chosen.load:
            took = sorted(rig.latency(15))
            found["latency"] = {"events": len(took), "p50": statistics.median(took), "max": took[-1]}
            print(
                f"one event at a time: {len(took)}, p50 {1e3 * statistics.median(took):.1f} ms,"
                f" slowest {1e3 * took[-1]:.0f} ms"
            )
    build = Path("build")
    build.mkdir(exist_ok=True)
    report = {"machine": machine(), "sources": chosen.sources, "targets": chosen.targets, **found}
    (build / "idle_streams.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
