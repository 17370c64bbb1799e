"""`bridge prove` and `bridge replay` as the user runs them, in the world of the test."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.world import World

Command = Callable[..., "Ran"]


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def report(self) -> dict[str, Any]:
        assert self.out.startswith("{"), self.out + self.err
        return json.loads(self.out)  # type: ignore[no-any-return]

    @property
    def only(self) -> dict[str, Any]:
        [one] = self.report["comparisons"]
        return one  # type: ignore[no-any-return]


@pytest.fixture
def command(world: World) -> Command:
    """`command("prove", "--json")`; environment as keywords."""

    def run(*arguments: str, **environment: str) -> Ran:
        ran = world.run(*arguments, **environment)
        return Ran(ran.returncode, ran.stdout, ran.stderr)

    return run
