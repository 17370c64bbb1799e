"""One source, one target, bridges between them, and `bridge prove` as the user runs it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults.world import World
from tests.support.bridge_process import REPOSITORY
from tests.support.commands import run_command
from tests.support.servers import Database

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
def world(source: Database, target: Database, tmp_path: Path) -> Iterator[World]:
    made = World(source, target, tmp_path)
    yield made
    made.close()


@pytest.fixture
def command(world: World) -> Command:
    """`command("prove", "--json")`; environment as keywords."""

    def run(*arguments: str, **environment: str) -> Ran:
        world.write_config()
        line = [sys.executable, "-m", "bridge", arguments[0], "-c", str(world.config), *arguments[1:]]
        env = {
            "SOURCE_DSN": world.source.bridge_dsn,
            "WAREHOUSE_DSN": world.target.bridge_dsn,
            "PYTHONPATH": str(REPOSITORY),
            "PATH": "/usr/bin:/bin",
            **environment,
        }
        ran = run_command(line, env)
        return Ran(ran.returncode, ran.stdout, ran.stderr)

    return run
