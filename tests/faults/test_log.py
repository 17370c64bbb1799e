"""A log between one reader and many: relay, JetStream and workers, with real servers, killed and doubled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.bridge_process import BridgeProcess
from tests.support.nats import NatsNode
from tests.support.world import World

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NatsNode]:
    with NatsNode(tmp_path) as made:
        yield made


def over_log(world: World, node: NatsNode, partitions: int = 3) -> None:
    """The world's configuration, over this log."""

    def change(document: dict[str, Any]) -> None:
        document["scale"] = {"log": "bus", "partitions": partitions, "log_size": "256MiB"}
        document["connections"]["bus"] = {"type": "nats", "servers": [node.url]}

    world.configure(change)


def part(world: World, verb: str, **options: Any) -> BridgeProcess:
    """`bridge relay` or `bridge worker`, started."""
    made = world.bridge(**options)
    made.verb = verb
    return made.start()


def test_a_relay_and_two_workers_apply_each_event_once(world: World, node: NatsNode) -> None:
    over_log(world, node)
    relay = part(world, "relay")
    workers = [part(world, "worker"), part(world, "worker")]
    with world.producer() as producer:
        for _ in range(50):
            producer.transaction(3)
        producer.transaction(5000)
        for process in (relay, *workers):
            process.wait_ready()
        for _ in range(50):
            producer.transaction(3)
        world.caught_up()
    verdict = world.law()
    assert verdict.holds
