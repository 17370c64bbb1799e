"""The tests themselves: their names are short sentences, and CONTRIBUTING.md has them on its map."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
LONGEST = 72  # as a commit's subject: a line of output shows it with the test's file


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_a_tests_name_has_at_most_72_characters() -> None:
    names = [
        (path.relative_to(ROOT), function.name)
        for path in (ROOT / "tests").rglob("test_*.py")
        for function in functions(path)
        if function.name.startswith("test_")
    ]
    assert len(names) > 900
    assert [found for found in names if len(found[1]) > LONGEST] == []


def test_the_map_names_every_folder_of_tests_and_every_common_fixture() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    folders = [path.parent for path in (ROOT / "tests").glob("*/__init__.py")]
    assert len(folders) > 6
    assert [folder.name for folder in folders if f"| `tests/{folder.name}` |" not in page] == []
    fixtures = [
        function.name
        for function in functions(ROOT / "tests" / "conftest.py")
        if any("fixture" in ast.unparse(decorator) for decorator in function.decorator_list)
    ]
    asked_for = [name for name in fixtures if name != "servers" and not name.endswith("_connection")]
    assert len(asked_for) > 5
    assert [name for name in asked_for if f"`{name}" not in page] == []
