"""Messages for many recipients while the bridge is killed again and again, and some recipients fail."""

from __future__ import annotations

import random
import time
from collections import defaultdict

import pytest

from tests.integration.sinks.conftest import Start
from tests.support.producers import Producer
from tests.support.receiver import Received, Receiver, Reply
from tests.support.servers import Database
from tests.support.world import until

HOOK = "hook: { connection: hook, url: $event.url, timeout: 2s }"
KEYS, EACH = 40, 20


@pytest.mark.fault(70)
@pytest.mark.fault(71)
@pytest.mark.slow
def test_kills_and_failing_recipients_lose_and_reorder_no_message(
    source: Database, target: Database, receiver: Receiver, bridge_with: Start
) -> None:
    chance = random.Random(20261127)

    def decide(request: Received) -> Reply | None:
        number = int(request.path.removeprefix("/"))
        if number % 4 == 1 and chance.random() < 0.3:
            return Reply(chance.choice([429, 500, 503]), headers={"Retry-After": "0"})
        if number % 4 == 2 and chance.random() < 0.2:
            return Reply(cut=True)
        if number % 4 == 3 and chance.random() < 0.05:
            return Reply(hang=True)
        return None

    receiver.decide = decide
    bridge = bridge_with(HOOK).start()
    with Producer(source.dsn) as producer:
        for number in range(EACH):
            producer.mixed(
                (
                    "usage.limit_reached",
                    {"url": f"{receiver.url}/{key % 8}", "key": key, "n": number},
                    f"k{key}",
                )
                for key in range(KEYS)
            )
    for _ in range(6):
        bridge.wait_log("dispatching")
        time.sleep(chance.uniform(0.0, 1.5))
        bridge.kill()
        bridge.start()
    with target.connect() as connection:
        sent = "select count(*) from bridge.delivery where state = 'sent'"
        until(lambda: connection.execute(sent).fetchone() == (KEYS * EACH,), "everything is sent", 120)
    ids: dict[tuple[int, int], set[str]] = defaultdict(set)
    firsts: dict[int, list[int]] = defaultdict(list)
    for request in receiver.requests:
        key, number = request.json["data"]["key"], request.json["data"]["n"]
        if (key, number) not in ids:
            firsts[key].append(number)
        ids[key, number].add(request.identity)
    assert len(ids) == KEYS * EACH, "one was lost"
    assert all(len(names) == 1 for names in ids.values()), "an id changed"
    assert all(numbers == list(range(EACH)) for numbers in firsts.values()), "out of its key's order"
