"""Random walks: nothing lost, nothing twice, whatever happened; and everything did happen."""

from __future__ import annotations

from collections import Counter

from tests.model import faults, walk

WALKS = 700


def test_no_walk_loses_or_doubles_an_event_and_every_fault_happened() -> None:
    counts: Counter[str] = Counter()
    for number in range(WALKS):
        walk.walk(f"make test/{number}", counts)
    for rare in (faults.lagging_promotion, faults.foreign_slot):
        for number in range(100):
            walk.walk(f"{rare.__name__}/{number}", counts, focus=(rare,))
    assert [name for name in walk.MUST_HAPPEN if not counts[name]] == []


def test_an_application_that_deletes_its_rows_hides_no_other_history() -> None:
    """The last applied row is gone, the source was restored from a copy or was not: what is accepted is right."""
    counts: Counter[str] = Counter()
    deletes = (faults.delete_the_witness, faults.crash_bridge)
    for number in range(400):
        history = (faults.copy_source, faults.restore_source) if number % 2 else ()
        walk.walk(f"deleted/{number}", counts, focus=(*deletes, *history))
    happened = ("the stream had to show the witness", "ended: witness_missing", "ended: history_diverged")
    assert [name for name in happened if not counts[name]] == []
