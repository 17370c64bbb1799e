"""The rig around the real bridge: kills, lost answers and waiting work on it as they do on the parts."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.support.bridge_process import BridgeProcess
from tests.support.producers import Producer, Traffic
from tests.support.proxy import FaultProxy
from tests.support.servers import Database
from tests.support.truth import conservation, settle


@pytest.mark.matrix
def test_a_bridge_killed_under_traffic_conserves(
    source: Database, target: Database, bridge_process: Callable[..., BridgeProcess]
) -> None:
    bridge = bridge_process(source=source.bridge_dsn, target=target.bridge_dsn).start().wait_ready()
    with Traffic(source.dsn) as traffic:
        until = time.monotonic() + 30
        while target.value("select count(*) from rig.effects") < 50:
            assert time.monotonic() < until, f"too little arrives: {traffic.failures}"
        bridge.kill()
        bridge.start().wait_ready()
    settle(source.dsn, target.dsn)
    assert bridge.terminate() == 0
    verdict = conservation(source.dsn, target.dsn)
    assert verdict.holds, verdict
    assert verdict.applied >= 50


def test_the_answer_to_the_bridges_own_commit_can_be_lost(
    source: Database,
    target: Database,
    proxy_to: Callable[[str], FaultProxy],
    bridge_process: Callable[..., BridgeProcess],
) -> None:
    proxy = proxy_to(target.bridge_dsn)
    bridge = bridge_process(source=source.bridge_dsn, target=proxy.dsn).start().wait_ready()
    with Producer(source.dsn) as producer:
        producer.transaction(3)
        settle(source.dsn, target.dsn)
        lost = proxy.lose_commit_answer(b"usage_limits")
        producer.transaction(5)
        lost.wait()
        settle(source.dsn, target.dsn)
    assert bridge.terminate() == 0
    verdict = conservation(source.dsn, target.dsn)
    assert verdict.holds, verdict
    assert verdict.applied == verdict.expected == 10
