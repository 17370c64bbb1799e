"""Ready, live and why not."""

from __future__ import annotations

import pytest

from bridge.errors import CannotConnect, Halt
from bridge.observe.state import PHASES, READY_PHASES, Health, StreamState


@pytest.fixture
def health() -> Health:
    return Health(clock=lambda: 1000.0)


@pytest.fixture
def stream(health: Health) -> StreamState:
    return health.add(StreamState("outbox_bridge_warehouse", "warehouse", clock=health.clock))


def test_without_any_stream_the_bridge_is_starting(health: Health) -> None:
    assert [problem.reason for problem in health.problems()] == ["starting"]


@pytest.mark.parametrize("phase", PHASES)
def test_only_working_and_standing_by_are_ready(health: Health, stream: StreamState, phase: str) -> None:
    stream.enter(phase)  # type: ignore[arg-type]
    assert health.ready == (phase in READY_PHASES)


def test_a_halt_names_its_reason_and_fix_until_the_stream_works_again(
    health: Health, stream: StreamState
) -> None:
    stream.enter("streaming")
    stream.halt(Halt("column mrr of events.usage is gone", reason="table_changed", hint="alter table ..."))
    (problem,) = health.problems()
    assert (problem.where, problem.reason) == ("outbox_bridge_warehouse", "table_changed")
    assert problem.message == "column mrr of events.usage is gone"
    assert problem.hint == "alter table ..."
    assert health.live
    stream.enter("streaming")
    assert health.ready


def test_trouble_keeps_the_phase_and_ends_with_the_next_batch(health: Health, stream: StreamState) -> None:
    stream.enter("streaming")
    stream.trouble(CannotConnect("the target is away"))
    assert stream.snapshot.phase == "streaming"
    assert [problem.reason for problem in health.problems()] == ["cannot_connect"]
    stream.applied(5, applied_lsn=0x16B374D848, last_event_at=999.0)
    assert health.ready
    assert stream.snapshot.as_dict(1000.0)["applied_lsn"] == "16/B374D848"
    assert (stream.snapshot.events, stream.snapshot.batches) == (5, 1)


def test_the_time_of_a_phase_is_kept_while_it_is_entered_again() -> None:
    now = [10.0]
    stream = StreamState("s", "c", clock=lambda: now[0])
    stream.enter("streaming")
    now[0] = 20.0
    stream.enter("streaming", epoch=2)
    assert (stream.snapshot.since, stream.snapshot.epoch) == (10.0, 2)
    stream.halt(Halt("one", reason="slot_lost"))
    now[0] = 30.0
    stream.halt(Halt("one, tried again", reason="slot_lost"))
    assert stream.snapshot.since == 20.0


def test_a_dead_thread_is_not_alive_unless_it_was_stopped(health: Health) -> None:
    stream = health.add(StreamState("s", "c", alive=lambda: False))
    assert not health.live
    stream.enter("stopped")
    assert health.live


def test_a_part_that_is_no_stream_can_take_readiness_away(health: Health, stream: StreamState) -> None:
    stream.enter("streaming")
    health.part_failed("dispatcher", CannotConnect("ledger is away"))
    assert [(problem.where, problem.reason) for problem in health.problems()] == [
        ("dispatcher", "cannot_connect")
    ]
    health.part_works("dispatcher")
    assert health.ready


def test_the_rate_is_events_over_time() -> None:
    now = [0.0]
    health = Health(clock=lambda: now[0])
    stream = health.add(StreamState("s", "c"))
    for second in range(5):
        now[0] = float(second)
        health.sample()
        stream.applied(100)
    assert health.rate("s") == 100.0
    assert health.rates("s") == [100.0] * 4
    assert health.rate("unknown") == 0.0


def test_a_removed_stream_is_forgotten(health: Health, stream: StreamState) -> None:
    health.remove("outbox_bridge_warehouse")
    assert dict(health.streams) == {}
