"""Two servers, a proxy before each, and two bridges that are started again whenever they end."""

from __future__ import annotations

import contextlib
import random
import signal
from collections.abc import Callable
from pathlib import Path

import psycopg

from bridge.demo.cluster import Cluster
from tests.faults.world import IMPATIENT, World
from tests.support import customer
from tests.support.bridge_process import BridgeProcess
from tests.support.proxy import FaultProxy, LostAnswer
from tests.support.servers import Database, Servers, create_database
from tests.torturing.report import Happened

STALLED = 300.0
"""Seconds without progress after which the run has failed. Nothing else has a deadline: a machine can be slow."""

OPEN_BATCH = ("apply.sent", "apply.chunk", "bisect.commit")
UNCONFIRMED = ("settle.durable", "confirm.before")
BATCH = 500


class Rig:
    """The servers and the bridges. Close it."""

    def __init__(self, directory: Path, chance: random.Random) -> None:
        self.chance = chance
        self.happened = Happened()
        self._servers = Servers()
        source, target = self._servers.private("source"), self._servers.private("target")
        if not isinstance(source, Cluster) or not isinstance(target, Cluster):
            raise SystemExit("torture crashes servers of its own: it needs the embedded provider")
        self.source, self.target = source, target
        self.world = world = World(
            _database(source, "torture", customer.make_source),
            _database(target, "torture", customer.make_target),
            directory,
        )
        world.target.execute(
            "alter table events.usage_limits add constraint plan_is_good check (plan <> 'bad')"
        )
        world.target.execute("create index on rig.effects (n)")
        world.target.execute("create index on rig.effects ((row ->> 'event_id'))")
        for cluster in (source, target):  # a crash is recovered from in seconds, on a slow machine too
            cluster.configure(checkpoint_timeout="30s")
        world.configure(lambda c: c["source"].update(batch={"max_events": BATCH}))
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


def _database(cluster: Cluster, name: str, fill: Callable[[customer.Connection], None]) -> Database:
    customer.make_roles(cluster)
    database = create_database(cluster, name)
    with database.connect() as connection:
        fill(connection)
    return database
