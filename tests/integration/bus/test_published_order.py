"""Order within a key, and no loss, while a cluster's nodes and the bridge are killed."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from pathlib import Path

import pytest

from tests.integration.bus.conftest import Log, publishing
from tests.support.nats import NatsCluster
from tests.support.world import World, until

KEYS, EACH = 20, 30


@pytest.mark.fault(103)
@pytest.mark.slow
def test_killed_nodes_and_bridges_lose_nothing_and_keep_each_keys_order(world: World, tmp_path: Path) -> None:
    chance = random.Random(20261128)
    with NatsCluster(tmp_path / "nats") as cluster:
        log = Log(cluster.nodes[0])
        log.stream(num_replicas=3, duplicate_window=120)
        publishing(world, ",".join(cluster.urls), {"subject": "usage.{{ event.metric }}"})
        bridge = world.bridge().start()
        bridge.wait_log("streaming")
        with world.producer() as producer:
            for number in range(EACH):
                producer.mixed(
                    (
                        "usage.limit_reached",
                        {
                            "customer_id": f"c{key}",
                            "metric": "seats",
                            "limit": 1,
                            "used": 1,
                            "plan": "pro",
                            "key": key,
                            "n": number,
                        },
                        f"k{key}",
                    )
                    for key in range(KEYS)
                )
                if number % 6 == 2:
                    victim = (
                        cluster.leader_of("USAGE") if chance.random() < 0.7 else chance.choice(cluster.nodes)
                    )
                    victim.kill()
                    time.sleep(chance.uniform(0, 0.5))
                    victim.start(wait=False)
                    victim.wait_ready()
                if number % 10 == 7:
                    bridge.kill()
                    bridge.start()
            until(lambda: world.applied() == KEYS * EACH, "all rows are there", 120)
        stored = log.messages()
        log.close()
    firsts: dict[int, list[int]] = defaultdict(list)
    ids: dict[tuple[int, int], set[str]] = defaultdict(set)
    for one in stored:
        key, number = one.json["key"], one.json["n"]
        if (key, number) not in ids:
            firsts[key].append(number)
        ids[key, number].add(one.identity)
    assert len(ids) == KEYS * EACH, "one was lost"
    assert all(len(names) == 1 for names in ids.values()), "an id changed"
    assert all(numbers == list(range(EACH)) for numbers in firsts.values()), "out of its key's order"
    assert world.dead_letters() == []


@pytest.mark.slow
@pytest.mark.fault(103)
def test_a_bridge_that_wakes_after_a_takeover_adds_nothing_to_the_log(world: World, log: Log) -> None:
    """It publishes the batch that it had planned: the same ids, which the server knows."""
    log.stream(duplicate_window=120)
    publishing(world, log.node.url)
    sleeper = world.bridge(failpoints="publish.before=sleep:8@2").start()
    sleeper.wait_log("streaming")
    with world.producer() as producer:
        for number in range(2):
            producer.transaction(payloads=[_payload(number)], key="k")
            if not number:
                until(lambda: world.applied() == 1, "the first is applied")
        sleeper.wait_log("failpoint publish.before: sleep")
        other = world.bridge().start()
        world.source.execute("select pg_terminate_backend(active_pid) from pg_replication_slots where active")
        other.wait_log("streaming")
        for number in range(2, 5):
            producer.transaction(payloads=[_payload(number)], key="k")
        until(lambda: world.applied() == 5, "the other bridge applies all")
        sleeper.wait_log("phase", since=len(sleeper.lines), deadline=30)
        world.law()
    assert [one.json["n"] for one in log.messages() if "n" in one.json] == [0, 1, 2, 3, 4]


def _payload(number: int) -> dict[str, object]:
    return {"customer_id": "c", "metric": "seats", "limit": 1, "used": 1, "plan": "pro", "n": number}
