"""The checkers judge the bridge, so they import nothing of it: neither the demo's nor the tests'."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def reached(path: Path) -> set[str]:
    """Everything that is imported by the file and by the test modules that it imports."""
    found: set[str] = set()
    waiting = [path]
    while waiting:
        new = set(imported(waiting.pop())) - found
        found |= new
        ours = (ROOT / f"{name.replace('.', '/')}.py" for name in new if name.startswith("tests."))
        waiting += [file for file in ours if file.exists()]
    return found


@pytest.mark.parametrize(
    ("path", "needs"), [("bridge/demo/checker.py", "psycopg"), ("tests/support/truth.py", "psycopg.sql")]
)
def test_a_checker_imports_nothing_of_the_bridge(path: str, needs: str) -> None:
    names = reached(ROOT / path)
    assert needs in names
    assert [name for name in names if name.partition(".")[0] == "bridge"] == []
