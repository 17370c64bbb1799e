"""The catalogue fits the code: a mutant whose text is gone would be caught by nothing and noticed by nobody."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.mutants.catalog import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_its_text_stands_in_the_code_once_and_what_comes_instead_is_code(mutant: Mutant) -> None:
    changed: dict[str, str] = {}
    for edit in mutant.edits:
        text = changed.get(edit.file) or (ROOT / edit.file).read_text()
        assert text.count(edit.old) == 1, f"{edit.file}: {edit.old}"
        changed[edit.file] = text.replace(edit.old, edit.new)
    for text in changed.values():
        ast.parse(text)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_its_tests_exist_and_it_stands_in_the_documentation(mutant: Mutant) -> None:
    for test in mutant.tests:
        path, _, rest = test.partition("::")
        source = (ROOT / path).read_text()
        name = rest.partition("[")[0]
        assert f"def {name}" in source
    assert f"| {mutant.name} |" in (ROOT / "docs" / "mutants.md").read_text()
