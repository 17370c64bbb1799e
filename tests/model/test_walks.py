"""Random walks: nothing lost, nothing twice, whatever happened; and everything did happen."""

from __future__ import annotations

from collections import Counter

from tests.model import walk

WALKS = 700


def test_no_walk_loses_or_doubles_an_event_and_every_fault_happened() -> None:
    counts: Counter[str] = Counter()
    for number in range(WALKS):
        walk.walk(f"make test/{number}", counts)
    assert [name for name in walk.MUST_HAPPEN if not counts[name]] == []
