"""The size at which a rare fault shows: 200,000 events, 20 SIGKILLs, every field of every event compared."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.support.bridge_process import BridgeProcess
from tests.support.producers import Producer
from tests.support.servers import Database
from tests.support.truth import conservation, settle

SINGLES = 20_000
BURSTS = 36  # of 5,000 rows in one transaction
KILLS = 20


def produce(source: Database, finished: threading.Event) -> None:
    with Producer(source.dsn, name="mixed") as producer:
        for n in range(SINGLES):
            producer.transaction(1)
            if n % (SINGLES // BURSTS) == 0 and n // (SINGLES // BURSTS) < BURSTS:
                producer.burst(5000)
    finished.set()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_hundred_thousand_events_over_twenty_kills(
    source: Database, target: Database, tmp_path: Path
) -> None:
    bridge = BridgeProcess(source=source.bridge_dsn, target=target.bridge_dsn, directory=tmp_path)
    finished = threading.Event()
    producing = threading.Thread(target=produce, args=(source, finished))
    try:
        bridge.start().wait_ready()
        producing.start()
        killed_while_producing = 0
        for n in range(KILLS):
            finished.wait(0.3 + n % 7 * 0.4)
            bridge.kill()
            killed_while_producing += not finished.is_set()
            bridge.start().wait_ready()
        producing.join()
        settle(source.dsn, target.dsn, deadline=300)
        verdict = conservation(source.dsn, target.dsn)
        assert verdict.expected >= 200_000
        assert killed_while_producing >= KILLS // 2
        assert verdict.holds, f"{verdict}\n{bridge.log_tail()}"
        print(verdict)
    finally:
        finished.wait(0)
        bridge.close()
