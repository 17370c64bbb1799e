"""One kind of fact has one level: every entry of the log, by the source, against the table of docs/operations.md."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
LEVELS = ("debug", "info", "warning", "error")


def entries() -> Iterator[tuple[str, str, str]]:
    """(text, level, file) of each entry that the bridge writes. A watcher's `log` has the level first."""
    for file in sorted((ROOT / "bridge").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            words = [one for one in node.args[:2] if isinstance(one, ast.Constant)]
            texts = [str(one.value) for one in words]
            if node.func.attr == "log" and texts and texts[0] in LEVELS:
                second = node.args[1] if len(node.args) > 1 else None
                for one in ast.walk(second) if second is not None else ():
                    if isinstance(one, ast.Constant) and isinstance(one.value, str):
                        yield one.value, texts[0], file.name
            elif node.func.attr in LEVELS and len(texts) == 1 and _is_log(node.func.value):
                yield texts[0], node.func.attr, file.name


def _is_log(node: ast.expr) -> bool:
    return "log" in ast.unparse(node).lower()


def table() -> dict[str, list[str]]:
    """Level to the entries that docs/operations.md names for it."""
    rows = re.findall(
        r"^\| (debug|info|warning|error) \| (.+) \|$", (ROOT / "docs/operations.md").read_text(), re.M
    )
    return {level: re.findall(r"`([^`]+)`", text) for level, text in rows}


def test_an_entry_has_one_level_everywhere() -> None:
    found: dict[str, set[str]] = defaultdict(set)
    for text, level, _ in entries():
        found[text].add(level)
    assert len(found) > 30, "they are found"
    assert {text: levels for text, levels in found.items() if len(levels) > 1} == {}


def test_the_document_names_entries_that_exist_with_their_level() -> None:
    found = {(text, level) for text, level, _ in entries()}
    written = table()
    assert list(written) == list(LEVELS)
    assert {(text, level) for level, texts in written.items() for text in texts} <= found
