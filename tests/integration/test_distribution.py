"""What is published: the sdist and the wheel are built, checked, and the wheel tried in environments of its own.

A release (docs/releasing.md) is this, then an upload.
"""

from __future__ import annotations

import ast
import itertools
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from importlib.metadata import packages_distributions, requires
from pathlib import Path, PurePosixPath

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from trove_classifiers import classifiers

from bridge import __version__
from bridge.postgres.schema import source_sql, target_sql
from tests.support import distribution
from tests.support.bridge_process import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
# Files that a work tree may have and that nobody may publish.
STRAY = (".env", "deploy/.env", "deploy/admin_token", "dump.sql", "bridge/__pycache__/stray.pyc")
_NOT_OURS = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "node_modules", "dist", "build"
)

# As an application would write it. The first line that mypy cannot check is an error under --strict.
APPLICATION = """
import asyncio
from uuid import UUID

import bridge
import psycopg


def order(connection: psycopg.Connection) -> UUID:
    found = bridge.emit(connection, "order.paid", {"total": 12}, idempotency_key="order:1", period="month")
    reveal_type(found)
    return found


async def order_async(connection: psycopg.AsyncConnection) -> UUID:
    found = await bridge.emit(connection.cursor(), "order.paid", {"total": 12}, key="cus_1")
    reveal_type(found)
    return found


reveal_type(bridge.__version__)
"""
WRONG = """
import bridge
import psycopg


def order(connection: psycopg.Connection, asynchronous: psycopg.AsyncConnection) -> str:
    bridge.emit(connection, 7, {})
    bridge.emit(connection, "order.paid", {}, period="fortnight")
    return bridge.emit(asynchronous, "order.paid", {})
"""


@dataclass(frozen=True)
class Published:
    sdist: Path
    wheel: Path

    @property
    def sdist_names(self) -> set[str]:
        with tarfile.open(self.sdist) as archive:
            return {str(PurePosixPath(*PurePosixPath(name).parts[1:])) for name in archive.getnames()}

    @property
    def wheel_names(self) -> set[str]:
        with zipfile.ZipFile(self.wheel) as archive:
            return set(archive.namelist())

    def wheel_text(self, name: str) -> str:
        with zipfile.ZipFile(self.wheel) as archive:
            return archive.read(name).decode()

    @property
    def information(self) -> str:
        return f"outbox_bridge-{__version__}.dist-info"

    @property
    def metadata(self) -> Message:
        return HeaderParser().parsestr(self.wheel_text(f"{self.information}/METADATA"))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Built from a work tree in which files lie that are nobody's business."""
    directory = tmp_path_factory.mktemp("published")
    tree = directory / "tree"
    shutil.copytree(REPOSITORY, tree, ignore=_NOT_OURS)
    for name in STRAY:
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_text("a secret\n")
    return Published(*distribution.build(tree, directory / "dist"))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(False, id="dependencies lent"),
        pytest.param(True, id="dependencies fetched", marks=pytest.mark.slow),
    ],
)
def commands(
    published: Published, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    """The folder of commands of an environment that has the wheel, and what it asks for."""
    at = tmp_path_factory.mktemp("environment") / "venv"
    return distribution.environment(at, str(published.wheel), fetched=request.param)


def run(directory: Path, *command: str | Path, code: int = 0) -> str:
    """What it prints, on both streams, with nothing of the tests' own environment around it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "BRIDGE_"))}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=directory,
        env={**kept, "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, f"{command}: exit {done.returncode}\n{done.stdout}"
    return done.stdout


def source_files(*folders: str) -> set[str]:
    """The files below these folders of the checkout, without what running it leaves behind."""
    found = (path for folder in folders for path in (REPOSITORY / folder).rglob("*") if path.is_file())
    return {path.relative_to(REPOSITORY).as_posix() for path in found if "__pycache__" not in path.parts}


def test_twine_finds_nothing_wrong(published: Published, tmp_path: Path) -> None:
    said = run(tmp_path, sys.executable, "-m", "twine", "check", "--strict", published.sdist, published.wheel)
    assert said.count("PASSED") == 2, said


def test_the_wheel_holds_the_package_with_its_sql_and_nothing_else(published: Published) -> None:
    package = source_files("bridge") | {f"bridge/{name}" for name in source_files("sql")}
    names = {name for name in published.wheel_names if not name.startswith(f"{published.information}/")}
    assert names == package
    assert "bridge/py.typed" in names


def test_the_sdist_is_enough_to_build_and_test_and_has_no_stray_file(published: Published) -> None:
    names = published.sdist_names
    assert source_files("bridge", "sql", "tests", "docs", "bench") <= names
    assert {"LICENSE", "README.md", "CHANGELOG.md", "Makefile", "requirements-dev.txt", ".ci/run"} <= names
    assert not names & set(STRAY)
    assert not [name for name in names if "node_modules" in name or "__pycache__" in name]


def test_the_license_travels_with_the_wheel_unabridged(published: Published) -> None:
    text = published.wheel_text(f"{published.information}/licenses/LICENSE")
    assert text == (REPOSITORY / "LICENSE").read_text()
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_metadata_says_what_an_index_page_shows(published: Published) -> None:
    metadata = published.metadata
    parsed = Metadata.from_email(published.wheel_text(f"{published.information}/METADATA"), validate=True)
    assert metadata["Name"] == "outbox-bridge"
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert {"Homepage", "Documentation", "Changelog", "Issues", "Source"} <= (
        parsed.project_urls or {}
    ).keys()
    assert parsed.keywords


def test_the_classifiers_exist_and_say_that_it_is_typed(published: Published) -> None:
    found = published.metadata.get_all("Classifier") or []
    assert set(found) <= classifiers
    assert "Typing :: Typed" in found
    assert not [one for one in found if one.startswith("License ::")]  # License-Expression says it (PEP 639)


def declared() -> set[str]:
    """What the wheel asks for, with its extras, and what those pin exactly, which is a part of them (pydantic-core)."""
    texts = [*PROJECT["dependencies"], *itertools.chain(*PROJECT["optional-dependencies"].values())]
    names = {canonicalize_name(Requirement(text).name) for text in texts}
    behind = (Requirement(text) for name in names for text in requires(name) or [])
    return names | {canonicalize_name(one.name) for one in behind if str(one.specifier).startswith("==")}


def test_every_module_imports_only_what_the_wheel_asks_for(published: Published) -> None:
    """No test tool of ours is needed to run what we publish."""
    distributions = packages_distributions()
    allowed = declared()
    for name in sorted(published.wheel_names):
        if not name.endswith(".py"):
            continue
        for imported in imports(ast.parse(published.wheel_text(name))):
            if imported == "bridge" or imported in sys.stdlib_module_names:
                continue
            providers = {canonicalize_name(one) for one in distributions.get(imported, [])}
            assert providers & allowed, f"{name} imports {imported}, which no dependency brings"


def imports(tree: ast.Module) -> set[str]:
    """The first parts of what it imports, wherever in the module it does."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("name", ["bridge", "outbox-bridge"])
def test_both_names_are_the_same_command_and_it_says_its_name(
    commands: Path, tmp_path: Path, name: str
) -> None:
    assert run(tmp_path, commands / name, "--version") == f"{name}, version {__version__}\n"
    assert f"Usage: {name} [OPTIONS] COMMAND" in run(tmp_path, commands / name, "--help")
    assert f"Usage: {name} lint [OPTIONS]" in run(tmp_path, commands / name, "lint", "--help")
    wrong = run(tmp_path, commands / name, "lint", "--nothing", code=2)
    assert f"'{name} lint --help'" in wrong


def test_the_package_runs_as_a_module(commands: Path, tmp_path: Path) -> None:
    assert "Usage: python -m bridge [OPTIONS]" in run(tmp_path, commands / "python", "-m", "bridge", "--help")


def test_the_first_files_of_an_installed_bridge_are_good(commands: Path, tmp_path: Path) -> None:
    written = run(tmp_path, commands / "outbox-bridge", "init", "mine")
    assert "wrote mine/bridge.yaml" in written
    shell = (
        f"set -a && . ./.env.example && '{commands}/outbox-bridge' lint && '{commands}/outbox-bridge' test"
    )
    run(tmp_path / "mine", "/bin/sh", "-c", shell)


@pytest.mark.parametrize("side", ["source", "target"])
def test_an_installed_wheel_prints_the_same_sql_as_the_checkout(
    commands: Path, tmp_path: Path, side: str
) -> None:
    printed = run(tmp_path, commands / "bridge", "schema", side)
    assert printed == (source_sql() if side == "source" else target_sql())


def mypy(commands: Path, directory: Path, program: str, code: int) -> list[str]:
    """What mypy --strict says to a user of the installed package."""
    (directory / "application.py").write_text(program)
    arguments = ("--strict", "--cache-dir", directory / "cache", "--python-executable", commands / "python")
    said = run(directory, sys.executable, "-m", "mypy", *arguments, "application.py", code=code)
    return said.splitlines()


def test_emit_is_typed_for_the_users_of_the_wheel(commands: Path, tmp_path: Path) -> None:
    said = mypy(commands, tmp_path, APPLICATION, code=0)
    revealed = [line.partition("Revealed type is ")[2] for line in said if "Revealed type" in line]
    assert [one.strip('"').removeprefix("uuid.") for one in revealed] == ["UUID", "UUID", "str"], said
    said = mypy(commands, tmp_path, WRONG, code=1)
    assert len([line for line in said if ": error: " in line]) == 3, said
