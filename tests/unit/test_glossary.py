"""docs/glossary.md: every word once, in order, and the code, table or key that it names is where it says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
TEXT = (REPOSITORY / "docs" / "glossary.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]*) \|$", TEXT, re.MULTILINE)[
    2:
]  # without the table's head


def names(path: Path) -> set[str]:
    """The classes, functions and values that a module defines at its top."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found.update(ast.unparse(target) for target in node.targets)
    return found


def modules_with(name: str) -> list[str]:
    """Where a name is defined, for the message of a failure."""
    modules = sorted((REPOSITORY / "bridge").rglob("*.py"))
    return [path.relative_to(REPOSITORY).as_posix() for path in modules if name in names(path)]


def defined() -> Iterator[tuple[str, str, str]]:
    """(word, name, module) of each row that names code."""
    for word, _, where in ROWS:
        for name, module in re.findall(r"`(\w+)`, `(bridge/[\w/]+\.py)`", where):
            yield word, name, module


def test_the_words_are_in_order_and_stand_once() -> None:
    words = [word for word, _, _ in ROWS]
    assert len(words) > 60
    assert words == sorted(set(words), key=str.lower)


def test_every_name_is_defined_in_the_module_that_the_glossary_gives() -> None:
    found = list(defined())
    assert len(found) > 40
    wrong = {}
    for word, name, module in found:
        path = REPOSITORY / module
        if not path.is_file() or name not in names(path):
            wrong[word] = f"`{name}` is in {modules_with(name) or 'no module'}"
    assert wrong == {}


def test_every_table_and_key_exists() -> None:
    sql = "\n".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "sql").rglob("*.sql"))
    keys = (REPOSITORY / "docs" / "configuration.md").read_text(encoding="utf-8")
    for word, _, where in ROWS:
        for name in re.findall(r"`((?:outbox|bridge)\.\w+)`", where):
            assert re.search(rf"(table|function)[\w ]* {re.escape(name)}\b", sql), word
        for key in re.findall(r"^`(?:source\.)?(\w+)`$", where):
            assert f"| `{key}` |" in keys, word
