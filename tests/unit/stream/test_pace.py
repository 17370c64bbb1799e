"""A batch that is too slow is halved until one is applied, and grows again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bridge.stream.pace import Pace


def test_a_time_out_halves_what_was_tried_and_says_so() -> None:
    pace = Pace(2000)
    error = pace.too_slow(1500)
    assert (pace.batch.now, pace.slowed, error.reason) == (750, True, "target_slow")
    assert "1500 events" in str(error)
    assert "at most 750" in str(error)
    pace.too_slow(1)
    assert pace.batch.now == 1


@given(st.integers(1, 5000), st.lists(st.booleans(), max_size=40))
def test_the_limit_stays_between_one_and_the_configured(most: int, timed_out: list[bool]) -> None:
    pace = Pace(most)
    for slow in timed_out:
        before = pace.batch.now
        if slow:
            pace.too_slow(before)
            assert pace.batch.now < before or before == 1
        else:
            pace.worked()
            assert pace.batch.now == min(most, before * 2)
        assert 1 <= pace.batch.now <= most
        assert pace.slowed == (pace.batch.now < most) or slow


def test_after_success_it_is_as_it_was() -> None:
    pace = Pace(8)
    pace.too_slow(8)
    pace.judged_by_chunks()
    for _ in range(3):
        pace.worked()
    assert (pace.batch.now, pace.judge_chunks, pace.slowed) == (8, False, False)
    pace.at_most(100)
    assert pace.batch.now == 100


def test_a_late_batch_is_trouble() -> None:
    assert Pace().late(7).reason == "target_slow"
