"""docs/fault-matrix.md says what the tests' markers say."""

from __future__ import annotations

from tests.faults.matrix import DOCUMENT, REASONS, marked, render


def test_the_document_is_current() -> None:
    assert DOCUMENT.read_text() == render(), "run: python -m tests.faults.matrix"


def test_a_row_with_a_test_gives_no_reason_for_having_none() -> None:
    assert marked().keys().isdisjoint(REASONS)
