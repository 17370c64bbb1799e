"""`python -m bench.peers`: the bridge beside native replication and the peers that the registries have.

In every round each contestant drains the same backlog, then takes a steady trickle; at the end each is killed twice
on its way through a backlog. Writes build/bench-peers.json and build/bench-peers.md, a table for docs/comparison.md.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from bench import report
from bench.backlog import forget, payload_size, produce
from bench.drain import Drain, drain
from bench.latency import Latency, latency
from bench.peers import table
from bench.peers.catalog import not_to_be_had, peers
from bench.peers.contestants import NativeWorker, Peer, Product
from bench.peers.install import Installed, install
from bench.peers.measure import Killable, Kills, WholeCost, kills
from bench.servers import Servers


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--events", type=int, default=60_000, help="in a backlog (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of drains and trickles (default %(default)s)")
    parser.add_argument("--limit", type=float, default=15.0, help="seconds of a drain at most")
    parser.add_argument("--rate", type=float, default=200.0, help="events a second for latency")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each trickle")
    parser.add_argument("--killed", type=int, default=30_000, help="events of the backlog for SIGKILLs")
    parser.add_argument("--patience", type=float, default=20.0, help="seconds without an effect that end it")
    parser.add_argument("--into", type=Path, help="also put the table into this document, between its marks")
    parser.add_argument("--only", action="append", help="these contestants (how a name begins)")
    parser.add_argument(
        "--part", action="append", choices=["drain", "latency", "kills"], help="these parts only"
    )
    chosen = parser.parse_args()
    chosen.part = chosen.part or ["drain", "latency", "kills"]
    return chosen


class Run:
    """Contestants in groups that share a backlog; a queue has its own, because a trigger fills it as events come."""

    def __init__(self, servers: Servers, installed: Installed, chosen: argparse.Namespace) -> None:
        self.servers = servers
        self.chosen = chosen
        self.failed = not_to_be_had(installed)
        slots: list[Killable] = [Product(servers, servers.workspace.root), NativeWorker(servers)]
        slots.append(NativeWorker(servers, upsert=True))
        queues: list[list[Killable]] = []
        for spec in peers(installed):
            if not self._wanted(spec.name):
                continue
            try:
                peer = Peer(servers, spec, servers.workspace.root)
            except Exception as error:
                self._fails(spec.name, error)
                continue
            if spec.slot:
                slots.append(peer)
            else:
                queues.append([peer])
        durable: list[Killable] = [NativeWorker(servers, upsert=True, commit="on")]
        groups = [slots, durable, *queues]
        self.groups = [[one for one in group if self._wanted(one.name)] for group in groups]
        everybody = [one.name for group in self.groups for one in group]
        self.drains: dict[str, list[Drain]] = {name: [] for name in everybody}
        self.latencies: dict[str, list[Latency]] = {name: [] for name in everybody}
        self.kills: dict[str, Kills] = {}
        self.backlog: set[UUID] = set()

    def _wanted(self, name: str) -> bool:
        return not self.chosen.only or any(name.startswith(word) for word in self.chosen.only)

    def round(self, number: int) -> None:
        """Drains, then trickles; every other round the other way round."""
        if "drain" in self.chosen.part:
            for group in self.groups:
                self._with_backlog(group, number, self.chosen.events, self._drain)
        if "latency" in self.chosen.part:
            for one in self._running(self._ordered([one for group in self.groups for one in group], number)):
                self._try(one, partial(self._latency, one))
                forget(self.servers)

    def killed(self) -> None:
        """Two SIGKILLs each."""
        for group in self.groups:
            self._with_backlog(group, 0, self.chosen.killed, self._kill)

    def _with_backlog(
        self,
        group: Sequence[Killable],
        number: int,
        events: int,
        act: Callable[[Killable, UUID], None],
    ) -> None:
        prepared = [one for one in self._running(group) if self._try(one, one.prepare)]
        if not prepared:
            return
        before = set(self.servers.on_source("select id from outbox.event"))
        last = produce(self.servers, events, 1)
        self.backlog = {id for (id,) in set(self.servers.on_source("select id from outbox.event")) - before}
        for one in self._ordered(prepared, number):
            self._try(one, partial(act, one, last))
        forget(self.servers)

    def _drain(self, one: Killable, last: UUID) -> None:
        measure = partial(WholeCost, servers=self.servers)
        done = drain(self.servers, one, last, at_most=self.chosen.limit, measure=measure)
        self.drains[one.name].append(done)
        print(f"  {one.name:44} {done.rate:>9,.0f} ev/s  {done.rows:,} rows", flush=True)

    def _latency(self, one: Killable) -> None:
        measure = partial(WholeCost, servers=self.servers)
        run = latency(self.servers, one, self.chosen.rate, self.chosen.seconds, measure=measure)
        self.latencies[one.name].append(run)
        print(f"  {one.name:44} p50 {run.p50:.2f}  p99 {run.p99:.2f} ms", flush=True)

    def _kill(self, one: Killable, _last: UUID) -> None:
        done = self.kills[one.name] = kills(self.servers, one, self.backlog, self.chosen.patience)
        print(
            f"  {one.name:44} missing {done.missing:,}  doubled {done.doubled:,}, killed at {done.killed_at}",
            flush=True,
        )

    def _ordered(self, group: Sequence[Killable], number: int) -> list[Killable]:
        return list(group) if number % 2 == 0 else list(group)[::-1]

    def _running(self, group: Sequence[Killable]) -> list[Killable]:
        return [one for one in group if one.name not in self.failed]

    def _try(self, one: Killable, act: Callable[[], None]) -> bool:
        """A contestant that fails is out, and the table says why; the others go on."""
        try:
            act()
        except Exception as error:
            self._fails(one.name, error)
            if isinstance(one, Peer):
                print(one.log_tail(), file=sys.stderr, flush=True)
            try:
                one.stop()
            except Exception as again:
                print(f"  {one.name}: {again}", file=sys.stderr)
            return False
        return True

    def _fails(self, name: str, error: Exception) -> None:
        self.failed[name] = str(error).strip().splitlines()[0]
        traceback.print_exception(error)


def main() -> None:
    """Install, run, print, write; after each part, so that a run that is ended keeps what it has measured."""
    chosen = options()
    machine = report.machine()
    began = time.monotonic()
    installed = install()
    with Servers() as servers:
        print(f"PostgreSQL {servers.version()}, two clusters, TCP; {machine['cores']} cores")
        run = Run(servers, installed, chosen)
        for number in range(chosen.rounds):
            print(f"round {number + 1}", flush=True)
            run.round(number)
            text = tell(run, installed, machine, rounds=number + 1, seconds=time.monotonic() - began)
        if "kills" in chosen.part:
            print("two SIGKILLs", flush=True)
            run.killed()
            text = tell(run, installed, machine, rounds=chosen.rounds, seconds=time.monotonic() - began)
    print(f"\n{text}")
    print(f"\nwritten: {table.MARKDOWN}, {table.JSON}")
    if chosen.into:
        chosen.into.write_text(table.place(text, chosen.into.read_text()))


def tell(run: Run, installed: Installed, machine: dict[str, Any], *, rounds: int, seconds: float) -> str:
    """Write both files; the table."""
    settings = {name: value for name, value in vars(run.chosen).items() if name != "into"}
    postgres = run.servers.version()
    figures = table.figures(run.drains, run.latencies, run.kills)
    arguments = " ".join(sys.argv[1:])
    text = table.markdown(
        figures,
        [(spec.name, spec.version, spec.configured) for spec in peers(installed)],
        run.failed,
        machine=machine,
        postgres=postgres,
        payload=payload_size(run.servers),
        command="make bench-peers" + (f" ARGS='{arguments}'" if arguments else ""),
        options={**settings, "rounds": rounds},
    )
    measured = {
        "machine": machine,
        "versions": {**report.versions(postgres), "peers": installed.versions},
        "options": settings,
        "failed": run.failed,
        "seconds": round(seconds),
        "figures": figures,
    }
    table.write(text, measured)
    return text


if __name__ == "__main__":
    main()
