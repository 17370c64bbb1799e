"""When the failure guard halts a stream: one unit decides, and only what is durable is remembered."""

from __future__ import annotations

from bridge.stream.planned import WINDOW, FailureGuard

UNIT = ("orders", "events")
HALF = WINDOW // 2


def test_half_of_the_window_passes_and_one_more_does_not() -> None:
    guard = FailureGuard()
    guard.note(UNIT, ["23514"] * HALF)
    assert guard.judge(UNIT, [""]) is None
    assert guard.judge(UNIT, ["23514"]) == "23514"
    assert guard.judge(("orders", "other"), ["23514"]) is None


def test_what_was_judged_and_not_applied_is_not_remembered() -> None:
    guard = FailureGuard()
    assert guard.judge(UNIT, ["23514"] * (HALF + 1)) == "23514"
    assert guard.judge(UNIT, ["23514"]) is None


def test_two_causes_are_two_counts_and_old_outcomes_leave_the_window() -> None:
    guard = FailureGuard()
    guard.note(UNIT, ["23514"] * HALF + ["23502"] * HALF)
    assert guard.judge(UNIT, []) is None
    assert guard.judge(UNIT, [""] * HALF + ["23502"]) is None
    assert guard.judge(UNIT, ["23502"] * WINDOW) == "23502"
