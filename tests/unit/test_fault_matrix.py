"""The fault matrix in docs/guarantees.md says what the tests' markers say, and no row is without a test."""

from __future__ import annotations

from tests.faults.matrix import DOCUMENT, SECTIONS, marked, render


def test_the_section_is_current() -> None:
    assert DOCUMENT.read_text().endswith(render()), "run: python -m tests.faults.matrix"


def test_every_row_has_a_test() -> None:
    assert {row for rows in SECTIONS.values() for row in rows} == marked().keys()
