"""The size at which a rare fault shows: 200,000 events, 20 SIGKILLs, every field of every event compared."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.support.bridge_process import BridgeProcess
from tests.support.producers import Producer
from tests.support.servers import Database
from tests.support.truth import conservation, settle
from tests.support.world import until

SINGLES = 20_000
BURSTS = 36  # of 5,000 rows in one transaction
KILLS = 20
PORTION = SINGLES // KILLS  # is begun when the bridge is back from the kill before


class Producing(threading.Thread):
    """Produces a portion for each release of `more`; `done` counts its single-row transactions."""

    def __init__(self, source: Database) -> None:
        super().__init__(daemon=True)
        self.source = source
        self.more = threading.Semaphore(0)
        self.done = 0

    def run(self) -> None:
        between = SINGLES // BURSTS
        with Producer(self.source.dsn, name="mixed") as producer:
            for n in range(SINGLES):
                if n % PORTION == 0:
                    self.more.acquire()
                producer.transaction(1)
                if n % between == 0 and n // between < BURSTS:
                    producer.burst(5000)
                self.done = n + 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_hundred_thousand_events_over_twenty_kills(
    source: Database, target: Database, tmp_path: Path
) -> None:
    bridge = BridgeProcess(source=source.bridge_dsn, target=target.bridge_dsn, directory=tmp_path)
    producing = Producing(source)
    try:
        bridge.start().wait_ready()
        producing.start()
        killed_while_producing = 0
        for n in range(KILLS):
            producing.more.release()
            somewhere = n * PORTION + PORTION * (1 + n % 7) // 10
            until(lambda least=somewhere: producing.done >= least, "the producer goes on", 300)  # type: ignore[misc]
            bridge.kill()
            killed_while_producing += producing.done < (n + 1) * PORTION
            bridge.start().wait_ready()
        producing.join()
        settle(source.dsn, target.dsn, deadline=300)
        verdict = conservation(source.dsn, target.dsn)
        assert verdict.expected >= 200_000
        assert killed_while_producing >= KILLS // 2
        assert verdict.holds, f"{verdict}\n{bridge.log_tail()}"
        print(verdict)
    finally:
        bridge.close()
