"""docs/architecture.md names every file that an event passes, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.event_path import EventPath, trace_event
from tests.support.servers import Database

ARCHITECTURE = Path(__file__).parents[2] / "docs" / "architecture.md"
MOST_MODULES = 25
MOST_CHANGES = 125


@pytest.fixture
def path(source: Database, target: Database) -> EventPath:
    return trace_event(source.bridge_dsn, target.bridge_dsn, source.dsn)


def _table() -> set[str]:
    """The files in the table of "One straight path" that stand on the hot path."""
    text = ARCHITECTURE.read_text()
    section = text[text.index("<!-- event path -->") : text.index("<!-- end of event path -->")]
    return set(re.findall(r"`(\w+/\w+(?:/\w+)?\.py)`", section))


def test_the_documented_path_is_the_one_an_event_takes(path: EventPath) -> None:
    assert set(path.modules) == _table()


def test_an_event_passes_few_files(path: EventPath) -> None:
    """The figures of docs/architecture.md, which are bounds: a change that adds a detour says so there."""
    text = ARCHITECTURE.read_text()
    assert f"at most {MOST_MODULES} modules and {MOST_CHANGES} changes of file" in text
    assert len(path.modules) <= MOST_MODULES, path.modules
    assert path.changes <= MOST_CHANGES
