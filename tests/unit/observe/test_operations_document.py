"""Every reason for which a stream can halt has its section in docs/operations.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]


def words(node: ast.expr) -> Iterator[str]:
    """The words that an expression such as `"a" if x else "b"` can give; none for what is computed."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from (*words(node.body), *words(node.orelse))
    elif isinstance(node, ast.Call):  # TABLE.get(sqlstate, "otherwise")
        yield from (word for argument in node.args for word in words(argument))
    elif isinstance(node, ast.Dict):
        yield from (word for value in node.values for word in words(value))


def reasons_of_halts() -> Iterator[tuple[str, str]]:
    """(reason, file:line) of each `Halt(..., reason=...)`, of a target's `Finding(reason, ...)`, of each table
    named _REASONS and of each class that derives from Halt."""
    for path in sorted((ROOT / "bridge").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            at = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            found: list[ast.expr] = []
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called.endswith("Halt"):
                    found = [keyword.value for keyword in node.keywords if keyword.arg == "reason"]
                elif called == "Finding" and path.parent.name == "postgres":
                    found = node.args[:1]
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_REASONS":
                found = [node.value]
            elif isinstance(node, ast.ClassDef) and "Halt" in map(ast.unparse, node.bases):
                assigned = [one for one in node.body if isinstance(one, ast.Assign)]
                found = [one.value for one in assigned if ast.unparse(one.targets[0]) == "reason"]
            yield from ((word, at) for value in found for word in words(value))


def test_each_halted_reason_has_a_section_that_says_what_to_do() -> None:
    sections = set(re.findall(r"^#### (\w+)$", (ROOT / "docs" / "operations.md").read_text(), re.M))
    found = dict(reasons_of_halts())
    assert "ledger_missing" in found
    missing = {reason: at for reason, at in found.items() if reason not in sections}
    assert not missing, (
        f"add a section '#### {next(iter(missing))}' to docs/operations.md, Halted reasons: {missing}"
    )
