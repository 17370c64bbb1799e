"""The log itself fails: killed, purged, rewound, deleted, emptied; its frames twice and in any order. Nothing of it is
believed, so nothing is lost and nothing doubled."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.nats import NatsCluster, NatsNode
from tests.support.producers import Traffic
from tests.support.scaled import LOG, Scaled, shuffled
from tests.support.world import World, until

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NatsNode]:
    with NatsNode(tmp_path) as made:
        yield made


@pytest.fixture
def scaled(world: World, node: NatsNode) -> Iterator[Scaled]:
    made = Scaled(world, node.url)
    yield made
    made.close()


def backlog(scaled: Scaled) -> None:
    """Frames in the log that nobody has applied: the workers have ended."""
    with scaled.world.producer("backlog") as producer:
        for _ in range(100):
            producer.transaction(3)
        producer.burst(3000)
        for _ in range(20):
            producer.transaction(2)
    until(lambda: len(scaled.log.messages()) > 6, "frames are in the log")


@pytest.mark.fault(105)
@pytest.mark.slow
def test_each_node_of_three_killed_in_turn_under_load(world: World, tmp_path: Path) -> None:
    with NatsCluster(tmp_path) as cluster:
        scaled = Scaled(world, *cluster.urls, replicas=3)
        scaled.relay()
        scaled.worker()
        scaled.worker()
        with Traffic(world.source.dsn, burst=3000):
            scaled.streaming()
            for _ in range(3):
                doomed = cluster.leader_of(LOG)
                doomed.kill()
                before = world.applied()
                until(lambda: world.applied() > before + 200, "events flow on two nodes", 60)  # noqa: B023
                doomed.start()
                until(cluster.has_leader, "the node is back", 60)
        scaled.law()
        scaled.close()


def forget(scaled: Scaled, how: str) -> None:
    until(scaled.log.exists, "the log is there", 60)
    (scaled.log.purge if how == "purged" else scaled.log.delete)()


@pytest.mark.fault(106)
@pytest.mark.slow
@pytest.mark.parametrize("how", ["purged", "deleted"])
def test_a_log_that_forgets_under_load_is_filled_again(scaled: Scaled, how: str) -> None:
    scaled.relay()
    workers = [scaled.worker(), scaled.worker()]
    with Traffic(scaled.world.source.dsn, burst=3000):
        scaled.streaming()
        for _ in range(3):
            forget(scaled, how)
            before = scaled.world.applied()
            until(lambda: scaled.world.applied() > before + 200, "events flow", 60)  # noqa: B023
    scaled.law()
    for worker in workers:
        worker.kill()
    backlog(scaled)
    forget(scaled, how)
    scaled.worker()
    scaled.law()


@pytest.mark.fault(106)
@pytest.mark.slow
def test_single_frames_lost_from_the_middle_are_read_again(scaled: Scaled) -> None:
    scaled.relay()
    worker = scaled.worker()
    scaled.streaming()
    worker.kill()
    backlog(scaled)
    chance = random.Random(1)
    messages = scaled.log.messages()
    for one in chance.sample(messages, len(messages) // 2):
        scaled.log.forget(one.sequence)
    worker.start()
    scaled.law()
    until(lambda: "log_gap" in worker.get("/metrics")[1], "the gap is counted")


@pytest.mark.fault(106)
@pytest.mark.slow
def test_a_log_rewound_to_an_older_copy_of_its_store(scaled: Scaled, node: NatsNode, tmp_path: Path) -> None:
    scaled.relay()
    worker = scaled.worker()
    scaled.streaming()
    worker.kill()
    backlog(scaled)
    node.stop()
    shutil.copytree(node.directory / "store", tmp_path / "copy")
    node.start()
    worker.start()
    scaled.law()
    with Traffic(scaled.world.source.dsn, burst=1000):
        before = scaled.world.applied()
        until(lambda: scaled.world.applied() > before + 200, "events flow", 60)
        node.kill()
        node.lose_store()
        shutil.copytree(tmp_path / "copy", node.directory / "store")
        node.start()
        before = scaled.world.applied()
        until(lambda: scaled.world.applied() > before + 200, "events flow again", 60)
    scaled.law()


@pytest.mark.fault(106)
@pytest.mark.slow
def test_the_only_nodes_disk_is_lost_under_load(scaled: Scaled, node: NatsNode) -> None:
    scaled.relay()
    worker = scaled.worker()
    with Traffic(scaled.world.source.dsn, burst=3000):
        scaled.streaming()
        for _ in range(2):
            node.kill()
            node.lose_store()
            node.start()
            before = scaled.world.applied()
            until(lambda: scaled.world.applied() > before + 200, "events flow", 60)  # noqa: B023
    scaled.law()
    worker.kill()
    backlog(scaled)
    node.kill()
    node.lose_store()
    node.start()
    worker.start()
    scaled.law()


@pytest.mark.fault(107)
def test_frames_twice_and_in_any_order_have_each_effect_once(scaled: Scaled) -> None:
    relay = scaled.relay()
    worker = scaled.worker()
    scaled.streaming()
    worker.kill()
    backlog(scaled)
    relay.kill()
    chance = random.Random(2)
    messages = scaled.log.messages()
    scaled.log.put(shuffled(messages, chance))
    worker.start()
    relay.start()
    scaled.law()
    with Traffic(scaled.world.source.dsn, burst=1000):
        for _ in range(4):
            scaled.log.put(shuffled(messages, chance))
            before = scaled.world.applied()
            until(lambda: scaled.world.applied() > before + 50, "events flow", 60)  # noqa: B023
    scaled.law()


@pytest.mark.fault(107)
@pytest.mark.slow
def test_frames_out_of_order_alone_in_the_log(scaled: Scaled) -> None:
    """Nothing in order is there: the log holds only what was put back reversed."""
    relay = scaled.relay()
    worker = scaled.worker()
    scaled.streaming()
    worker.kill()
    backlog(scaled)
    relay.kill()
    messages = scaled.log.messages()
    scaled.log.purge()
    scaled.log.put(messages[::-1])
    worker.start()
    relay.start()
    scaled.law()


@pytest.mark.fault(105)
@pytest.mark.slow
def test_the_whole_log_is_down_longer_than_a_session_waits(scaled: Scaled, node: NatsNode) -> None:
    scaled.relay()
    scaled.worker()
    with Traffic(scaled.world.source.dsn, burst=1000):
        scaled.streaming()
        node.kill()
        time.sleep(
            25
        )  # longer than a relay's session waits for it, and longer than a worker believes in silence
        node.start()
        before = scaled.world.applied()
        until(lambda: scaled.world.applied() > before + 200, "events flow", 60)
    scaled.law()
