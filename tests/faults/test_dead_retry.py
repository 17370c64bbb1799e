"""`bridge dead retry` dies, or loses the answer to its COMMIT: each letter is applied once, or stays open."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable

import pytest

from tests.support.bridge_process import FAILPOINTS, BridgeProcess
from tests.support.proxy import FaultProxy
from tests.support.world import World, until

BAD = {"customer_id": "cus_1", "metric": "seats", "limit": 1, "used": 1, "plan": "bad"}
LETTERS = 6


def retry(like: BridgeProcess, target: str, failpoints: str = "") -> subprocess.CompletedProcess[str]:
    """`bridge dead retry --all` with this bridge's configuration, its target at `target`."""
    return like.command("dead", "retry", "--all", **{"WAREHOUSE_DSN": target, FAILPOINTS: failpoints})


@pytest.mark.fault(8)
def test_a_retry_that_dies_or_hears_no_answer_applies_each_letter_once(
    world: World, proxy_to: Callable[[str], FaultProxy]
) -> None:
    world.target.execute("alter table events.usage_limits add constraint plan_is_good check (plan <> 'bad')")
    bridge = world.bridge().start()
    bridge.wait_log("streaming")
    with world.producer() as producer:
        for n in range(LETTERS):  # each key its own: nothing later of a key overtakes a letter
            producer.transaction(payloads=[BAD], key=f"bad-{n}")
        producer.transaction(5)
        world.caught_up()
        assert len(world.dead_letters()) == LETTERS
        world.target.execute("alter table events.usage_limits drop constraint plan_is_good")
        direct = world.target.bridge_dsn
        for killed_at, left in ((1, LETTERS), (2, LETTERS - 1)):
            assert retry(bridge, direct, f"dead.retry=kill@{killed_at}").returncode == -signal.SIGKILL
            assert len(world.dead_letters()) == left
            world.law()
        proxy = proxy_to(direct)
        lost = proxy.lose_commit_answer(b"set state = 'resolved'")
        said = retry(bridge, proxy.dsn)
        lost.wait()
        assert said.returncode != 0, said.stdout
        until(lambda: len(world.dead_letters()) == LETTERS - 2, "that commit stands")
        world.law()
        proxy.clear()
        bridge.kill()  # and a bridge that starts meanwhile
        bridge.start()
        assert retry(bridge, direct).returncode == 0
        assert world.dead_letters() == []
    assert world.law().expected >= LETTERS + 5
