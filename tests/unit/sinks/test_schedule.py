"""When a delivery is tried again, and when a destination is left alone."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from bridge.dispatch.schedule import RETRY, Breaker, Pacer


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_a_message_waits_up_to_ten_minutes_and_half_of_it_is_chance(attempts: int, chance: float) -> None:
    whole = min(600.0, 2.0 ** min(attempts - 1, 30))
    assert whole / 2 <= RETRY.after(attempts, chance) <= whole
    assert RETRY.after(attempts, chance) <= RETRY.after(attempts + 1, chance)


def test_five_failures_open_the_breaker_and_one_message_tries_it() -> None:
    breaker = Breaker()
    for _ in range(4):
        assert not breaker.failed(0.0, 0.0)
        assert breaker.room(0.0, 0, 8) == 8
    assert breaker.failed(0.0, 0.0)
    assert breaker.room(0.1, 0, 8) == 0
    assert breaker.room(0.5, 0, 8) == 1
    assert breaker.room(0.5, 1, 8) == 0
    breaker.succeeded()
    assert breaker.room(0.5, 0, 8) == 8
    assert not breaker.failed(0.5, 0.0)  # it counts from the beginning again
    assert breaker.room(0.5, 0, 8) == 8


@given(st.integers(5, 2000), st.floats(0, 1, exclude_max=True))
@example(1100, 0.5)  # 13 hours of failures: 2.0**1024 is too large for a float
def test_a_destination_is_tried_at_least_once_a_minute(failures: int, chance: float) -> None:
    breaker = Breaker()
    for _ in range(failures):
        breaker.failed(1000.0, chance)
    assert 1000.0 < breaker.open_until <= 1060.0


def test_a_success_between_keeps_it_closed() -> None:
    breaker = Breaker()
    for _ in range(20):
        breaker.failed(0.0, 0.5)
        breaker.succeeded()
    assert breaker.room(0.0, 0, 8) == 8


def test_a_person_closes_an_open_breaker_for_one_message() -> None:
    breaker = Breaker()
    assert not breaker.try_now(10.0), "it is not open"
    breaker.pause(3600.0)
    assert breaker.room(10.0, 0, 64) == 0
    assert breaker.try_now(10.0)
    assert (breaker.room(10.0, 0, 64), breaker.room(10.0, 1, 64)) == (1, 0)
    assert not breaker.failed(10.0, chance=0.0), "it was told that it is left alone"
    assert breaker.room(10.1, 0, 64) == 0
    assert breaker.try_now(10.1)
    breaker.succeeded()
    assert breaker.room(10.1, 0, 64) == 64


def test_a_pause_that_was_asked_for_is_kept() -> None:
    breaker = Breaker()
    breaker.pause(30.0)
    breaker.pause(20.0)
    assert breaker.room(29.9, 0, 8) == 0
    assert breaker.room(30.0, 0, 8) == 8


def test_messages_to_one_recipient_are_spaced_and_others_are_not_held_up() -> None:
    pacer = Pacer()
    assert [pacer.reserve("c1", 1.0, 0.0, 8.0) for _ in range(3)] == [0.0, 1.0, 2.0]
    assert pacer.reserve("c2", 1.0, 0.0, 8.0) == 0.0
    assert pacer.reserve("c1", 1.0, 10.0, 8.0) == 0.0


def test_a_place_too_far_off_is_not_taken() -> None:
    pacer = Pacer()
    for _ in range(3):
        pacer.reserve("c1", 1.0, 0.0, 8.0)
    assert pacer.reserve("c1", 1.0, 0.0, 2.0) == -3.0
    assert pacer.reserve("c1", 1.0, 0.0, 8.0) == 3.0


@given(st.lists(st.floats(0, 100), min_size=2, max_size=50).map(sorted), st.floats(0.01, 3))
def test_no_two_messages_are_closer_than_the_pace(times: list[float], seconds: float) -> None:
    pacer = Pacer()
    sent = [now + pacer.reserve("c", seconds, now, 1e9) for now in times]
    assert all(later - earlier >= seconds - 1e-9 for earlier, later in pairwise(sent))
