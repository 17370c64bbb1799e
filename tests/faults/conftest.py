"""Fixtures of the fault tests, and the marker that ties a test to rows of the fault matrix."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.world import World
from tests.support.servers import Database


@pytest.fixture
def world(source: Database, target: Database, tmp_path: Path) -> Iterator[World]:
    """A fresh source and target; on servers of the test's own where it also asks for `source_cluster` or
    `target_cluster`."""
    made = World(source, target, tmp_path)
    yield made
    made.close()
