"""Every wrong protocol is caught, by an invariant or by the promise: not by a time-out, not by an accident."""

from __future__ import annotations

import pytest

from tests.model import checks, faults, mutants, walk

WALKS = 1500
"""A mutant that needs more is not caught."""


@pytest.mark.parametrize("name", mutants.MUTANTS)
def test_the_model_catches_a_protocol_that(name: str) -> None:
    with mutants.applied(name), pytest.raises(checks.Violation):
        _walk_on(mutants.FOCUS.get(name, ()))


def _walk_on(focus: tuple[faults.Act, ...]) -> None:
    for number in range(WALKS):
        walk.walk(f"1/{number}", focus=focus)
