"""Two servers, a proxy before each, two bridges that are started again whenever they end; and what happened to them."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg

from tests.support.bridge_process import BridgeProcess
from tests.support.proxy import FaultProxy, LostAnswer
from tests.support.servers import EmbeddedServer, Servers
from tests.support.world import IMPATIENT, World, make_database
from tests.torture.own import use_own_outbox
from tests.torture.poison import HARMLESS, LATIN1_HARMLESS, LATIN1_POISON, POISON, add_tables

STALLED = 300.0
"""Seconds without progress after which the run has failed. Nothing else has a deadline: a machine can be slow."""

OPEN_BATCH = ("apply.sent", "apply.chunk", "bisect.commit")
UNCONFIRMED = ("settle.durable", "confirm.before")
BATCH = 500


CLASSES = (
    "kills with a batch open",
    "kills between commit and confirmation",
    "kills at random",
    "freezes",
    "clean stops",
    "target crashes",
    "source crashes",
    "target sessions ended",
    "lost commit answers",
    "links reset",
    "links half open",
    "slots dropped with events pending",
    "slots advanced with events pending",
    "publications toggled",
    "tables missing for a while",
    "table locks",
    "transactions rolled back",
    "transactions in two phases",
    "transactions larger than a batch",
    "duplicate keys",
    "dead letters",
    "takeovers",
    *POISON,
    *HARMLESS,
)
"""What must have happened at least once."""

OWN_CLASSES = ("rows moved between partitions", "applied rows deleted", "rows with NULL")
LATIN1_CLASSES = (*LATIN1_POISON, *LATIN1_HARMLESS)


class Happened:
    """What happened, counted and written down."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.log: list[dict[str, Any]] = []
        self._began = time.monotonic()
        self._lock = threading.Lock()

    def add(self, what: str, **detail: Any) -> None:
        with self._lock:
            self.counts[what] += 1
            if "transactions" not in what and what != "duplicate keys":
                at = round(time.monotonic() - self._began, 2)
                self.log.append({"at": at, "what": what, **detail})

    def missing(self, *, own: bool = False, latin1: bool = False) -> list[str]:
        """The classes of faults that have not struck."""
        classes = (*CLASSES, *(OWN_CLASSES if own else ()), *(LATIN1_CLASSES if latin1 else ()))
        return [name for name in classes if not self.counts[name]]


class Rig:
    """The servers and the bridges. Close it."""

    def __init__(
        self, directory: Path, chance: random.Random, *, own: bool = False, latin1: bool = False
    ) -> None:
        self.chance = chance
        self.own = own
        self.happened = Happened()
        self._servers = Servers()
        source, target = self._servers.private("source"), self._servers.private("target")
        if not isinstance(source, EmbeddedServer) or not isinstance(target, EmbeddedServer):
            raise SystemExit("torture crashes servers of its own: it needs the embedded provider")
        self.source, self.target = source, target
        self.world = world = World(
            make_database(source, "torture", "source"),
            make_database(target, "torture", "target", encoding="LATIN1" if latin1 else ""),
            directory,
        )
        world.target.execute(
            "alter table events.usage_limits add constraint plan_is_good check (plan <> 'bad')"
        )
        add_tables(world)
        world.target.execute("create index on rig.effects (n)")
        world.target.execute("create index on rig.effects ((row ->> 'event_id'))")
        for cluster in (source, target):  # a crash is recovered from in seconds, on a slow machine too
            cluster.configure(checkpoint_timeout="30s")
        world.configure(lambda c: c["source"].update(batch={"max_events": BATCH}))
        if own:
            use_own_outbox(world)
        self.links = {
            "source": FaultProxy(world.source.bridge_dsn),
            "target": FaultProxy(world.target.bridge_dsn),
        }
        self.bridges: list[BridgeProcess] = []
        self.seen: dict[BridgeProcess, int] = {}
        self.lost: LostAnswer | None = None
        self.epoch = 0

    def start(self) -> None:
        for _ in range(2):
            made = self.world.bridge(
                source=self.links["source"].dsn, target=self.links["target"].dsn, options=IMPATIENT
            )
            self.bridges.append(made)
            self.begin(made)

    def begin(self, bridge: BridgeProcess, *, armed: bool = True) -> None:
        """Start it, most times armed to kill itself somewhere soon."""
        self.seen[bridge] = len(bridge.lines)
        point = self.chance.choice((*OPEN_BATCH, *UNCONFIRMED, "")) if armed else ""
        count = 1 if point in ("apply.chunk", "bisect.commit") else self.chance.randint(1, 15)
        bridge.start(**({"BRIDGE_FAILPOINTS": f"{point}=kill@{count}"} if point else {}))

    def tend(self, *, armed: bool = True) -> None:
        """Start again what has ended, and write down of what; a takeover is an epoch more."""
        for bridge in self.bridges:
            if bridge.running:
                continue
            code = bridge.wait()
            lines = [
                line
                for line in bridge.lines[self.seen[bridge] :]
                if "failpoint " in line and ": kill" in line
            ]
            point = lines[-1].split("failpoint ")[1].split(":")[0] if lines else ""
            if point:
                kind = "with a batch open" if point in OPEN_BATCH else "between commit and confirmation"
                self.happened.add(f"kills {kind}", point=point)
            elif code not in (0, -signal.SIGKILL, -signal.SIGTERM):  # a SIGTERM during its imports
                self.happened.add("ended by itself", code=code, fenced="fenced" in bridge.log_tail())
            self.begin(bridge, armed=armed)
        if self.lost is not None and self.lost.happened:
            self.happened.add("lost commit answers")
            self.links["target"].clear()
            self.lost = None
        with contextlib.suppress(psycopg.OperationalError, ValueError):
            epoch = int(self.world.checkpoint("epoch"))
            if epoch > self.epoch:
                self.happened.add("takeovers", epoch=epoch)
            self.epoch = epoch

    def clear(self) -> None:
        for link in self.links.values():
            link.clear()
        if self.lost is not None and self.lost.happened:
            self.happened.add("lost commit answers")
        self.lost = None

    def slot_exists(self) -> bool:
        query = "select count(*) from pg_replication_slots where slot_name = %s"
        return bool(self.world.source.value(query, [self.world.slot]))

    def close(self) -> None:
        self.world.close()
        for link in self.links.values():
            link.close()
        self._servers.close()
