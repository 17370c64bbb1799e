"""Every reason for which a stream can halt has its section in docs/operations.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]


def reasons_of_halts() -> Iterator[tuple[str, str]]:
    """(reason, file:line) of each `Halt(..., reason="...")` and of each class that derives from Halt."""
    for path in sorted((ROOT / "bridge").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            at = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Halt"):
                for keyword in node.keywords:
                    if keyword.arg == "reason" and isinstance(keyword.value, ast.Constant):
                        yield str(keyword.value.value), at
            elif isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "Halt" for base in node.bases):
                for statement in node.body:
                    if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "reason":
                        yield str(ast.literal_eval(statement.value)), at


def test_each_halted_reason_has_a_section_that_says_what_to_do() -> None:
    sections = set(re.findall(r"^#### (\w+)$", (ROOT / "docs" / "operations.md").read_text(), re.M))
    found = dict(reasons_of_halts())
    assert "ledger_missing" in found
    missing = {reason: at for reason, at in found.items() if reason not in sections}
    assert not missing, (
        f"add a section '#### {next(iter(missing))}' to docs/operations.md, Halted reasons: {missing}"
    )
