"""Random walks through the simulation, each ending at rest with the promise checked.

`python -m tests.model.walk --walks N --seed S` prints what really happened; a class of fault that never
did is a failure. Apart from the hypothesis machine because it is ten times as fast.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter
from random import Random

from bridge.protocol.requests import Receive, Wait
from tests.model import checks, faults
from tests.model.simulation import Bridge, Simulation

MUST_HAPPEN = (
    *("act failed", "commit answer lost", "bridge crashed", "second bridge beside a live one"),
    *("died with a batch in flight", "died inside a huge transaction", "late commit of an orphan"),
    *("zombie's batch fenced", "waited for a late commit", "batch rolled back by the server"),
    *("target crashed", "target restored to an older copy", "slot dropped", "slot advanced by somebody"),
    *("slot recreated by somebody", "somebody made a slot of our name", "slot invalidated"),
    *("publication toggled", "publication dropped", "publication recreated", "pruned"),
    *("rows that the publication withheld", "decoder stopped on a row without publication"),
    *("source crashed", "source crash lost commits", "confirmed_flush went back"),
    *("source restored from a disk copy", "restored source passed the old WAL"),
    *("promoted with a failover slot", "promoted without a slot", "promotion lost commits"),
    *("capture switched", "committed before an older xid", "commit not flushed"),
    *("prepared transaction committed", "decodable before it is visible", "rolled back with rows"),
    *("waited for a slot to be made", "a goal showed a running xid", "stored a slot's goal", "chunk sent"),
    *("a commit inside an observation", "forgot applied xids above a switch point"),
    *("a part of a transaction withheld", "a registration came late and was refused"),
    *("ended: fenced", "ended: history_diverged"),
    *("ended: source_behind", "ended: outbox_pruned", "ended: publication_missing"),
    *("ended: publication_changed", "ended: slot_advanced", "ended: ledger_missing", "ended: slot_in_use"),
    *("strangers in the table", "a first catch-up took strangers", "a stranger came by the stream"),
    *("a row moved to another partition", "ended: foreign_xids"),
    *("a bridge of another source", "another source ended: stream_name_taken", "refused in the fence"),
    *("another source ended: other_system",),
    *("ended: stand_by", "target restored under open connections"),
)


def new_simulation(
    rng: Random, focus: tuple[faults.Act, ...] = ()
) -> tuple[Simulation, dict[faults.Act, float]]:
    """Every walk has its own settings and its own mixture of faults; those in `focus` happen often."""
    simulation = Simulation(
        rng,
        capture="poll" if rng.random() < 0.25 else "slot",
        since=rng.choice((None, None, None, None, "infinity", "20")),
        failing=rng.choice((0.0, 0.01, 0.05)),
    )
    simulation.two_phase = rng.random() < 0.5
    simulation.stopping = rng.choice((0.0, 0.01))
    simulation.source.decoder_raises = rng.random() < 0.5
    simulation.source.partitioned = rng.random() < 0.5
    if rng.random() < 0.2:
        restored(simulation)
    acts = dict(faults.WORK)
    severity = rng.choice((0.0, 0.5, 1.0, 2.0))
    for act, weight in faults.FAULTS.items():
        if rng.random() < 0.7:
            acts[act] = weight * severity
    if rng.random() < 0.35:
        acts |= faults.HISTORY
    acts |= dict.fromkeys(focus, 4.0)
    return simulation, acts


def restored(simulation: Simulation) -> None:
    """The outbox has rows from another cluster, or from before it had the column, when the stream begins."""
    transaction = simulation.source.begin()
    for says in (None, 60, 90):
        simulation.serial += 1
        simulation.source.insert_stranger(transaction, f"e{simulation.serial}", says, simulation.clock)
    simulation.source.record(transaction)
    simulation.source.leave(transaction)


def drive(simulation: Simulation, acts: dict[faults.Act, float], steps: int) -> None:
    """Interleave bridges, producers and faults; stop where the bridge has halted for good."""
    rng = simulation.rng
    names, weights = list(acts), list(acts.values())
    chosen = rng.choices(names, weights, k=steps)
    suspended: Bridge | None = None
    for act in chosen:
        if not simulation.bridges:
            simulation.start_bridge()
        for _ in range(rng.choice((0, 1, 1, 2, 4))):
            if not simulation.bridges:
                break
            if rng.random() < 0.02:
                suspended = rng.choice(simulation.bridges)
            elif rng.random() < 0.02:
                suspended = None
            bridge = rng.choice(simulation.bridges)
            if bridge is not suspended:
                simulation.step(bridge)
        if simulation.halted is not None:
            return
        act(simulation)


def rest(simulation: Simulation) -> None:
    """Faults are over: transactions end, one bridge runs until it has nothing to do. Then the promise."""
    simulation.failing, simulation.stopping, simulation.calm = 0.0, 0.0, True
    for bridge in list(simulation.bridges):
        simulation.crash(bridge)
    while simulation.orphans:
        sent = simulation.orphans.pop()
        if simulation.chance(0.5):
            simulation.progress(sent)
            simulation.progress(sent)
        simulation.target.roll_back(sent)
    while simulation.dead_readers:
        faults.reader_noticed(simulation)
    for transaction in list(simulation.source.running.values()):
        if transaction.recorded:
            simulation.source.leave(transaction)
        elif simulation.chance(0.5):
            simulation.record(transaction)
            simulation.source.leave(transaction)
        else:
            simulation.source.abort(transaction)
    simulation.source.flush()
    for _ in range(2):
        faults.recreate_publication(simulation)
        run_until_idle(simulation)
        if simulation.halted is not None:
            return
        checks.promise(simulation)
        simulation.emit(1)
        simulation.source.flush()


def run_until_idle(simulation: Simulation, limit: int = 3000) -> None:
    for _ in range(limit):
        if not simulation.bridges:
            simulation.start_bridge()
        bridge = simulation.bridges[0]
        if bridge.idle > 12 and isinstance(bridge.request, Receive | Wait) and bridge.sent is None:
            bridge.idle = 0
            return
        simulation.step(bridge)
        if simulation.halted is not None:
            return
    raise checks.Violation(f"never came to rest: {simulation.bridges} {simulation.target.ledger}")


def walk(
    seed: str, counts: Counter[str] | None = None, steps: int = 160, focus: tuple[faults.Act, ...] = ()
) -> Simulation:
    """One walk. Raises checks.Violation."""
    simulation, acts = new_simulation(Random(seed), focus)
    try:
        drive(simulation, acts, steps)
        if simulation.halted is None:
            rest(simulation)
    finally:
        if counts is not None:
            counts.update(simulation.counts)
            counts["steps"] += simulation.clock
            counts["walks"] += 1
            counts["events"] += simulation.serial
            counts["walks that ended in a halt"] += simulation.halted is not None
    return simulation


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model.walk", description=__doc__)
    parser.add_argument("--walks", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--log", action="store_true", help="relays and partitions over a log")
    parser.add_argument("--keep-going", action="store_true", help="count violations instead of stopping")
    parser.add_argument("--figures", action="store_true", help="print every count")
    options = parser.parse_args()
    one_walk, must_happen = walk, MUST_HAPPEN
    if options.log:
        from tests.model import log_walk  # noqa: PLC0415  # which imports this

        one_walk, must_happen = log_walk.walk_log, log_walk.MUST_HAPPEN
    counts: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    began = time.monotonic()
    for number in range(options.walks):
        seed = f"{options.seed}/{number}"
        try:
            one_walk(seed, counts, options.steps)
        except AssertionError as error:
            failures[str(error)[:60]] += 1
            print(f"walk {seed}: {error}")
            if not options.keep_going:
                traceback.print_exc()
                return 1
    never = [name for name in must_happen if not counts[name]]
    if options.figures:
        for name, count in sorted(counts.items()):
            print(f"{count:>9}  {name}")
    print(
        f"{counts['walks']} walks, {counts['steps']} requests, {counts['events']} events, "
        f"{counts['walks that ended in a halt']} ended in a halt, {time.monotonic() - began:.0f} s"
    )
    print(f"violations: {sum(failures.values())}; never happened: {never or 'none'}")
    for words, count in failures.most_common():
        print(f"{count:>6}  {words}")
    return 1 if failures or never else 0


if __name__ == "__main__":
    sys.exit(main())
