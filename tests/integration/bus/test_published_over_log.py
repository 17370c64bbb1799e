"""A destination of type nats behind a log of frames: workers publish their partitions."""

from __future__ import annotations

from collections import defaultdict

import pytest

from tests.integration.bus.conftest import TYPE, Log, publishing
from tests.support.bridge_process import BridgeProcess
from tests.support.world import World, until

KEYS, EACH = 12, 15


def part(world: World, verb: str) -> BridgeProcess:
    made = world.bridge()
    made.verb = verb
    return made.start()


@pytest.mark.fault(103)
@pytest.mark.timeout(240)
def test_workers_that_are_killed_publish_each_key_in_order(world: World, log: Log) -> None:
    log.stream(duplicate_window=120)
    publishing(world, log.node.url)
    world.configure(
        lambda document: document.update(scale={"log": "bus", "partitions": 3, "log_size": "64MiB"})
    )
    part(world, "relay")
    workers = [part(world, "worker"), part(world, "worker")]
    with world.producer() as producer:
        for number in range(EACH):
            producer.mixed(
                (
                    TYPE,
                    {
                        "customer_id": f"c{key}",
                        "metric": "seats",
                        "limit": 1,
                        "used": 1,
                        "plan": "pro",
                        "n": number,
                    },
                    f"k{key}",
                )
                for key in range(KEYS)
            )
            if number == 7:
                until(lambda: world.applied() > 0, "something is applied", 90)
                workers[0].kill()
                workers[0].start()
        until(lambda: world.applied() == KEYS * EACH, "all rows are there", 120)
    found: dict[str, list[int]] = defaultdict(list)
    for one in log.messages():
        found[one.headers["Bridge-Event-Key"]].append(one.json["n"])
    assert found == {f"k{key}": list(range(EACH)) for key in range(KEYS)}
