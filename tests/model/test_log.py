"""Relays and partitions over a log: nothing lost, nothing twice, and every wrong protocol is caught."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.model import checks, faults, log_mutants, log_walk, mutants

WALKS = 150
MUTANT_WALKS = 600
"""A mutant that needs more is not caught."""


def test_no_walk_over_a_log_loses_or_doubles_an_event() -> None:
    counts: Counter[str] = Counter()
    for number in range(WALKS):
        log_walk.walk_log(f"make test/{number}", counts)
    assert [name for name in log_walk.MUST_HAPPEN if not counts[name]] == []


@pytest.mark.parametrize("name", log_mutants.MUTANTS)
def test_the_model_catches_over_a_log_a_protocol_that(name: str) -> None:
    with mutants.applied(name, log_mutants.MUTANTS), pytest.raises(checks.Violation):
        _walk_on(log_mutants.FOCUS[name])


def _walk_on(focus: tuple[faults.Act, ...]) -> None:
    for number in range(MUTANT_WALKS):
        log_walk.walk_log(f"1/{number}", focus=focus)
