"""`python -m bench`: the bridge against native logical replication, in one run, as ratios.

Every round drains one backlog by each contestant in turn, in alternating order; a ratio is the median of
the rounds' own ratios. docs/performance.md says how to read it.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from bench import report
from bench.backlog import forget, payload_size, produce
from bench.contestants import Contestant, Native, Ours
from bench.drain import Drain, drain
from bench.latency import Latency, latency
from bench.servers import SETTINGS, Servers

_DURABLE_SECONDS = 8.0  # of the backlog that the durable trigger is given; it would take minutes


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--events", type=int, default=150_000, help="in a backlog (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=4, help="of each drain (default %(default)s)")
    parser.add_argument("--rate", type=float, default=200.0, help="events a second for latency")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each latency run")
    parser.add_argument("--quick", action="store_true", help="a short run: 60,000 events, 2 rounds, 4 s")
    parser.add_argument("--huge", action="store_true", help="also one transaction of 1,000,000 rows")
    parser.add_argument(
        "--only", choices=["single", "bulk", "latency", "huge"], action="append", help="these parts only"
    )
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.events, chosen.rounds, chosen.seconds = 60_000, 2, 4.0
    chosen.parts = chosen.only or ["single", "bulk", "latency"] + (["huge"] if chosen.huge else [])
    return chosen


class Bench:
    """The parts of a run; `figures` and `ratios` fill as they go."""

    def __init__(self, servers: Servers, chosen: argparse.Namespace) -> None:
        self.servers = servers
        self.chosen = chosen
        self.native = Native(servers)
        self.durable = Native(servers, upsert=True, commit="on")
        self.ours = Ours(servers, servers.workspace.root)
        self.figures: dict[str, Any] = {}
        self.ratios: dict[str, float] = {}

    def single(self) -> None:
        """A backlog of single-row commits."""
        drains = self._rounds(1, [self.native, self.ours], self.durable)
        figures = self._told("single", f"{self.chosen.events:,} events, one a transaction", drains)
        ours = drains[self.ours.name]
        self._ratio("drain_single_vs_native", ours, drains[self.native.name])
        self._ratio("drain_single_vs_native_upsert_durable", ours, drains[self.durable.name])
        self.figures["drain_single"] = figures

    def bulk(self) -> None:
        """A backlog of 1,000-row transactions."""
        drains = self._rounds(1000, [self.native, self.ours])
        figures = self._told("bulk", f"{self.chosen.events:,} events, 1,000 a transaction", drains)
        self._ratio("drain_bulk_vs_native", drains[self.ours.name], drains[self.native.name])
        self.figures["drain_bulk"] = figures

    def _rounds(
        self, rows: int, contestants: list[Contestant], extra: Contestant | None = None
    ) -> dict[str, list[Drain]]:
        everybody = [*contestants, extra] if extra else contestants
        drains: dict[str, list[Drain]] = {contestant.name: [] for contestant in everybody}
        for number in range(self.chosen.rounds):
            for contestant in everybody:
                contestant.prepare()
            last = produce(self.servers, self.chosen.events, rows)
            for contestant in contestants if number % 2 == 0 else contestants[::-1]:
                drains[contestant.name].append(drain(self.servers, contestant, last))
            if extra is not None:
                drains[extra.name].append(drain(self.servers, extra, last, at_most=_DURABLE_SECONDS))
            line = "  ".join(
                f"{name.partition(',')[0]} {some[-1].rate:,.0f}" for name, some in drains.items()
            )
            print(f"  round {number + 1}: {line} ev/s", flush=True)
            forget(self.servers)
        return drains

    def _told(self, part: str, title: str, drains: dict[str, list[Drain]]) -> dict[str, Any]:
        figures = {name: report.summary(some) for name, some in drains.items()}
        report.print_drains(f"{part}: {title}", figures)
        return figures

    def _ratio(self, name: str, ours: list[Drain], theirs: list[Drain]) -> None:
        self.ratios[name] = report.paired([d.rate for d in ours], [d.rate for d in theirs])

    def latency(self) -> None:
        """Commit to visible at a steady rate."""
        runs: dict[str, list[Latency]] = {self.native.name: [], self.ours.name: []}
        contestants: list[Contestant] = [self.native, self.ours]
        for number in range(min(3, self.chosen.rounds)):
            for contestant in contestants if number % 2 == 0 else contestants[::-1]:
                run = latency(self.servers, contestant, self.chosen.rate, self.chosen.seconds)
                runs[contestant.name].append(run)
        figures = {name: report.latency_summary(some) for name, some in runs.items()}
        report.print_latency(f"latency: {self.chosen.rate:.0f} single-row commits a second", figures)
        ours, native = runs[self.ours.name], runs[self.native.name]
        self.ratios["latency_p50_vs_native"] = report.paired([r.p50 for r in ours], [r.p50 for r in native])
        self.ratios["latency_p99_vs_native"] = report.paired([r.p99 for r in ours], [r.p99 for r in native])
        self.figures["latency"] = figures

    def huge(self) -> None:
        """One transaction of a million rows: the memory that it takes."""
        self.ours.prepare()
        last = produce(self.servers, 1_000_000, 1_000_000)
        done = drain(self.servers, self.ours, last)
        forget(self.servers)
        peak = done.memory or 0
        print(f"\nhuge: a transaction of 1,000,000 rows: peak RSS {peak / 1e6:.0f} MB")
        self.figures["huge"] = {
            "rows": done.rows,
            "peak_rss_bytes": peak,
            "seconds_to_commit": round(done.to_first, 1),
        }


def main() -> None:
    """Run, print, write build/bench.json."""
    chosen = options()
    machine = report.machine()
    began = time.monotonic()
    with Servers() as servers:
        print(
            f"PostgreSQL {servers.version()}, two clusters, TCP; {machine['cores']} cores, {machine['processor']}"
        )
        print("both servers: " + ", ".join(f"{name} = {value}" for name, value in SETTINGS.items()))
        bench = Bench(servers, chosen)
        for part in chosen.parts:
            getattr(bench, part)()
        size = payload_size(servers)
        versions = report.versions(servers.version())
    print("\nratios, ours to native (latency: less is better)")
    for name, ratio in bench.ratios.items():
        print(f"  {name:44} {ratio:.2f}")
    report.write(
        {
            "machine": machine,
            "versions": versions,
            "settings": {**SETTINGS, "transport": "TCP, 127.0.0.1, no TLS", "payload_bytes": size},
            "options": {"events": chosen.events, "rounds": chosen.rounds, "rate": chosen.rate},
            "seconds": round(time.monotonic() - began),
            "figures": bench.figures,
            "ratios": bench.ratios,
        }
    )


if __name__ == "__main__":
    main()
