"""Fixtures: two new databases, and a shell with the commands of the built wheel."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.shell import Shell, transcript
from tests.support import distribution
from tests.support.bridge_process import REPOSITORY
from tests.support.servers import Database, create_database, drop_database

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def wheel_commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of a new virtual environment with our wheel; its dependencies are the tests' environment's."""
    directory = tmp_path_factory.mktemp("wheel")
    _, wheel = distribution.build(REPOSITORY, directory)
    return distribution.environment(directory / "venv", str(wheel), fetched=False)


@pytest.fixture
def app(source: Database) -> Iterator[Database]:
    """A database that knows nothing of outboxes yet."""
    database = create_database(source.server, f"app_{next(_numbers)}")
    yield database
    drop_database(database)


@pytest.fixture
def warehouse(target: Database) -> Iterator[Database]:
    database = create_database(target.server, f"warehouse_{next(_numbers)}")
    yield database
    drop_database(database)


@pytest.fixture
def shell(wheel_commands: Path, tmp_path: Path, app: Database, warehouse: Database) -> Iterator[Shell]:
    made = Shell(wheel_commands, tmp_path, app.dsn, warehouse.dsn)
    yield made
    made.close()


@pytest.fixture
def prepared(shell: Shell) -> Shell:
    """Everything of the transcript before doctor."""
    lines, _ = transcript()
    shell.init(lines[2].partition(" && ")[0])
    for line in lines[3:6]:
        shell(line)
    return shell
