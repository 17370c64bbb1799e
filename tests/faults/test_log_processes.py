"""Relays and workers that die, freeze, wake and meet: at every failpoint of a frame's way, nothing lost or doubled."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.bridge_process import BridgeProcess
from tests.support.nats import NatsNode
from tests.support.producers import Producer, Traffic
from tests.support.scaled import Scaled
from tests.support.world import IMPATIENT, World, until

pytestmark = pytest.mark.timeout(300)

RELAY_START = (
    "relay.before_saved",
    "relay.saved",
    "slot.before",
    "slot.made",
    "relay.tails",
    "stream.opening",
)
RELAY = (
    "stream.opened",
    "relay.publish",
    "relay.published",
    "observe.before",
    "confirm.before",
    "confirm.sent",
)
WORKER_START = ("session.start", "session.fenced", "session.judged", "registry.before", "registry.written")
WORKER = (
    "stream.opening",
    "stream.opened",
    "log.taken",
    "stream.received",
    "plan.before",
    "plan.done",
    "apply.before",
    "apply.sent",
    "settle.durable",
    "observe.before",
    "observe.done",
    "confirm.before",
    "confirm.sent",
)
TABLE = ("missing.read", "ledger.before", "ledger.saved")


@pytest.fixture
def scaled(world: World, tmp_path: Path) -> Iterator[Scaled]:
    with NatsNode(tmp_path) as node:
        made = Scaled(world, node.url)
        yield made
        made.close()


def some(producer: Producer) -> None:
    producer.transaction(3)
    time.sleep(0.02)


def huge(producer: Producer) -> None:
    """Larger than a frame and than a batch."""
    producer.burst(5000)
    time.sleep(0.2)


def killed_at(
    start: Callable[..., BridgeProcess], point: str, producer: Producer, feed: Callable[[Producer], None]
) -> None:
    """Started, it kills itself there. Another, unarmed, takes its place afterwards: the caller's."""
    doomed = start(failpoints=f"{point}=kill")
    end = time.monotonic() + 60
    while doomed.running:
        assert time.monotonic() < end, f"{point} is not passed\n{doomed.log_tail()}"
        feed(producer)
    assert doomed.wait() == -signal.SIGKILL, doomed.log_tail()


@pytest.mark.fault(108)
@pytest.mark.slow
def test_a_relay_killed_at_each_point_of_its_way(scaled: Scaled) -> None:
    worker = scaled.worker()
    with scaled.world.producer() as producer:
        for point in (*RELAY_START, *RELAY):
            killed_at(scaled.relay, point, producer, some)
        for point in ("relay.publish", "relay.published"):
            killed_at(scaled.relay, point, producer, huge)
        relay = scaled.relay()
        scaled.streaming()
        relay.kill()
        scaled.drop_slot()
        for point in ("relay.saved", "slot.dropped", "slot.before", "slot.made"):
            killed_at(scaled.relay, point, producer, some)
            if point == "slot.made":
                continue
            forget_slots(scaled)
        scaled.relay()
    scaled.law()
    assert worker.running


def forget_slots(scaled: Scaled) -> None:
    """All slots of the relay are gone, so that it makes the next one."""
    scaled.world.source.execute(
        "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
        " where slot_name like 'outbox_bridge_bus%' and not active"
    )


@pytest.mark.fault(108)
@pytest.mark.slow
def test_a_worker_killed_at_each_point_of_its_way(scaled: Scaled) -> None:
    scaled.world.configure(lambda c: c["source"].update(batch={"max_events": 500}))
    scaled.relay()
    with scaled.world.producer() as producer:
        producer.burst(3000)
        for point in (*WORKER_START, *TABLE):
            killed_at(scaled.worker, point, producer, some)
        worker = scaled.worker()
        scaled.streaming()
        worker.kill()
        for point in WORKER:
            killed_at(scaled.worker, point, producer, some)
        for point in ("apply.chunk", "log.taken", "apply.sent"):
            killed_at(scaled.worker, point, producer, huge)
        scaled.worker()
    scaled.law()


@pytest.mark.fault(109)
@pytest.mark.slow
def test_a_frozen_relay_wakes_behind_another(scaled: Scaled) -> None:
    frozen = scaled.relay(options=IMPATIENT)
    scaled.worker()
    with Traffic(scaled.world.source.dsn, burst=3000):
        scaled.streaming()
        for _ in range(2):
            frozen.pause()
            other = scaled.relay(options=IMPATIENT)
            before = scaled.world.applied()
            until(lambda: scaled.world.applied() > before + 300, "the other one reads", 60)  # noqa: B023
            frozen.resume()
            until(lambda: scaled.world.applied() > before + 600, "events flow", 60)  # noqa: B023
            other.kill()
            until(lambda: scaled.world.applied() > before + 900, "the first one reads again", 60)  # noqa: B023
    scaled.law()


@pytest.mark.fault(109)
@pytest.mark.slow
@pytest.mark.parametrize("point", ["relay.publish", "confirm.before", "relay.saved"])
def test_a_relay_that_hangs_at_a_point_is_replaced(scaled: Scaled, point: str) -> None:
    scaled.worker()
    with Traffic(scaled.world.source.dsn, burst=1000):
        hanging = scaled.relay(
            options=IMPATIENT, failpoints=f"{point}=hang@{1 if point == 'relay.saved' else 20}"
        )
        hanging.wait_log(f"failpoint {point}: hang", 60)
        scaled.relay(options=IMPATIENT)
        scaled.streaming()
        before = scaled.world.applied()
        until(lambda: scaled.world.applied() > before + 300, "the other one reads", 60)
        hanging.kill()
    scaled.law()


@pytest.mark.slow
@pytest.mark.fault(109)
def test_a_frozen_worker_wakes_when_others_have_its_partitions(scaled: Scaled) -> None:
    scaled.relay()
    frozen = scaled.worker()
    with Traffic(scaled.world.source.dsn, burst=3000):
        scaled.streaming()
        frozen.pause()
        scaled.worker()
        before = scaled.world.applied()
        until(lambda: scaled.world.applied() > before + 1000, "the other one applies", 90)
        frozen.resume()
        before = scaled.world.applied()
        until(lambda: scaled.world.applied() > before + 500, "events flow", 60)
    scaled.law()


@pytest.mark.fault(109)
@pytest.mark.slow
def test_two_workers_at_one_partition_have_each_effect_once(scaled: Scaled, world: World) -> None:
    """They share nothing: each takes the other's claim for that of a dead one, again and again."""
    ending = (
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'bridge-share/%'"
    )
    scaled.relay()
    for _ in range(2):
        scaled.worker()
    with Traffic(world.source.dsn, burst=2000):
        scaled.streaming()
        for _ in range(8):
            assert world.target.execute(ending)
            before = world.applied()
            until(lambda: world.applied() > before + 100, "events flow", 60)  # noqa: B023
    scaled.law()


@pytest.mark.fault(110)
@pytest.mark.slow
def test_workers_join_and_leave_under_load(scaled: Scaled, world: World) -> None:
    scaled.relay()
    workers = [scaled.worker()]
    with Traffic(world.source.dsn, burst=2000):
        scaled.streaming()
        for leaves in (False, False, True, False, True, True):
            if leaves:
                assert workers.pop(0).terminate(60) == 0
            else:
                workers.append(scaled.worker().wait_ready(60))
            before = world.applied()
            until(lambda: world.applied() > before + 200, "events flow", 60)  # noqa: B023
    scaled.law()


@pytest.mark.fault(110)
@pytest.mark.slow
def test_a_relay_restarted_while_a_backlog_is_in_the_log(scaled: Scaled, world: World) -> None:
    relay = scaled.relay()
    worker = scaled.worker()
    scaled.streaming()
    with world.target.connect() as locking, world.producer() as producer:
        locking.execute("begin; lock table events.usage_limits in exclusive mode")
        for _ in range(4):
            for _ in range(50):
                producer.transaction(3)
            producer.burst(3000)
            before = scaled.log.state().last_seq
            until(lambda: scaled.log.state().last_seq > before + 6, "frames are in the log")  # noqa: B023
            relay.kill()
            relay.start()
        worker.kill()
    worker.start()
    scaled.law()
