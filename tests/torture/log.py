"""Faults at random over a log of three nodes: `python -m tests.torture.log --faults 500 --seed 7`.

Two relays, three workers, two targets (log_rig.py). Under load each partition's effects must be a prefix of what was
committed; every 50 faults the producers pause, and nothing may be lost or doubled. A class of faults that never struck
is a failure, as in the other runs, unless the run was short.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg

from tests.support.producers import Traffic
from tests.support.scaled import prefixes
from tests.support.servers import Database
from tests.support.truth import Unit, conservation
from tests.torture.log_rig import PARTITIONS, LogRig
from tests.torture.rig import STALLED

ROUND = 50
"""Faults between two checks at rest."""
WHOLE = 300
"""Faults from which on a run must have had every class."""
CLASSES = (
    "node killed",
    "node frozen",
    "log purged",
    "log deleted",
    "single frames lost",
    "frames doubled and disordered",
    "relay killed",
    "relay frozen",
    "worker killed",
    "worker frozen",
    "worker stopped",
    "killed at a failpoint",
    "source crashed",
    "target crashed",
    "source paused",
    "target paused",
    "links reset",
    "slot dropped",
    "publication made again",
    "one target locked",
)
_COMMITTED = "select count(*) from rig.truth where type = 'usage.limit_reached'"
_APPLIED = "select count(distinct row ->> 'event_id') from rig.effects"
_AROUND = """
    select n, xid::text, row ->> 'event_id' from rig.effects
    where n between (select min(n) - 40 from rig.effects where row ->> 'event_id' = %s::text) and
        (select min(n) + 10 from rig.effects where row ->> 'event_id' = %s::text) order by n""".replace(
    "%s", "%(id)s"
)
_KNOWN = """
    select t.event_id::text, t.n, t.key, e.seq, e.xid::text
    from rig.truth t left join outbox.event e on e.id = t.event_id where t.event_id::text = any(%s)"""


class LawBroken(Exception):
    """What was found."""


class Run:
    """One run on a rig."""

    def __init__(self, rig: LogRig) -> None:
        self.rig = rig
        self.units = {"events": rig.world.target, "copy": rig.second}
        self.checks: list[dict[str, Any]] = []
        self.peeks = 0

    def torture(self, faults: int, seed: int) -> None:
        """Raises LawBroken."""
        rig, left = self.rig, faults
        rig.start()
        self._settle()
        while left:
            with Traffic(rig.world.source.dsn, producers=3, burst=2500, pause=0.08, seed=seed + left):
                for _ in range(min(ROUND, left)):
                    left -= 1
                    self._strike()
                    if left % 25 == 0:
                        self._peek()
            self._judge()

    def _strike(self) -> None:
        rig = self.rig
        before = rig.happened.counts.total()
        while rig.happened.counts.total() == before:  # it may find nothing to strike
            with contextlib.suppress(psycopg.OperationalError):  # the server is down at the moment
                rig.chance.choice(rig.every)()
            rig.tend()
            time.sleep(rig.chance.uniform(0.05, 1.0))

    def _peek(self) -> None:
        """Amid everything: of each partition a prefix is there."""
        for name, target in self.units.items():
            try:
                wrong = prefixes(self.rig.world.source, target, PARTITIONS)
            except psycopg.OperationalError:
                continue
            self.peeks += 1
            if wrong:
                raise LawBroken(f"{name}: not a prefix: {wrong[:5]}\n{self._around(target, wrong[0])}")

    def _around(self, target: Database, wrong: str) -> str:
        """What came to the target about then, in its order."""
        rows = target.execute(_AROUND, {"id": wrong.partition(":")[0]})
        ids = [row[2] for row in rows]
        known = {row[0]: row[1:] for row in self.rig.world.source.execute(_KNOWN, [ids])}
        return "\n".join(f"{row} {known.get(row[2])}" for row in rows)

    def _settle(self) -> float:
        """All faults end, and everything arrives: as long as there is progress."""
        self.rig.clear()
        began = moved = time.monotonic()
        last: object = None
        while True:
            self.rig.tend(armed=False)
            try:
                wanted = self.rig.world.source.value(_COMMITTED)
                there = [int(one.value(_APPLIED)) for one in self.units.values()]
            except psycopg.OperationalError:
                there, wanted = [], 1
            if there and min(there) >= wanted:
                return time.monotonic() - began
            if there != last:
                last, moved = there, time.monotonic()
            if time.monotonic() > moved + STALLED:
                return time.monotonic() - began  # the law says what is missing
            time.sleep(0.3)

    def _judge(self) -> None:
        took = self._settle()
        verdicts = {
            name: conservation(self.rig.world.source.dsn, target.dsn, Unit(destination=name))
            for name, target in self.units.items()
        }
        wrong = [f"{name}: {verdict}" for name, verdict in verdicts.items() if not verdict.holds]
        for name, target in self.units.items():
            wrong += [f"{name}: {one}" for one in prefixes(self.rig.world.source, target, PARTITIONS)[:3]]
        print(
            f"{time.strftime('%H:%M:%S')} after {self.rig.happened.counts.total()} faults, {took:.0f} s to catch up"
        )
        for name, verdict in verdicts.items():
            print(f"    {name}: {verdict}", flush=True)
        self.checks.append({"took": took, "verdicts": {name: str(one) for name, one in verdicts.items()}})
        if wrong:
            raise LawBroken("; ".join(wrong))


def table(report: dict[str, Any]) -> str:
    lines = [f"{'fault':34} {'times':>6}", *(f"{name:34} {n:6}" for name, n in report["happened"].items())]
    last = report["checks"][-1]["verdicts"] if report["checks"] else {}
    return "\n".join([*lines, *(f"{name}: {verdict}" for name, verdict in last.items())])


def run(faults: int, seed: int, directory: Path) -> dict[str, Any]:
    """The report. ok: the law held each time, and in a whole run every class of fault struck."""
    rig = LogRig(directory, random.Random(seed))
    made = Run(rig)
    failure, began = "", time.monotonic()
    try:
        made.torture(faults, seed)
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    finally:
        tails = rig.world.log_tails() if failure else ""
        rig.close()
    missing = [name for name in CLASSES if not rig.happened.counts[name]]
    return {
        "ok": not failure and bool(made.checks) and (not missing or faults < WHOLE),
        "seed": seed,
        "faults": faults,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "failure": failure,
        "never_happened": missing,
        "prefixes_checked_under_load": made.peeks,
        "happened": dict(sorted(rig.happened.counts.items())),
        "checks": made.checks,
        "log": rig.happened.log,
        "tails": tails,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture.log", description=__doc__)
    parser.add_argument("--faults", type=int, default=60, help="default %(default)s: about two minutes")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--report", type=Path, default=Path("build/torture-log.json"))
    chosen = parser.parse_args(arguments)
    seed = chosen.seed if chosen.seed is not None else random.SystemRandom().randrange(1 << 31)
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="torture-") as directory:
        report = run(chosen.faults, seed, Path(directory))
    chosen.report.parent.mkdir(parents=True, exist_ok=True)
    chosen.report.write_text(json.dumps(report, indent=1, default=str))
    print(table(report), report["failure"], f"never happened: {report['never_happened']}", sep="\n")
    print(f"{'ok' if report['ok'] else 'FAILED'} in {report['minutes']} minutes; report: {chosen.report}")
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
