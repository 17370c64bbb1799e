"""docs/seed.md: each sentence of the product page has tests, and the tests it names are there."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
TEXT = (REPOSITORY / "docs" / "seed.md").read_text(encoding="utf-8")


def test_each_test_that_the_page_names_is_there() -> None:
    named = re.findall(r"^- `([^`]+?)::([^`]+)`$", TEXT, re.MULTILINE)
    assert len(named) == len(re.findall(r"^- ", TEXT, re.MULTILINE)) > 0
    missing = []
    for path, name in named:
        file = REPOSITORY / path
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        opening = rf'^test\("{re.escape(name)}"' if path.endswith(".mjs") else rf"^def {re.escape(name)}\("
        if not re.search(opening, text, re.MULTILINE):
            missing.append(f"{path}::{name}")
    assert missing == []


def test_each_sentence_has_a_test() -> None:
    sentences = re.split(r"^\*\*", TEXT, flags=re.MULTILINE)[1:]
    assert sentences
    assert [one.partition("**")[0] for one in sentences if "::" not in one] == []
