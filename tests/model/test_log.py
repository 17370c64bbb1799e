"""Relays and partitions over a log: nothing lost, nothing twice, and every wrong protocol is caught."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.model import checks, faults, log_mutants, log_walk, mutants
from tests.model import test_log_found as found

WALKS = 150
MUTANT_WALKS = 600
"""A mutant that needs more is not caught."""
STORIES = {
    "believes_an_idle_advance_that_the_source_does_not_know": (
        found.test_an_idle_advance_counts_as_far_as_this_source_knows_it
    ),
    "takes_what_a_slot_is_past_for_visible": (found.test_what_a_slot_was_moved_past_is_not_taken_for_visible),
    "never_waits_again_for_a_stream_that_was_given_up": (
        found.test_a_stream_that_was_given_up_and_came_back_is_waited_for
    ),
    "confirms_up_to_the_look_before": (found.test_a_slot_stays_behind_the_looks_that_a_stream_may_have_found),
}
"""Mutants that need a long chain of chances, or cost time alone, and who catches them."""


def test_no_walk_over_a_log_loses_or_doubles_an_event() -> None:
    counts: Counter[str] = Counter()
    for number in range(WALKS):
        log_walk.walk_log(f"make test/{number}", counts)
    assert [name for name in log_walk.MUST_HAPPEN if not counts[name]] == []


_WALKED = sorted(log_mutants.MUTANTS.keys() - STORIES)


@pytest.mark.parametrize(
    "name",
    [
        name if place % 4 == 0 else pytest.param(name, marks=pytest.mark.slow)
        for place, name in enumerate(_WALKED)
    ],
)
def test_the_model_catches_over_a_log_a_protocol_that(name: str) -> None:
    with mutants.applied(name, log_mutants.MUTANTS), pytest.raises(checks.Violation):
        _walk_on(log_mutants.FOCUS[name])


@pytest.mark.parametrize("name", STORIES)
def test_a_story_catches_over_a_log_a_protocol_that(name: str) -> None:
    with mutants.applied(name, log_mutants.MUTANTS), pytest.raises(AssertionError):
        STORIES[name]()


def _walk_on(focus: tuple[faults.Act, ...]) -> None:
    for number in range(MUTANT_WALKS):
        log_walk.walk_log(f"1/{number}", focus=focus)
