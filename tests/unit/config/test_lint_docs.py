"""docs/lint.md has every name that a finding can have, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from bridge.config.allow import RULES

ROOT = Path(__file__).parents[3]


def names() -> Iterator[str]:
    """`name=` of every Remark and LintFinding, and the names of allowances."""
    for path in sorted((ROOT / "bridge").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Remark", "LintFinding"):
                values = [one.value for one in node.keywords if one.arg == "name"] + node.args[5:6]
                yield from (
                    one.value
                    for one in values
                    if isinstance(one, ast.Constant) and isinstance(one.value, str)
                )
                if not values and "Remark" in ast.unparse(node.func):
                    yield "invalid"


def test_every_name_is_told_and_every_told_name_is_one() -> None:
    told = re.findall(r"^\| `([\w-]+)` \|", (ROOT / "docs" / "lint.md").read_text(), re.MULTILINE)
    assert len(told) == len(set(told))
    assert set(told) == set(names()) == RULES
