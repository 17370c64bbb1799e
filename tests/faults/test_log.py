"""A log between one reader and many: relay, JetStream and workers, with real servers, killed and doubled."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.bridge_process import BridgeProcess
from tests.support.nats import NatsNode
from tests.support.producers import Traffic
from tests.support.world import World, until

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


def more(traffic: Traffic, transactions: int = 300) -> None:
    """Wait until so many more have been committed."""
    before = traffic.transactions
    until(lambda: traffic.transactions > before + transactions, "the producers commit")


def names(world: World) -> list[str]:
    return [
        row[0]
        for row in world.target.execute(
            "select stream from bridge.checkpoint order by length(stream), stream"
        )
    ]


def divided(world: World, partitions: int | None) -> None:
    """The file says so many partitions, or that there is no log."""

    def change(document: dict[str, Any]) -> None:
        if partitions is None:
            del document["scale"]
        else:
            document["scale"] = {**document.get("scale", {}), "partitions": partitions}

    world.configure(change)


def test_the_number_of_partitions_changes_under_load(world: World, node: NatsNode) -> None:
    over_log(world, node, 4)
    processes = [part(world, "relay"), part(world, "worker"), part(world, "worker")]
    with Traffic(world.source.dsn) as traffic:
        for process in processes:
            process.wait_ready()
        for of in (8, 3):
            divided(world, of)
            more(traffic)
            world.command("scale", "repartition")
            assert names(world) == [f"outbox_bridge_warehouse.{number}of{of}" for number in range(1, of + 1)]
            for process in processes:
                process.signal(signal.SIGHUP)
            more(traffic)
            for process in processes:
                process.wait_ready()
    world.law()


@pytest.mark.slow
def test_from_a_slot_of_its_own_to_a_log_and_back(world: World, node: NatsNode) -> None:
    bridge = world.bridge().start().wait_ready()
    with Traffic(world.source.dsn) as traffic:
        more(traffic)
        over_log(world, node, 3)
        assert bridge.terminate() == 0
        world.command("scale", "repartition")
        together = world.bridge().start().wait_ready()
        more(traffic)
        assert together.terminate() == 0
        divided(world, None)
        world.command("scale", "repartition")
        world.bridge().start().wait_ready()
        more(traffic)
    world.law()
    assert names(world) == ["outbox_bridge_warehouse"]
    slots = [row[0] for row in world.source.execute("select slot_name::text from pg_replication_slots")]
    assert len([slot for slot in slots if slot.startswith("outbox_bridge")]) == 1


POINTS = (
    "registered",
    *(pytest.param(point, marks=pytest.mark.slow) for point in ("fenced", "brought", "divided", "forgotten")),
)


@pytest.mark.parametrize("point", POINTS)
def test_a_repartition_that_dies_is_finished_by_the_next(world: World, node: NatsNode, point: str) -> None:
    over_log(world, node, 2)
    bridge = world.bridge().start().wait_ready()
    with Traffic(world.source.dsn) as traffic:
        more(traffic, 100)
        divided(world, 3)
        died = world.run("scale", "repartition", BRIDGE_FAILPOINTS=f"repartition.{point}=kill")
        assert died.returncode == -signal.SIGKILL
        if point in ("fenced", "brought", "registered"):  # it goes on as it was
            bridge.wait_ready()
            more(traffic, 100)
        world.command("scale", "repartition")
        bridge.signal(signal.SIGHUP)
        more(traffic, 100)
        bridge.wait_ready()
    world.law()
    assert names(world) == [f"outbox_bridge_warehouse.{number}of3" for number in (1, 2, 3)]
    rows = world.source.execute("select stream from outbox.stream order by 1")
    assert [row[0] for row in rows] == names(world)
