"""Every failpoint is passed, and whatever happens there, nothing is lost or doubled.

A story is one source and target and a row of bridges: each dies (or fails, or hangs) at one point, the next
begins where it left, and the law is checked at the end.
"""

from __future__ import annotations

import ast
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import bridge
from bridge.failpoints import POINTS
from tests.support.bridge_process import BridgeProcess
from tests.support.producers import Producer
from tests.support.world import IMPATIENT, World

START = ("session.start", "session.fenced", "session.judged", "registry.before", "registry.written")
SLOT = ("slot.before", "slot.made", "slot.dropped")
TABLE = ("missing.read", "ledger.before", "ledger.saved")
PLAN = ("plan.before", "plan.lookup", "plan.done")
APPLY = ("apply.before", "apply.sent", "settle.durable")
STREAM = ("stream.opening", "stream.opened", "stream.received")
CONFIRM = ("observe.before", "observe.done", "confirm.before", "confirm.sent")
HUGE = ("apply.chunk",)
BAD = ("settle.refused", "bisect.unit", "bisect.commit")
POLL = ("poll.wait",)
ENTITY = ("entity.written",)

ELSEWHERE = {
    "dead.retry": "passed by `bridge dead retry`; its tests stop it there",
    "deliver.claimed": "passed by the dispatcher; tests/integration/sinks stops it there",
    "deliver.sent": "passed by the dispatcher; tests/integration/sinks stops it there",
    "prune.batch": "passed by `bridge prune`; its tests stop it there",
    **dict.fromkeys(
        ("publish.before", "publish.settled"),
        "passed by a stream with a destination of type nats; tests/integration/bus kills it there",
    ),
    "replay.batch": "passed by `bridge replay`; its tests stop it there",
    **dict.fromkeys(
        ("decommission.source", "decommission.target", "rename.copied", "rename.source", "rename.target"),
        "passed by commands; test_stream_life.py kills them there",
    ),
    "decommission.relay": "passed by `bridge decommission` of the last partitions; test_over_log.py runs it",
    **dict.fromkeys(
        ("relay.before_saved", "relay.saved", "relay.tails", "relay.publish", "relay.published", "log.taken"),
        "passed by a relay and by a stream over a log; test_log_processes.py kills them there",
    ),
    **dict.fromkeys(
        (
            "repartition.fenced",
            "repartition.brought",
            "repartition.registered",
            "repartition.divided",
            "repartition.forgotten",
        ),
        "passed by `bridge scale repartition`; test_log.py kills it there",
    ),
}
"""Points that a stream does not pass."""

_BAD = {"customer_id": "cus_1", "metric": "seats", "limit": 10, "used": 5, "plan": "bad"}
Feed = Callable[[Producer], object]


def one_at_a_time(producer: Producer) -> None:
    producer.transaction(3)
    time.sleep(0.02)


def with_a_bad_one(producer: Producer) -> None:
    producer.transaction(payloads=[{**_BAD, "plan": "pro"}, _BAD, {**_BAD, "plan": "pro"}])
    time.sleep(0.02)


def huge(producer: Producer) -> None:
    producer.burst(300)
    time.sleep(0.1)


def nothing(_: Producer) -> None:
    time.sleep(0.02)


@pytest.fixture
def small(world: World) -> World:
    """Batches of 50, so that 100 rows are a huge transaction; no plan may be called bad."""
    world.configure(lambda c: c["source"].update(batch={"max_events": 50}))
    world.target.execute("alter table events.usage_limits add constraint plan_is_good check (plan <> 'bad')")
    return world


def passed(process: BridgeProcess, points: Sequence[str], act: str) -> bool:
    """Has it said that it passed all of them?"""
    lines = process.lines
    return all(any(f"failpoint {point}: {act}" in line for line in lines) for point in points)


def kill_at(world: World, point: str, producer: Producer, feed: Feed) -> None:
    doomed = world.bridge(failpoints=f"{point}=kill").start()
    end = time.monotonic() + 30
    while doomed.running:
        assert time.monotonic() < end, f"{point} is not passed\n{doomed.log_tail()}"
        feed(producer)
    assert doomed.wait() == -signal.SIGKILL, doomed.log_tail()
    assert passed(doomed, [point], "kill")


def fail_at(world: World, points: Sequence[str], producer: Producer, feed: Feed) -> None:
    """One bridge that fails once at each of these, one after the other, and lives."""
    failing = world.bridge(failpoints=";".join(f"{point}=raise" for point in points)).start()
    end = time.monotonic() + 30
    while not passed(failing, points, "raise"):
        assert time.monotonic() < end, f"not all of {points} are passed\n{failing.log_tail(60)}"
        feed(producer)
    failing.wait_ready()
    world.caught_up()
    assert failing.terminate() == 0, failing.log_tail()


def law_at_the_end(world: World) -> None:
    survivor = world.bridge().start().wait_ready()
    world.law()
    assert survivor.terminate() == 0


def lose_the_slot(world: World) -> None:
    """If it has one at the moment."""
    if world.source.value("select count(*) from pg_replication_slots where slot_name = %s", [world.slot]):
        world.drop_slot()


@pytest.mark.fault(1, 9)
def test_killed_at_each_point_from_the_first_start_to_the_end_of_catching_up(small: World) -> None:
    with small.producer() as producer:
        producer.burst(250)
        for point in (*START, *SLOT, *TABLE, *PLAN, *APPLY):
            kill_at(small, point, producer, nothing)
            producer.transaction(2)
    law_at_the_end(small)


@pytest.mark.fault(1, 29)
def test_killed_at_each_point_of_streaming(small: World) -> None:
    with small.producer() as producer:
        first = small.bridge().start()
        first.wait_log("streaming")
        first.kill()
        for point in (*STREAM, *PLAN, *APPLY, *CONFIRM):
            kill_at(small, point, producer, one_at_a_time)
        for point in HUGE:
            kill_at(small, point, producer, huge)
        for point in BAD:
            kill_at(small, point, producer, with_a_bad_one)
    law_at_the_end(small)


@pytest.mark.fault(1, 9, 31)
@pytest.mark.slow
def test_killed_at_each_point_after_the_slot_was_lost(small: World) -> None:
    with small.producer() as producer:
        first = small.bridge().start()
        first.wait_log("streaming")
        first.kill()
        for point in (*SLOT, "missing.read", "apply.sent", "ledger.saved"):
            lose_the_slot(small)
            for _ in range(40):
                producer.transaction(3)
            kill_at(small, point, producer, nothing)
        for point in HUGE:
            lose_the_slot(small)
            producer.burst(120)
            kill_at(small, point, producer, nothing)
    law_at_the_end(small)


@pytest.mark.fault(1, 52)
@pytest.mark.slow
def test_killed_at_each_point_of_polling(small: World) -> None:
    small.configure(lambda c: c["source"].update(capture="poll", poll_interval="50ms"))
    with small.producer() as producer:
        for point in (TABLE[0], *APPLY[1:], BAD[2], TABLE[2], *POLL):
            kill_at(small, point, producer, with_a_bad_one)
    law_at_the_end(small)


def keep_the_newest(document: dict[str, Any]) -> None:
    """Of each customer, how much its newest event said it used, and which that was."""
    document["entities"] = {"newest": {"kept_by": "events"}}
    fields = {"used": "$event.used", "seq": "$meta.seq"}
    upsert = {"entity": "newest", "key": "$event.customer_id", "fields": fields}
    document["pipelines"]["kept"] = {"event": "usage.limit_reached", "steps": [{"upsert.entity": upsert}]}


@pytest.mark.slow
@pytest.mark.fault(1)
def test_an_entity_is_what_its_newest_event_says_after_a_kill_at_any_point(
    small: World,
) -> None:
    small.configure(keep_the_newest)
    with small.producer() as producer:
        producer.burst(250)
        kill_at(small, ENTITY[0], producer, nothing)
        small.bridge().start().wait_log("streaming")
        small.caught_up()
        small.bridges[-1].kill()
        kill_at(small, ENTITY[0], producer, one_at_a_time)
        lose_the_slot(small)
        kill_at(small, ENTITY[0], producer, huge)
        fail_at(small, ENTITY, producer, one_at_a_time)
        small.configure(lambda c: c["source"].update(capture="poll", poll_interval="50ms"))
        kill_at(small, ENTITY[0], producer, one_at_a_time)
    law_at_the_end(small)
    wrong = small.source.execute(
        "select e.key, e.fields, n.seq from outbox.entity as e right join"
        " (select distinct on (1) payload ->> 'customer_id' as key, seq, payload -> 'used' as used"
        " from outbox.event where type = 'usage.limit_reached' order by 1, seq desc) as n using (key)"
        " where e.fields is distinct from jsonb_build_object('used', n.used, 'seq', n.seq)"
    )
    assert wrong == []


@pytest.mark.slow
@pytest.mark.fault(1)
def test_failing_at_each_point_begins_again_and_lives(small: World) -> None:
    with small.producer() as producer:
        producer.burst(250)
        fail_at(small, START, producer, nothing)
        small.drop_slot()
        producer.burst(120)
        fail_at(small, (*SLOT, *TABLE[:2]), producer, nothing)
        fail_at(small, (*STREAM, *PLAN[:2]), producer, one_at_a_time)
        fail_at(small, (PLAN[2], *APPLY, *CONFIRM[:1]), producer, one_at_a_time)
        fail_at(small, (*CONFIRM[1:], TABLE[2]), producer, one_at_a_time)
        fail_at(small, BAD, producer, with_a_bad_one)
        fail_at(small, HUGE, producer, huge)
        small.configure(lambda c: c["source"].update(capture="poll", poll_interval="50ms"))
        fail_at(small, POLL, producer, one_at_a_time)
    law_at_the_end(small)


def hang_at(world: World, point: str, producer: Producer, feed: Feed) -> None:
    """One bridge that stands still there; another takes over, and delivers all while the first still lives."""
    hanging = world.bridge(failpoints=f"{point}=hang", options=IMPATIENT).start()
    end = time.monotonic() + 30
    while not passed(hanging, [point], "hang"):
        assert time.monotonic() < end, f"{point} is not passed\n{hanging.log_tail()}"
        feed(producer)
    successor = world.bridge(options=IMPATIENT).start()
    producer.transaction(3)
    world.caught_up()
    assert hanging.get("/livez")[0] == 200  # it does not know; it cannot write either
    hanging.kill()
    successor.kill()


@pytest.mark.fault(1, 4, 5)
@pytest.mark.parametrize("point", ["apply.sent", "confirm.before", "slot.made"])
def test_a_bridge_that_hangs_is_replaced_by_another(small: World, point: str) -> None:
    with small.producer() as producer:
        producer.burst(250)
        hang_at(small, point, producer, one_at_a_time)
    law_at_the_end(small)


@pytest.mark.slow
@pytest.mark.fault(1, 4, 5)
@pytest.mark.parametrize("points", [START, SLOT, TABLE], ids=lambda points: points[0].partition(".")[0])
def test_while_one_hangs_at_any_point_of_catching_up_another_takes_over(
    small: World, points: Sequence[str]
) -> None:
    with small.producer() as producer:
        for point in points:
            lose_the_slot(small)
            producer.burst(120)
            hang_at(small, point, producer, nothing)
    law_at_the_end(small)


@pytest.mark.slow
@pytest.mark.fault(1, 4, 5)
@pytest.mark.parametrize(
    ("points", "feed"),
    [
        (STREAM, one_at_a_time),
        (PLAN, one_at_a_time),
        (APPLY, one_at_a_time),
        (CONFIRM, one_at_a_time),
        (HUGE, huge),
        (BAD, with_a_bad_one),
    ],
    ids=["stream", "plan", "apply", "confirm", "huge", "bad"],
)
def test_hanging_at_each_point_of_streaming_another_takes_over(
    small: World, points: Sequence[str], feed: Feed
) -> None:
    with small.producer() as producer:
        first = small.bridge().start()
        first.wait_log("streaming")
        first.kill()
        for point in points:
            hang_at(small, point, producer, feed)
    law_at_the_end(small)


@pytest.mark.slow
@pytest.mark.fault(1, 4, 5, 52)
def test_hanging_at_each_point_of_polling_and_of_entities_another_takes_over(small: World) -> None:
    small.configure(keep_the_newest)
    small.configure(lambda c: c["source"].update(capture="poll", poll_interval="50ms"))
    with small.producer() as producer:
        for point in (*POLL, *ENTITY, TABLE[0], "apply.sent"):
            hang_at(small, point, producer, one_at_a_time)
    law_at_the_end(small)


def _points_in_the_code() -> set[str]:
    found: set[str] = set()
    for path in Path(bridge.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "hit":
                assert isinstance(node.args[0], ast.Constant), f"{path}: hit() wants a literal"
                found.add(str(node.args[0].value))
    return found


def test_every_point_of_the_registry_is_passed_by_a_story() -> None:
    """The stories assert that they passed theirs; this, that no point is in none of them."""
    stories = {*START, *SLOT, *TABLE, *PLAN, *APPLY, *STREAM, *CONFIRM, *HUGE, *BAD, *POLL, *ENTITY}
    assert stories | ELSEWHERE.keys() == POINTS.keys()
    assert stories.isdisjoint(ELSEWHERE)


def test_every_point_of_the_registry_stands_in_the_code() -> None:
    code = _points_in_the_code()
    assert code <= POINTS.keys()
    assert POINTS.keys() - code <= ELSEWHERE.keys()


@pytest.mark.parametrize("text", ["no.such.point=kill", "apply.sent=dance", "apply.sent"])
def test_a_failpoint_that_is_not_one_ends_the_bridge(world: World, text: str) -> None:
    process = world.bridge(failpoints=text).start()
    assert process.wait() != 0
    assert "BRIDGE_FAILPOINTS: no " in process.log_tail()


def test_without_the_variable_nothing_is_armed(world: World) -> None:
    """Configuration cannot arm one: the registry is read from one environment variable alone."""
    world.configure(lambda c: c["events"].update({"BRIDGE_FAILPOINTS": {"apply.sent": "string"}}))
    process = world.bridge().start().wait_ready()
    world.law()
    assert not any("FAILPOINTS ARE ON" in line or "failpoint " in line for line in process.lines)
