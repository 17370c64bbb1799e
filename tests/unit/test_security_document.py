"""docs/security.md says which files prove which row; the tests' markers say the same.

A file's name in the table without a directory stands in the directory of the one before it.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def _marked() -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.security":
                for row in node.args:
                    found.setdefault(int(ast.literal_eval(row)), set()).add(path.relative_to(ROOT).as_posix())
    return found


def _paths(files: str) -> set[str]:
    found: set[str] = set()
    directory = ""
    for name in re.findall(r"`([\w/]+\.py)`", files):
        before, slash, last = name.rpartition("/")
        directory = before if slash else directory
        found.add(f"{directory}/{last}")
    return found


def test_each_row_names_the_files_whose_tests_carry_its_number() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    written = {
        int(row): _paths(files) for row, files in re.findall(r"^\| (\d+) \|.*\| ([^|]*) \|$", text, re.M)
    }
    assert written == _marked()
    assert written.keys() == {*range(1, 23)}
