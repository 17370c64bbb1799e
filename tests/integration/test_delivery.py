"""The main job on real servers: from the outbox into the target table, once each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bridge_process import BridgeProcess
from tests.support.producers import Producer, Traffic
from tests.support.servers import Database
from tests.support.truth import conservation, settle


@pytest.fixture
def bridge(source: Database, target: Database, tmp_path: Path) -> Iterator[BridgeProcess]:
    process = BridgeProcess(source=source.bridge_dsn, target=target.bridge_dsn, directory=tmp_path)
    yield process
    process.close()


def test_events_that_were_there_before_and_those_that_come_later_arrive_once(
    source: Database, target: Database, bridge: BridgeProcess
) -> None:
    with Producer(source.dsn) as producer:
        producer.burst(3000)
        bridge.start().wait_ready()
        for _ in range(50):
            producer.transaction(3, via="emit")
        producer.transaction(5, rollback=True)
        producer.duplicate()
        settle(source.dsn, target.dsn)
    verdict = conservation(source.dsn, target.dsn)
    assert verdict.holds, f"{verdict}\n{bridge.log_tail()}"


@pytest.mark.slow
def test_a_bridge_killed_again_and_again_neither_loses_nor_doubles(
    source: Database, target: Database, bridge: BridgeProcess
) -> None:
    bridge.start().wait_ready()
    with Traffic(source.dsn, producers=2, burst=500):
        for _ in range(5):
            bridge.wait_log("streaming")
            bridge.kill()
            bridge.start().wait_ready()
    settle(source.dsn, target.dsn)
    verdict = conservation(source.dsn, target.dsn)
    assert verdict.holds, f"{verdict}\n{bridge.log_tail()}"
