"""The conservation law, with the producers at rest and all faults cleared."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import psycopg

from tests.faults.world import until
from tests.support.servers import Database
from tests.support.truth import Verdict, conservation
from tests.torturing.rig import STALLED, Rig


class Law:
    """Judges the rig. withheld: the times in which a publication left inserts out, unix seconds; it may grow."""

    def __init__(self, rig: Rig, withheld: Sequence[tuple[float, float]]) -> None:
        self._rig = rig
        self._world = rig.world
        self._withheld = withheld

    def judge(self) -> dict[str, Any]:
        """With the producers at rest and all faults cleared."""
        self._rig.clear()
        for database in (self._world.source, self._world.target):
            until(lambda database=database: _accepts(database), "the server accepts", STALLED)  # type: ignore[misc]
        left = self._world.source.execute("select gid from pg_prepared_xacts")  # by a crashed producer
        for (gid,) in left:
            self._world.source.execute(f"commit prepared '{gid}'")
        took = self._caught_up()
        verdict = conservation(self._world.source.dsn, self._world.target.dsn)
        dead = len(self._world.dead_letters())
        self._rig.happened.counts["dead letters"] = dead
        if self._rig.slot_exists():
            self._world.check_confirmed()
        late = len(verdict.out_of_order) if self._late_by_right(verdict) else 0
        holds = verdict.holds or (bool(late) and replace(verdict, out_of_order=[]).holds)
        found = {
            "holds": holds,
            "verdict": str(verdict),
            "late_because_withheld": late,
            "seconds_to_catch_up": round(took, 2),
        }
        rightly = f", all of them withheld by a publication: {late}" if late else ""
        print(f"{time.strftime('%H:%M:%S')} {verdict}{rightly} ({took:.0f} s to catch up)", flush=True)
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
                f"nothing applied for {STALLED:.0f} s\n{self._world._tails()}"
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
            any(began - 1 <= at[str(event)] <= ended + 0.1 for began, ended in self._withheld)
            for event in verdict.out_of_order
        )


def _accepts(database: Database) -> bool:
    try:
        database.value("select 1")
    except psycopg.OperationalError:
        return False
    return True
