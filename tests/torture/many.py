"""Many streams, several machines: `python -m tests.torture.many --minutes 10 --bridges 3 --report build/many.json`.

Two layouts: `fan-in`, 20 sources into 1 target, and `fan-out`, 1 source into 8 targets. Every machine runs one bridge
on the same configuration, in a network namespace of its own where we are root. While producers write, machines are
killed, frozen and cut off, servers crash and slots are dropped. In the end nothing is lost, nothing doubled, no ledger
has another source's name, and the report has how long every takeover took.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg
import yaml

from bridge.config.model import Config
from bridge.demo.servers import Workspace
from tests.support.bridge_process import DEFAULT_CONFIG, REPOSITORY
from tests.support.producers import Producer
from tests.support.servers import Database, EmbeddedServer, create_database
from tests.support.world import IMPATIENT, make_database, until, with_options
from tests.torture.hosts import Host, HostedBridge, have_namespaces, reachable
from tests.torture.rig import STALLED, Happened
from tests.torture.tally import tally

LAYOUTS = {"fan-in": (20, 1), "fan-out": (1, 8)}
SHARES = "scale" in Config.model_fields
"""Whether bridges can share their streams. Otherwise one has each and the others stand by."""
SETTINGS: dict[str, str | int] = {
    "max_connections": 500,
    "max_replication_slots": 100,
    "max_wal_senders": 100,
    "checkpoint_timeout": "30s",
}
STEPS = (0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 60.0)
"""Upper ends of the histogram's bars, seconds."""

_HOLDERS = """
    select s.slot_name::text, host(a.client_addr) from pg_replication_slots s
    join pg_stat_activity a on a.pid = s.active_pid"""


@dataclass(frozen=True, slots=True)
class Takeover:
    """seconds: from the fault to the moment when another session had the stream's ledger."""

    stream: str
    fault: str
    seconds: float


class Watch(threading.Thread):
    """Who has which stream, and since when: the ledgers' epochs and the slots' readers, ten times a second."""

    def __init__(self, source: Database, targets: list[Database]) -> None:
        super().__init__(name="watch", daemon=True)
        self.takeovers: list[Takeover] = []
        self.rises: Counter[str] = Counter()
        self.holders: dict[str, str] = {}  # stream -> address of its machine
        self.ended = threading.Event()
        self._source = source
        self._targets = targets
        self._epochs: dict[str, int] = {}
        self._struck: dict[str, tuple[str, float]] = {}
        self._links: dict[str, psycopg.Connection[Any]] = {}
        self._lock = threading.Lock()

    def struck(self, address: str, fault: str) -> None:
        """A machine is hit now: its streams wait for another session, unless the fault is too short for one."""
        with self._lock:
            hit = [stream for stream, holder in self.holders.items() if holder == address]
            self._struck = dict.fromkeys(hit, (fault, time.monotonic()))

    def run(self) -> None:
        while not self.ended.wait(0.1):
            with contextlib.suppress(psycopg.Error):
                self._look()

    def _look(self) -> None:
        found = {}
        for target in self._targets:
            for stream, epoch in self._ask(target, "select stream, epoch from bridge.checkpoint"):
                found[stream] = int(epoch)
        holders = {slot.rpartition("_")[0]: address for slot, address in self._ask(self._source, _HOLDERS)}
        with self._lock:
            for stream, epoch in found.items():
                known = self._epochs.get(stream)
                if known is not None and epoch > known:
                    self.rises[stream] += epoch - known
                    if (hit := self._struck.pop(stream, None)) is not None:
                        self.takeovers.append(Takeover(stream, hit[0], time.monotonic() - hit[1]))
                self._epochs[stream] = epoch
            self.holders = holders

    def _ask(self, database: Database, query: str) -> list[tuple[Any, ...]]:
        link = self._links.get(database.dsn)
        if link is None or link.closed or link.broken:
            link = self._links[database.dsn] = database.connect()
        return link.execute(query.encode()).fetchall()


class Load(threading.Thread):
    """Producers of some of the sources, in turn."""

    def __init__(self, sources: list[Database], seed: int) -> None:
        super().__init__(name=f"load {sources[0].name}", daemon=True)
        self.producers = [Producer(one.dsn, name=f"p-{one.name}", seed=seed) for one in sources]
        self.ended = threading.Event()
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.ended.is_set():
                for producer in self.producers:
                    with contextlib.suppress(psycopg.OperationalError):  # the source was crashed
                        producer.transaction(producer.chance.randint(1, 20))
                    self.ended.wait(0.4 / len(self.producers))
        except BaseException as error:
            self.failure = error
        finally:
            for producer in self.producers:
                producer.close()


class Many:
    """Servers, databases, machines and their bridges. Close it."""

    def __init__(self, directory: Path, layout: str, bridges: int, chance: random.Random) -> None:
        count, fan = LAYOUTS[layout]
        self.chance = chance
        self.happened = Happened()
        self._workspace = Workspace()
        self.source_server, self.target_server = self._server("sources"), self._server("targets")
        self.sources = self._databases(self.source_server, "source", count)
        self.targets = self._databases(self.target_server, "target", fan)
        self.own_network = have_namespaces()
        self.hosts = [Host(number + 1, own_network=self.own_network) for number in range(bridges)]
        self.bridges = [self._bridge(host, directory / host.name.replace(" ", "-")) for host in self.hosts]
        self.streams = {
            f"outbox_{source.name}_{target.name}": (source.name, target.name)
            for source in self.sources
            for target in self.targets
        }
        self.watch = Watch(self.sources[0], self.targets)

    def _server(self, name: str) -> EmbeddedServer:
        server = EmbeddedServer(self._workspace, name, settings=SETTINGS).init()
        return reachable(server).start()

    @staticmethod
    def _databases(server: EmbeddedServer, kind: Any, count: int) -> list[Database]:
        first = make_database(server, f"{kind}_0", kind)
        return [first, *(create_database(server, f"{kind}_{n}", first.name) for n in range(1, count))]

    def _bridge(self, host: Host, directory: Path) -> HostedBridge:
        """One file for all sources, in one process."""
        directory.mkdir()
        document = yaml.safe_load(DEFAULT_CONFIG.read_text())
        section = document.pop("source")
        slots = {source.name: f"outbox_{source.name}" for source in self.sources}
        sections = {
            source.name: {**section, "dsn": self._dsn(host, source, IMPATIENT), "slot": slots[source.name]}
            for source in self.sources
        }
        document |= {"sources": sections} if len(sections) > 1 else {"source": next(iter(sections.values()))}
        document["connections"] = {
            target.name: {"type": "postgres", "dsn": self._dsn(host, target)} for target in self.targets
        }
        [pipeline] = document["pipelines"].values()
        [table] = pipeline["destinations"].values()
        pipeline["destinations"] = {
            target.name: {**table, "connection": target.name} for target in self.targets
        }
        document["admin"] = {"listen": f"127.0.0.1:{8400 + host.number}"}
        if SHARES:
            document["scale"] = {"share": True}
        config = directory / "bridge.yaml"
        config.write_text(yaml.safe_dump(document, sort_keys=False))
        for source in self.sources:
            with contextlib.suppress(psycopg.errors.DuplicateObject):
                source.execute(
                    f"create publication {slots[source.name]} for table outbox.event with (publish = 'insert',"
                    " publish_via_partition_root = true)"
                )
        return HostedBridge(host, {"PYTHONPATH": str(REPOSITORY)}, directory, config)

    @staticmethod
    def _dsn(host: Host, database: Database, options: str = "") -> str:
        dsn = psycopg.conninfo.make_conninfo(database.bridge_dsn, host=host.near)
        return with_options(dsn, options) if options else dsn

    # -- faults ---------------------------------------------------------------------------------------

    def kill(self) -> None:
        bridge = self._holder()
        self._struck(bridge, "SIGKILL")
        bridge.kill()
        time.sleep(self.chance.uniform(0, 3))
        bridge.start()

    def freeze(self) -> None:
        bridge = self._holder()
        self._struck(bridge, "SIGSTOP")
        bridge.freeze()
        time.sleep(self.chance.uniform(1, 9))
        bridge.thaw()

    def cut(self) -> None:
        bridge = self._holder()
        self._struck(bridge, "cut link")
        bridge.host.cut()
        time.sleep(self.chance.uniform(1, 9))
        bridge.host.mend()

    def crash(self) -> None:
        server = self.chance.choice([self.source_server, self.target_server])
        server.crash()
        time.sleep(self.chance.uniform(0, 1))
        server.start()
        self.happened.add(f"crash of {server.directory.name}")

    def drop_slot(self) -> None:
        source = self.chance.choice(self.sources)
        with source.connect() as somebody:
            slots = somebody.execute(
                "select slot_name from pg_replication_slots where database = current_database()"
            ).fetchall()
            if not slots:
                return
            [slot] = self.chance.choice(slots)
            for _ in range(200):
                somebody.execute(
                    "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = %s and active",
                    [slot],
                )
                with contextlib.suppress(psycopg.errors.ObjectInUse):
                    somebody.execute("select pg_drop_replication_slot(%s)", [slot])
                    self.happened.add("slot dropped", slot=slot)
                    return

    def _holder(self) -> HostedBridge:
        """One that has streams, most times: to hit one that stands by proves little."""
        self.tend()
        busy = [one for one in self.bridges if one.host.address in self.watch.holders.values()]
        return self.chance.choice(busy if busy and self.chance.random() < 0.8 else self.bridges)

    def _struck(self, bridge: HostedBridge, fault: str) -> None:
        self.happened.add(fault, machine=bridge.host.name)
        if self.own_network:  # otherwise nobody can say whose a session is
            self.watch.struck(bridge.host.address, fault)

    def tend(self) -> None:
        """Start again what has ended, as a supervisor does."""
        for bridge in self.bridges:
            if not bridge.running:
                code = bridge.wait()
                if code not in (0, -9):
                    said = [line for line in bridge.log_tail(100).splitlines() if "ended" in line]
                    self.happened.add(
                        "ended by itself", machine=bridge.host.name, code=code, said="".join(said[-1:])
                    )
                bridge.start()

    # -- a run ----------------------------------------------------------------------------------------

    def run(self, minutes: float, seed: int) -> dict[str, Any]:
        """The report."""
        began = time.monotonic()
        for bridge in self.bridges:
            bridge.start()
        until(self._all_streams, "every stream has begun", STALLED)
        self.watch.start()
        loads = [Load(self.sources[n::4], seed) for n in range(min(4, len(self.sources)))]
        for load in loads:
            load.start()
        faults = [self.kill, self.kill, self.freeze, self.crash, self.drop_slot]
        faults += [self.cut] if self.own_network else []
        end, left = began + minutes * 60, []
        while time.monotonic() < end:
            left = left or self.chance.sample(faults, len(faults))
            with contextlib.suppress(psycopg.OperationalError, psycopg.errors.UndefinedObject):
                left.pop()()
            self.tend()
            time.sleep(self.chance.uniform(1, 5))
        for load in loads:
            load.ended.set()
            load.join(STALLED)
            assert load.failure is None, load.failure
        caught_up = self._catch_up()
        split = self._split()
        self.watch.ended.set()
        self.watch.join()
        found = tally(
            {one.name: one.dsn for one in self.sources},
            {one.name: one.dsn for one in self.targets},
            self.streams,
        )
        fair = not SHARES or _spread(split) <= 1
        return {
            "ok": found.holds and fair,
            "seed": seed,
            "minutes": round((time.monotonic() - began) / 60, 2),
            "streams": len(self.streams),
            "bridges": len(self.bridges),
            "namespaces": self.own_network,
            "shares": SHARES,
            "split_at_the_end": split,
            "seconds_to_catch_up": round(caught_up, 1),
            "happened": dict(sorted(self.happened.counts.items())),
            "epochs_begun": sum(self.watch.rises.values()),
            "takeovers": [asdict(one) for one in self.watch.takeovers],
            "tally": {**asdict(found), "holds": found.holds},
            "faults": self.happened.log,
        }

    def _all_streams(self) -> bool:
        return sum(self._count(one, "bridge.checkpoint") for one in self.targets) == len(self.streams)

    @staticmethod
    def _count(database: Database, table: str) -> int:
        with contextlib.suppress(psycopg.OperationalError):
            return int(database.value(f"select count(*) from {table}"))
        return -1

    def _catch_up(self) -> float:
        """Until every target has as many effects as its sources have events, as long as there are more and more."""
        began = moved = time.monotonic()
        wanted = sum(self._count(one, "rig.truth") for one in self.sources)
        last = -1
        while (there := min(self._count(one, "rig.effects") for one in self.targets)) < wanted:
            self.tend()
            if there != last:
                last, moved = there, time.monotonic()
            if time.monotonic() > moved + STALLED:
                break  # the tally says what is missing
            time.sleep(0.2)
        return time.monotonic() - began

    def _split(self) -> dict[str, int]:
        """Streams of each machine, once all are at rest."""
        with contextlib.suppress(AssertionError):
            until(lambda: len(self.watch.holders) == len(self.streams), "every stream is read", 60)
        if (
            SHARES
        ):  # a machine that was killed last joins again when it has started: at load that takes its time
            with contextlib.suppress(AssertionError):
                until(lambda: _spread(self._loads()) <= 1, "a fair split", 60)
            time.sleep(5)  # and it stays
        return self._loads()

    def _loads(self) -> dict[str, int]:
        counts = Counter(self.watch.holders.values())
        return {host.name: counts[host.address] for host in self.hosts}

    def close(self) -> None:
        self.watch.ended.set()
        for bridge in self.bridges:
            bridge.close()
        for host in self.hosts:
            host.close()
        self._workspace.close()


def _spread(loads: dict[str, int]) -> int:
    return max(loads.values()) - min(loads.values())


def histogram(takeovers: list[dict[str, Any]]) -> str:
    """Lines of text, one a step and fault."""
    lines = []
    for fault in sorted({one["fault"] for one in takeovers}):
        took = sorted(one["seconds"] for one in takeovers if one["fault"] == fault)
        middle, high = took[len(took) // 2], took[min(len(took) - 1, len(took) * 95 // 100)]
        lines.append(
            f"{fault}: {len(took)} takeovers, p50 {middle:.2f} s, p95 {high:.2f} s, max {took[-1]:.2f} s"
        )
        low = 0.0
        for step in (*STEPS, float("inf")):
            count = sum(low <= one < step for one in took)
            if count:
                lines.append(f"  < {step:5} s {count:5} {'#' * max(1, 50 * count // len(took))}")
            low = step
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture.many", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of each run (default %(default)s)")
    parser.add_argument("--layout", choices=[*LAYOUTS], action="append", help="default: both")
    parser.add_argument("--bridges", type=int, action="append", help="default: 2, then 3")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--report", type=Path, default=Path("build/many.json"))
    chosen = parser.parse_args()
    seed = chosen.seed if chosen.seed is not None else random.SystemRandom().randrange(1 << 31)
    print(f"seed {seed}", flush=True)
    reports = []
    for layout in chosen.layout or LAYOUTS:
        for bridges in chosen.bridges or (2, 3):
            with tempfile.TemporaryDirectory(prefix="many-") as directory:
                many = Many(Path(directory), layout, bridges, random.Random(seed))
                try:
                    report = {"layout": layout, **many.run(chosen.minutes, seed)}
                finally:
                    many.close()
            reports.append(report)
            short = {name: report[name] for name in report if name not in ("takeovers", "faults")}
            print(json.dumps(short, indent=1), histogram(report["takeovers"]), sep="\n", flush=True)
            chosen.report.parent.mkdir(parents=True, exist_ok=True)
            chosen.report.write_text(json.dumps(reports, indent=1, default=str))
    print(f"report: {chosen.report}")
    return 0 if all(report["ok"] for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
