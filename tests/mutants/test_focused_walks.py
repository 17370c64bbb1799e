"""Random walks of the model in which one kind of fault is frequent: the real protocol holds in all of them.

The foci are those that the model's own mutants need. BRIDGE_WALKS is how many walks each gets.
"""

from __future__ import annotations

import os

import pytest

from tests.model import mutants, walk

WALKS = int(os.environ.get("BRIDGE_WALKS", "60"))


@pytest.mark.parametrize("name", mutants.FOCUS)
def test_walks_hold_where_this_is_likely(name: str) -> None:
    for number in range(WALKS):
        walk.walk(f"1/{number}", focus=mutants.FOCUS[name])
