"""The wheel carries the SQL: built, installed in a virtual environment of its own, and asked to print it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from bridge.postgres.schema import source_sql, target_sql

CHECKOUT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bridge` command of a fresh environment that holds our wheel alone."""
    directory = tmp_path_factory.mktemp("wheel")
    tree = directory / "tree"
    tree.mkdir()
    for part in ("bridge", "sql"):
        shutil.copytree(CHECKOUT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CHECKOUT / "pyproject.toml", tree)
    (tree / "README.md").write_text("of no interest here\n")

    def run(*command: str) -> None:
        subprocess.run(command, cwd=tree, check=True, capture_output=True)

    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory))
    [wheel] = directory.glob("*.whl")
    environment = directory / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", str(environment))
    python = environment / "bin" / "python"
    run(
        sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)
    )
    return environment / "bin" / "bridge"


@pytest.mark.parametrize("side", ["source", "target"])
def test_an_installed_wheel_prints_the_same_sql_as_the_checkout(installed: Path, side: str) -> None:
    printed = subprocess.run(
        [str(installed), "schema", side],
        cwd=installed.parent,
        env={**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")},  # the dependencies
        check=True,
        capture_output=True,
        text=True,
    )
    assert printed.stdout == (source_sql() if side == "source" else target_sql())
