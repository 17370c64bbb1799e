"""Two relays, three workers, a log of three nodes, a source and two targets; and everything that is done to them.

A fault begins and, later, ends by itself: the next ones do not wait for it, so that several are at work at once.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from bridge.errors import BridgeError
from tests.support.bridge_process import BridgeProcess
from tests.support.nats import NatsCluster, NatsNode, NatsOptions
from tests.support.proxy import FaultProxy
from tests.support.scaled import Scaled, shuffled
from tests.support.servers import EmbeddedServer, Servers
from tests.support.world import IMPATIENT, World, make_database
from tests.torture.rig import Happened

PARTITIONS = 4
OF_RELAYS = (
    "relay.before_saved",
    "relay.saved",
    "relay.tails",
    "relay.publish",
    "relay.published",
    "confirm.before",
)
OF_WORKERS = (
    "log.taken",
    "apply.sent",
    "settle.durable",
    "apply.chunk",
    "confirm.before",
    "ledger.saved",
    "missing.read",
)
_REMAKE = """
    drop publication outbox_bridge; create publication outbox_bridge for table outbox.event
    with (publish = 'insert', publish_via_partition_root = true)"""


class LogRig:
    """Everything, and its faults; `every` is what may happen. Close it."""

    def __init__(self, directory: Path, chance: random.Random) -> None:
        self.chance = chance
        self.happened = Happened()
        self.servers = Servers()
        source, target = self.servers.private("source"), self.servers.private("target")
        if not isinstance(source, EmbeddedServer) or not isinstance(target, EmbeddedServer):
            raise SystemExit("torture crashes servers of its own: it needs the embedded provider")
        self.source, self.target = source, target
        for server in (source, target):
            server.configure(checkpoint_timeout="30s")
        self.world = World(
            make_database(source, "torture", "source"), make_database(target, "torture", "target"), directory
        )
        self.second = make_database(target, "second", "target")
        for database in (self.world.target, self.second):
            database.execute("create index on rig.effects ((row ->> 'event_id'))")
        self.links = {
            "source": FaultProxy(self.world.source.bridge_dsn),
            "target": FaultProxy(self.world.target.bridge_dsn),
        }
        self.cluster = NatsCluster(directory, 3, NatsOptions(max_file="2GB"))
        self.scaled = Scaled(self.world, *self.cluster.urls, partitions=PARTITIONS, replicas=3)
        self.world.configure(self._two_targets)
        self.relays: list[BridgeProcess] = []
        self.workers: list[BridgeProcess] = []
        self._later: list[tuple[float, Callable[[], object]]] = []
        self._frozen: set[BridgeProcess] = set()
        self.every: tuple[Callable[[], None], ...] = (
            *[self.kill_worker] * 4,
            *[self.kill_relay] * 3,
            *[self.kill_node] * 3,
            *[self.freeze_worker] * 2,
            *[self.freeze_relay] * 2,
            *[self.duplicate] * 2,
            *[self.forget_frames] * 2,
            self.freeze_node,
            self.purge,
            self.delete,
            self.crash_source,
            self.crash_target,
            self.pause_source,
            self.pause_target,
            self.reset_links,
            self.drop_slot,
            self.remake_publication,
            self.stop_worker,
            self.lock_table,
        )

    def _two_targets(self, document: dict[str, Any]) -> None:
        dsn = make_conninfo(self.links["target"].dsn, dbname=self.second.name)
        document["connections"]["second"] = {"type": "postgres", "dsn": dsn}
        [pipeline] = document["pipelines"].values()
        pipeline["destinations"]["copy"] = {**pipeline["destinations"]["events"], "connection": "second"}
        document["source"]["batch"] = {"max_events": 500}

    def start(self) -> None:
        self.cluster.start()
        for verb, parts, count in (("relay", self.relays, 2), ("worker", self.workers, 3)):
            for _ in range(count):
                made = self.world.bridge(
                    source=self.links["source"].dsn, target=self.links["target"].dsn, options=IMPATIENT
                )
                made.verb = verb
                parts.append(made.start())

    # -- time goes on -----------------------------------------------------------------------------------

    def tend(self, *, armed: bool = True) -> None:
        """End faults that are due, and start again what has died, most times to die again at a failpoint."""
        now = time.monotonic()
        due = [what for at, what in self._later if at <= now]
        self._later = [(at, what) for at, what in self._later if at > now]
        for what in due:
            what()
        for part in (*self.relays, *self.workers):
            if not part.running:
                code = part.wait()
                died = next((line for line in part.lines[-3:] if ": kill" in line), "")
                if died:
                    self.happened.add(
                        "killed at a failpoint", point=died.split("failpoint ")[1].split(":")[0]
                    )
                elif code not in (0, -9, -15):
                    fenced = any('"fenced"' in line for line in part.lines[-20:])
                    self.happened.add("ended by itself", code=code, verb=part.verb, fenced=fenced)
                self._begin(part, armed=armed)

    def _begin(self, part: BridgeProcess, *, armed: bool) -> None:
        points = OF_RELAYS if part.verb == "relay" else OF_WORKERS
        point = self.chance.choice((*points, "", "", "")) if armed else ""
        count = 1 if point in ("apply.chunk", "relay.tails", "missing.read") else self.chance.randint(1, 30)
        part.start(**({"BRIDGE_FAILPOINTS": f"{point}=kill@{count}"} if point else {}))

    def after(self, low: float, high: float, what: Callable[[], object]) -> None:
        self._later.append((time.monotonic() + self.chance.uniform(low, high), what))

    def clear(self) -> None:
        """All faults end now."""
        for _, what in sorted(self._later, key=lambda one: one[0]):
            what()
        self._later = []
        for link in self.links.values():
            link.clear()

    # -- the log ----------------------------------------------------------------------------------------

    def kill_node(self) -> None:
        node = self.chance.choice(self.cluster.nodes)
        if node.process is not None and node not in self._down():
            node.kill()
            self.happened.add("node killed", node=node.name)
            self.after(0.5, 6, lambda: node.start(wait=False))

    def freeze_node(self) -> None:
        node = self.chance.choice(self.cluster.nodes)
        if node.process is not None:
            node.freeze()
            self.happened.add("node frozen", node=node.name)
            self.after(0.5, 8, lambda: self._thaw(node))

    @staticmethod
    def _thaw(node: NatsNode) -> None:
        if node.process is not None:
            node.thaw()

    def _down(self) -> list[NatsNode]:
        return [node for node in self.cluster.nodes if node.process is None]

    def _to_log(self, what: str, do: Callable[[], object]) -> None:
        with contextlib.suppress(BridgeError):  # the log is away
            do()
            self.happened.add(what)

    def purge(self) -> None:
        self._to_log("log purged", self.scaled.log.purge)

    def delete(self) -> None:
        self._to_log("log deleted", self.scaled.log.delete)

    def forget_frames(self) -> None:
        def forget() -> None:
            messages = self.scaled.log.messages()[-100:]
            for one in self.chance.sample(messages, (len(messages) + 2) // 3):
                self.scaled.log.forget(one.sequence)

        self._to_log("single frames lost", forget)

    def duplicate(self) -> None:
        self._to_log(
            "frames doubled and disordered",
            lambda: self.scaled.log.put(shuffled(self.scaled.log.messages()[-100:], self.chance)),
        )

    # -- processes --------------------------------------------------------------------------------------

    def kill_worker(self) -> None:
        self._kill(self.workers)

    def kill_relay(self) -> None:
        self._kill(self.relays)

    def _kill(self, parts: list[BridgeProcess]) -> None:
        part = self.chance.choice(parts)
        part.kill()
        self.happened.add(f"{part.verb} killed")

    def stop_worker(self) -> None:
        """It leaves, and joins again."""
        part = self.chance.choice(self.workers)
        if part.running and part not in self._frozen:
            code = part.terminate(60)
            self.happened.add("worker stopped", code=code)

    def freeze_worker(self) -> None:
        self._freeze(self.workers)

    def freeze_relay(self) -> None:
        self._freeze(self.relays)

    def _freeze(self, parts: list[BridgeProcess]) -> None:
        part = self.chance.choice(parts)
        if part.running and part not in self._frozen:
            part.pause()
            self._frozen.add(part)
            self.happened.add(f"{part.verb} frozen")
            self.after(0.5, 15, lambda: self._wake(part))  # beyond what others wait for it, or not

    def _wake(self, part: BridgeProcess) -> None:
        self._frozen.discard(part)
        if part.running:
            part.resume()

    # -- Postgres ---------------------------------------------------------------------------------------

    def crash_source(self) -> None:
        self._crash(self.source, "source crashed")

    def crash_target(self) -> None:
        self._crash(self.target, "target crashed")

    def _crash(self, server: EmbeddedServer, what: str) -> None:
        if server.running:
            server.crash()
            server.start()
            self.happened.add(what)

    def pause_source(self) -> None:
        self._pause("source")

    def pause_target(self) -> None:
        self._pause("target")

    def _pause(self, name: str) -> None:
        self.links[name].blackhole()
        self.happened.add(f"{name} paused")
        self.after(0.5, 6, self.links[name].clear)

    def reset_links(self) -> None:
        for link in self.links.values():
            link.reset_all()
        self.happened.add("links reset")

    def drop_slot(self) -> None:
        with contextlib.suppress(psycopg.Error, AssertionError):
            self.scaled.drop_slot()
            self.happened.add("slot dropped")

    def remake_publication(self) -> None:
        """In one transaction: no row is withheld."""
        with contextlib.suppress(psycopg.Error):
            self.world.source.execute(_REMAKE)
            self.happened.add("publication made again")

    def lock_table(self) -> None:
        """One target stands still, the other goes on."""
        locking = self.world.target.connect()
        with contextlib.suppress(psycopg.Error):
            locking.execute("set lock_timeout = '2s'; begin; lock table events.usage_limits in share mode")
            self.happened.add("one target locked")
        self.after(1, 8, locking.close)

    def close(self) -> None:
        for part in self._frozen:
            with contextlib.suppress(ProcessLookupError):
                part.resume()
        self.world.close()
        for link in self.links.values():
            link.close()
        self.scaled.close()
        for node in self.cluster.nodes:
            node.thaw_and_kill()
        self.servers.close()
