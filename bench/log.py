"""`python -m bench.log`: one reader and many over a log, beside bridges that each read the source themselves.

Parts: relay (events a second into the log, memory), cpu (all processes an event, beside direct), flat (walsender an
event, 1 to 8 targets, beside direct), workers (three beside one, on capped CPU), latency (beside direct), held (what a
worker holds while its target stands still). Writes build/log.json.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from bench.backlog import forget, produce
from bench.capped import Capped
from bench.contestants import Ours
from bench.drain import drain, peak_memory
from bench.latency import latency
from bench.log_rate import frames_in
from bench.over_log import OverLog, Usage, cpu, document, make_targets, publish
from bench.report import machine
from bench.servers import Servers
from bridge.demo.log_server import LogNode
from bridge.demo.process import Bridge

PARTS = ("relay", "cpu", "flat", "workers", "latency", "held")
_LIMIT = 600.0


class Bench:
    """The parts of a run."""

    def __init__(self, servers: Servers, directory: Path, chosen: argparse.Namespace) -> None:
        self.servers = servers
        self.directory = directory
        self.chosen = chosen
        self.node = LogNode(directory, max_file="60GB").start().wait()
        self.figures: dict[str, Any] = {}

    def close(self) -> None:
        self.node.kill()

    def _over(self, name: str, **options: Any) -> OverLog:
        return OverLog(self.servers, self.node, self.directory / name, **options)

    def relay(self) -> None:
        """A backlog into the log, nobody applies it."""
        runs = []
        over = self._over("relay", partitions=8)
        over.prepare()
        for _ in range(self.chosen.rounds):
            produce(self.servers, self.chosen.events, 1)
            over.relay.start()
            wait(lambda: "relay" in over.processes() and "walsender 0" in over.processes())
            pids = {
                part: pid
                for part, pid in over.processes().items()
                if part.startswith(("relay", "nats", "walsender"))
            }
            before = {part: cpu(pid) or 0.0 for part, pid in pids.items()}
            before["relay"], before["walsender 0"] = self._start_cost, 0.0
            frames = frames_in(self.node, over.relay_name, self.chosen.events, _LIMIT)
            used = {part: (cpu(pid) or 0.0) - before[part] for part, pid in pids.items()}
            memory = peak_memory(over.relay.pid) or 0
            over.relay.terminate()
            runs.append(
                {"rate": frames.rate, "rss": memory}
                | {part: s / frames.rows * 1e6 for part, s in used.items()}
            )
            print("  " + "  ".join(f"{name} {value:,.1f}" for name, value in runs[-1].items()), flush=True)
            over.workers[0].start()  # apply them, for the next round
            over.relay.start()
            self._applied(over)
            over.stop()
            forget(self.servers)
            self.servers.on_target(over.database, "truncate events.usage_limits")
        self.figures["relay"] = {name: statistics.median(run[name] for run in runs) for name in runs[0]}

    _start_cost = 0.5
    """Seconds of CPU that a relay's start takes (imports); its frames are not in it."""

    def cpu(self) -> None:
        """The sum of all processes an event, of one backlog: from its first event to its last, without any start. While
        the backlog is made, ours stand still (SIGSTOP)."""
        pair: list[Any] = [Ours(self.servers, self.servers.workspace.root), self._over("cpu", partitions=3)]
        sums: dict[str, list[float]] = {one.name: [] for one in pair}
        for number in range(self.chosen.rounds):
            for one in pair if number % 2 == 0 else pair[::-1]:
                cost = self._cost(one)
                sums[one.name].append(sum(cost.values()))
                parts = "  ".join(f"{part} {us:.1f}" for part, us in cost.items())
                print(f"  {one.name}: {sums[one.name][-1]:.1f} us an event: {parts}", flush=True)
        ratios = [over / direct for direct, over in zip(*sums.values(), strict=True)]
        self.figures["cpu"] = {"ratio": statistics.median(ratios), "ratios": ratios, "us": sums}

    def _cost(self, one: Any) -> dict[str, float]:
        """Microseconds an event, by part."""
        one.prepare()
        one.start()
        wait(lambda: "target" in " ".join(one.processes()) and "walsender" in " ".join(one.processes()))
        time.sleep(3)
        meter = Usage(one)
        ours = [
            pid for part, pid in one.processes().items() if part.split()[0] in ("bridge", "relay", "worker")
        ]
        before = meter.seconds()
        for pid in ours:
            os.kill(pid, signal.SIGSTOP)
        produce(self.servers, self.chosen.events, 1)
        for pid in ours:
            os.kill(pid, signal.SIGCONT)
        count = "select count(*) >= %s from events.usage_limits"

        def all_there() -> bool:
            meter.seconds()  # sessions may end
            return bool(self.servers.on_target(one.database, count, [self.chosen.events])[0][0])

        wait(all_there, _LIMIT, 0.2)
        after = meter.seconds()
        one.stop()
        forget(self.servers)
        return {
            part: (used - before.get(part, 0.0)) / self.chosen.events * 1e6 for part, used in after.items()
        }

    def flat(self) -> None:
        """What decoding costs the source, by the number of targets."""
        found: dict[str, float] = {}
        for count in (1, 8):
            over = self._over(f"flat-{count}", partitions=1, targets=count)
            over.prepare()
            targets = make_targets(self.servers, f"direct_{count}", count)
            config = self.directory / f"direct-{count}.yaml"
            made = document(self.servers, targets, slot=f"direct_{count}")
            config.write_text(json.dumps(made))
            publish(self.servers, f"direct_{count}")
            direct = Bridge(self.servers.bridge_environment, self.directory / f"direct-{count}.log", config)
            direct.start()
            streams = (
                f"select count(*) = {count} from pg_replication_slots where slot_name like 'direct_{count}%'"
            )
            wait(lambda: self.servers.on_source(streams)[0][0])  # noqa: B023
            wait(lambda: "streaming" in direct.log.read_text())  # noqa: B023
            direct.terminate()
            events = self.chosen.events // 3
            produce(self.servers, events, 1)
            for kind, parts, slots, there in (
                ("over a log", over.parts, over.relay_name, over.targets),
                ("direct", [direct], f"direct_{count}", targets),
            ):
                for part in parts:
                    part.start()
                found[f"{kind}, {count} targets"] = self._walsenders(slots, there, events)
                for part in parts:
                    part.terminate()
            forget(self.servers)
            print("  " + "  ".join(f"{name}: {us:.1f} us" for name, us in found.items()), flush=True)
            for slot in self.servers.on_source("select slot_name from pg_replication_slots where not active"):
                self.servers.on_source("select pg_drop_replication_slot(%s)", [slot[0]])
        self.figures["flat"] = found | {
            "ratio": found["over a log, 8 targets"] / found["over a log, 1 targets"]
        }

    def _walsenders(self, slots: str, targets: list[str], events: int) -> float:
        """Microseconds an event of all that read these slots, until every target has the events."""
        used: dict[int, float] = {}
        query = "select active_pid from pg_replication_slots where active and slot_name like %s"

        def done() -> bool:
            for (pid,) in self.servers.on_source(query, [f"{slots}%"]):
                used[pid] = cpu(pid) or used.get(pid, 0.0)
            return all(
                self.servers.on_target(name, "select count(*) >= %s from events.usage_limits", [events])[0][0]
                for name in targets
            )

        wait(done, _LIMIT, 0.2)
        return sum(used.values()) / events * 1e6

    def workers(self) -> None:
        """Three workers and one, each process held to the same share of a core."""
        rates: dict[int, list[float]] = {1: [], 3: []}
        over = {
            count: self._over(f"workers-{count}", workers=count, partitions=6 + count) for count in (1, 3)
        }
        for number in range(self.chosen.rounds):
            for one in over.values():
                one.prepare()
            last = produce(self.servers, self.chosen.events // 2, 1)
            for count in (1, 3) if number % 2 == 0 else (3, 1):
                with Capped(self.chosen.cap) as capped:
                    done = drain(self.servers, _CappedStart(over[count], capped), last)
                rates[count].append(done.rate)
                print(
                    f"  {count} workers at {self.chosen.cap:.0%} of a core: {done.rate:,.0f} ev/s", flush=True
                )
            forget(self.servers)
        ratios = [three / one for one, three in zip(rates[1], rates[3], strict=True)]
        self.figures["workers"] = {"ratio": statistics.median(ratios), "ratios": ratios, "rates": rates}

    def latency(self) -> None:
        """Commit to visible, 200 a second."""
        pair = [Ours(self.servers, self.servers.workspace.root), self._over("latency", partitions=3)]
        found: dict[str, list[float]] = {one.name: [] for one in pair}
        for number in range(self.chosen.rounds):
            for one in pair if number % 2 == 0 else pair[::-1]:
                run = latency(self.servers, one, 200.0, self.chosen.seconds, measure=Usage)
                found[one.name].append(run.p99)
                print(f"  {one.name}: p50 {run.p50:.1f} ms, p99 {run.p99:.1f} ms", flush=True)
        ratios = [b / a for a, b in zip(*found.values(), strict=True)]
        self.figures["latency"] = {"ratio": statistics.median(ratios), "ratios": ratios, "p99": found}

    def held(self) -> None:
        """Its target's table is locked and the log is full of frames: how much a worker grows."""
        over = self._over("held", partitions=8)
        over.prepare()
        over.start()
        idle = self._settled(over.workers[0].pid)
        with psycopg.connect(self.servers.database_dsn(over.database)) as locking:
            locking.execute("lock table events.usage_limits in access exclusive mode")
            with psycopg.connect(self.servers.source_dsn, autocommit=True) as connection:
                for _ in range(60):  # 400 MB
                    connection.execute(
                        "insert into outbox.event (type, payload) select 'usage.limit_reached', jsonb_build_object("
                        "'customer_id', 'cus_1', 'metric', 'seats', 'limit', 1, 'used', 1, 'plan', 'pro', 'note',"
                        " (select string_agg(md5(random()::text), '') from generate_series(1, 200)))"
                        " from generate_series(1, 1000) as n"
                    )
            busy = self._settled(over.workers[0].pid)
        over.stop()
        self.figures["held"] = {"idle_rss": idle, "rss": busy, "held": busy - idle}
        print(f"  {idle / 1e6:.0f} MB idle, {busy / 1e6:.0f} MB with a standing target", flush=True)

    def _settled(self, pid: int) -> int:
        """The largest resident set, once it has not grown for ten seconds."""
        seen, since = 0, time.monotonic()
        while time.monotonic() < since + 10:
            now = peak_memory(pid) or 0
            if now > seen:
                seen, since = now, time.monotonic()
            time.sleep(0.2)
        return seen

    def _applied(self, over: OverLog) -> None:
        """All events, and the slot is confirmed behind them: what is read next is new."""
        wanted = self.servers.on_source("select count(*) from outbox.event")[0][0] - 1
        end = self.servers.on_source("select pg_current_wal_lsn()")[0][0]
        count = "select count(*) >= %s from events.usage_limits"
        wait(lambda: self.servers.on_target(over.database, count, [wanted])[0][0], _LIMIT, 0.5)
        slot = "select confirmed_flush_lsn >= %s::pg_lsn from pg_replication_slots where slot_name like %s"
        wait(lambda: self.servers.on_source(slot, [end, f"{over.relay_name}%"])[0][0], _LIMIT, 0.5)


class _CappedStart:
    """The contestant, with its workers held to a share of a core from their start on."""

    def __init__(self, over: OverLog, capped: Capped) -> None:
        self._over, self._capped = over, capped
        self.name, self.database, self.table, self.clock = over.name, over.database, over.table, over.clock
        self.prepare, self.stop, self.processes = over.prepare, self._stop, over.processes

    def start(self) -> None:
        self._over.start()
        for worker in self._over.workers:
            self._capped.hold(worker.pid)

    def _stop(self) -> None:
        self._capped.release()
        self._over.stop()


def wait(condition: Callable[[], Any], seconds: float = 60.0, pause: float = 0.05) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:.0f} s")
        time.sleep(pause)


def main() -> None:
    """Run, print, write build/log.json."""
    parser = argparse.ArgumentParser(prog="python -m bench.log", description=__doc__)
    parser.add_argument("--events", type=int, default=150_000, help="in a backlog (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each latency run")
    parser.add_argument(
        "--cap", type=float, default=0.12, help="of a core, for each worker (default %(default)s)"
    )
    parser.add_argument("--only", choices=PARTS, action="append", help="these parts only")
    chosen = parser.parse_args()
    with Servers() as servers, tempfile.TemporaryDirectory(prefix="bench-log-") as directory:
        bench = Bench(servers, Path(directory), chosen)
        try:
            for part in chosen.only or PARTS:
                print(part, flush=True)
                getattr(bench, part)()
        finally:
            bench.close()
    build = Path("build")
    build.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine(), "events": chosen.events, "figures": bench.figures}, indent=2)
    (build / "log.json").write_text(text + "\n")
    for part, figures in bench.figures.items():
        print(part, json.dumps(figures))


if __name__ == "__main__":
    main()
