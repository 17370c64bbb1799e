"""Faults at random under load: `python -m tests.torture --minutes 30 --seed 7 --report build/torture.json`.

Four producers, some of whose events are poison (poison.py); two bridges; a proxy before each server. Every minute the
producers pause and the conservation law must hold. The report says what really happened; a class of faults that never
struck is a failure, because then the run has proved less than it says.
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
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg

from tests.support.servers import Database
from tests.support.truth import Unit, Verdict, conservation
from tests.support.world import until
from tests.torture import poison
from tests.torture.faults import Faults
from tests.torture.load import Load, at_rest
from tests.torture.own import letters_of_nulls
from tests.torture.rig import STALLED, Rig

KILLS = 5
"""SIGKILLs more in each round of all faults."""

LONGER = 300.0
"""Seconds more, at most, for the classes of faults that have not struck yet."""

WHOLE = 5.0
"""Minutes from which on a run must have had every class. A shorter one is told what it lacks."""


class Law:
    """The conservation law on the rig, beside what the faults did to it."""

    def __init__(self, rig: Rig, faults: Faults) -> None:
        self._rig = rig
        self._world = rig.world
        self._faults = faults

    def judge(self) -> dict[str, Any]:
        """With the producers at rest and all faults cleared."""
        self._rig.clear()
        for database in (self._world.source, self._world.target):
            until(lambda database=database: _accepts(database), "the server accepts", STALLED)  # type: ignore[misc]
        left = self._world.source.execute("select gid from pg_prepared_xacts")  # by a crashed producer
        for (gid,) in left:
            self._world.source.execute(f"commit prepared '{gid}'")
        took = self._caught_up()
        verdicts = [
            conservation(self._world.source.dsn, self._world.target.dsn, unit)
            for unit in (Unit(), *poison.units())
        ]
        self._rig.happened.counts["dead letters"] = len(self._world.dead_letters())
        fates = poison.fates(self._world)
        self._rig.happened.counts.update(fates.committed - self._rig.happened.counts)
        if self._rig.slot_exists():
            self._world.check_confirmed()
        late = sum(len(verdict.out_of_order) for verdict in verdicts if self._late_by_right(verdict))
        holds = all(
            verdict.holds or (self._late_by_right(verdict) and replace(verdict, out_of_order=[]).holds)
            for verdict in verdicts
        )
        holds = holds and not fates.wrong
        nulls = self._faults.nulls - letters_of_nulls(self._world)
        holds = holds and nulls == 0
        found = {
            "holds": holds,
            "verdicts": [str(verdict) for verdict in verdicts],
            "poison": dict(fates.committed),
            "wrong_fates": fates.wrong[:100],
            "late_because_withheld": late,
            "rows_with_null_that_are_no_dead_letter": nulls,
            "seconds_to_catch_up": round(took, 2),
        }
        rightly = f", all of them withheld by a publication: {late}" if late else ""
        print(f"{time.strftime('%H:%M:%S')} ({took:.0f} s to catch up{rightly})", flush=True)
        for verdict in verdicts:
            print(f"    {verdict}", flush=True)
        wrong = "".join(f"\n    {fate}" for fate in fates.wrong[:10])
        print(
            f"    poison and look-alikes {fates.committed.total()}, wrong fates {len(fates.wrong)}{wrong}",
            flush=True,
        )
        return found

    def _caught_up(self) -> float:
        """Wait for a marker, as long as more and more effects arrive; seconds. Armed bridges may still die of their
        failpoints: those that follow are not armed."""
        began = moved = time.monotonic()
        with self._world.producer("marker") as producer:
            [marker] = producer.transaction(1)
        arrived = "select count(*) from rig.effects where row ->> 'event_id' = %s"
        last = None
        while not self._world.target.value(arrived, [str(marker)]):
            self._rig.tend(armed=False)
            newest = self._world.target.value("select max(n) from rig.effects")
            if newest != last:
                last, moved = newest, time.monotonic()
            assert time.monotonic() < moved + STALLED, (
                f"nothing applied for {STALLED:.0f} s\n{self._world.log_tails()}"
            )
            time.sleep(0.2)
        return time.monotonic() - began

    def _late_by_right(self, verdict: Verdict) -> bool:
        """All that came out of order was inserted while a publication withheld inserts: such rows come later than
        their neighbours (docs/guarantees.md, The promise). A second for a transaction's begin and its insert."""
        at = {
            str(event): moment
            for event, moment in self._world.source.execute(
                "select id::text, extract(epoch from occurred_at)::float8 from outbox.event where id = any(%s)",
                [verdict.out_of_order],
            )
        }
        return all(
            any(began - 1 <= at[str(event)] <= ended + 0.1 for began, ended in self._faults.withheld)
            for event in verdict.out_of_order
        )


def _accepts(database: Database) -> bool:
    try:
        database.value("select 1")
    except psycopg.OperationalError:
        return False
    return True


def torture(
    minutes: float, seed: int, directory: Path, *, own: bool = False, latin1: bool = False
) -> dict[str, Any]:
    """Run; the report. `ok`: the law held every time and, in a run of WHOLE minutes, every class of fault struck. While
    one has not, such a run goes on, up to five minutes more."""
    chance = random.Random(seed)
    rig = Rig(directory, chance, own=own, latin1=latin1)
    faults = Faults(rig)
    law = Law(rig, faults)
    go = threading.Event()
    loads = [Load(rig.world.source, f"producer-{n}", seed, go, rig.happened, latin1=latin1) for n in range(4)]
    checks: list[dict[str, Any]] = []
    failure = ""
    began = time.monotonic()
    try:
        rig.start()
        for load in loads:
            load.start()
        end = began + minutes * 60
        left: list[Callable[[], None]] = []
        while not checks or (checks[-1]["holds"] and time.monotonic() < end):
            go.set()
            pause = min(time.monotonic() + 60, end)
            while time.monotonic() < pause:
                # each before any again, and between them a kill: that is what the promise is first of all about
                left = left or chance.sample(
                    [*faults.every, *[faults.kill] * KILLS], len(faults.every) + KILLS
                )
                # a server is just down, or the slot was given up a moment ago
                with contextlib.suppress(psycopg.OperationalError, psycopg.errors.UndefinedObject):
                    left.pop()()
                rig.tend()
                time.sleep(chance.uniform(0.1, 1.2))
            go.clear()
            at_rest(loads)
            checks.append(law.judge())
            if time.monotonic() >= end and minutes >= WHOLE and rig.happened.missing(own=own, latin1=latin1):
                end = min(time.monotonic() + 60, began + minutes * 60 + LONGER)
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
        print(failure, flush=True)
    finally:
        for load in loads:
            load.ended.set()
        go.set()
        for load in loads:
            if load.is_alive():
                load.join(30)
        rig.close()
    missing = rig.happened.missing(own=own, latin1=latin1)
    struck = not missing or minutes < WHOLE
    return {
        "ok": not failure and struck and bool(checks) and all(check["holds"] for check in checks),
        "seed": seed,
        "minutes": round((time.monotonic() - began) / 60, 2),
        "failure": failure,
        "never_happened": missing,
        "happened": dict(sorted(rig.happened.counts.items())),
        "checks": checks,
        "faults": rig.happened.log,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--report", type=Path, default=Path("build/torture.json"))
    parser.add_argument("--own", action="store_true", help="an outbox of the customer's own (own.py)")
    parser.add_argument("--latin1", action="store_true", help="a target that does not hold every text")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1 << 31)
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="torture-") as directory:
        report = torture(arguments.minutes, seed, Path(directory), own=arguments.own, latin1=arguments.latin1)
    arguments.report.parent.mkdir(parents=True, exist_ok=True)
    arguments.report.write_text(json.dumps(report, indent=1, default=str))
    print(json.dumps({key: report[key] for key in ("ok", "failure", "never_happened", "happened")}, indent=1))
    print(f"report: {arguments.report}")
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
