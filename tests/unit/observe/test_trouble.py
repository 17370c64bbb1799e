"""A stream whose trouble repeats is not ready, however often it begins anew; one that works again is."""

from __future__ import annotations

from bridge.errors import Retry
from bridge.observe.state import Health, StreamState

FULL = Retry("no space for another (SQLSTATE 53400)", reason="target_refused")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def stream() -> tuple[Health, StreamState, Clock]:
    clock = Clock()
    health = Health(clock=clock)
    state = health.add(StreamState("s", "warehouse", clock=clock))
    state.enter("streaming")
    return health, state, clock


def test_one_trouble_is_over_when_the_stream_streams_again() -> None:
    health, state, _ = stream()
    state.trouble(FULL)
    assert not health.ready
    state.enter("starting")
    state.enter("streaming")
    assert health.ready


def test_a_trouble_that_repeats_outlives_every_new_beginning() -> None:
    health, state, _ = stream()
    for _ in range(2):
        state.trouble(FULL)
        state.enter("starting")
        state.enter("streaming")
    [problem] = health.problems()
    assert (problem.reason, problem.message) == ("target_refused", FULL.args[0])


def test_an_applied_batch_ends_it() -> None:
    health, state, _ = stream()
    for _ in range(3):
        state.trouble(FULL)
        state.enter("streaming")
    state.applied(1)
    state.enter("streaming")
    assert health.ready


def test_a_quiet_stream_that_looked_for_a_while_ends_it() -> None:
    health, state, clock = stream()
    for _ in range(3):
        state.trouble(FULL)
        state.enter("starting")
        state.enter("streaming")
    state.update(pending_since=0.0)
    clock.now = 10.0
    state.calm()
    assert not health.ready, "an event waits"
    state.update(pending_since=None)
    state.calm()
    assert health.ready


def test_other_reasons_do_not_add_up() -> None:
    health, state, _ = stream()
    for reason in ("slot_missing", "publication_changed", "slot_missing"):
        state.trouble(Retry("changed", reason=reason))
        state.enter("starting")
        state.enter("catchup")
    assert health.ready


def test_standing_by_is_ready_whatever_was_before() -> None:
    health, state, _ = stream()
    for _ in range(3):
        state.trouble(FULL)
    state.enter("standby")
    assert health.ready
