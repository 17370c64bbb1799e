"""Where a storm begins: one unit decides, and only what is durable is remembered."""

from __future__ import annotations

from bridge.stream.guard import WINDOW, FailureGuard

UNIT = ("orders", "events")
HALF = WINDOW // 2


def test_half_of_the_window_is_no_storm_and_one_more_is() -> None:
    storm = FailureGuard()
    storm.remember(UNIT, ["23514"] * HALF)
    assert storm.judge(UNIT, [""]) is None
    assert storm.judge(UNIT, ["23514"]) == "23514"
    assert storm.judge(("orders", "other"), ["23514"]) is None


def test_what_was_judged_and_not_applied_is_not_remembered() -> None:
    storm = FailureGuard()
    assert storm.judge(UNIT, ["23514"] * (HALF + 1)) == "23514"
    assert storm.judge(UNIT, ["23514"]) is None


def test_two_causes_are_two_counts_and_old_outcomes_leave_the_window() -> None:
    storm = FailureGuard()
    storm.remember(UNIT, ["23514"] * HALF + ["23502"] * HALF)
    assert storm.judge(UNIT, []) is None
    assert storm.judge(UNIT, [""] * HALF + ["23502"]) is None
    assert storm.judge(UNIT, ["23502"] * WINDOW) == "23502"
