"""YAML's surprises: read as the text a person meant, or refused, with the place."""

from __future__ import annotations

from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.config.document import Document, parse, read
from bridge.problem import InvalidConfig, Position


def document(text: str, **environ: str) -> Document:
    return parse(text, environ, file="f", directory=Path())


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("on", "on"),
        ("no", "no"),
        ("Yes", "Yes"),
        ("012", "012"),
        ("0x1F", "0x1F"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("+49151", "+49151"),
        ("2027-03-01", "2027-03-01"),
        (".5", ".5"),
        (".inf", ".inf"),
        ("=", "="),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("12", 12),
        ("-0.5", -0.5),
        ("1e3", 1000.0),
        ("0.1", 0.1),
        ("123456789012345678901234567890", 123456789012345678901234567890),
        ("12345678901234567.25", Decimal("12345678901234567.25")),
        ('"12"', "12"),
        ("'true'", "true"),
        ('"null"', "null"),
        ("!!str 12", "12"),
    ],
)
def test_scalars_are_what_they_look_like(written: str, value: Any) -> None:
    found = document(f"key: {written}").tree["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("word", ["True", "TRUE", "False", "NULL", "Null"])
def test_words_that_may_be_text_are_refused(word: str) -> None:
    (problem,) = document(f"a:\n  key: {word}").problems
    assert problem.position == Position(2, 8)
    assert problem.hint == f"write {word.lower()}, or quote it"


def test_keys_are_text() -> None:
    assert document("{on: 1, 012: 2, null: 3, 5: 4}").tree == {"on": 1, "012": 2, "null": 3, "5": 4}


def test_a_key_that_stands_twice_is_told_at_the_second() -> None:
    (problem,) = document("a: 1\nb:\n  c: 1\n  c: 2\n").problems
    assert (problem.position, problem.path) == (Position(4, 3), ("b", "c"))
    assert "first in line 3" in problem.message


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system [id]",
        "a: !!python/name:os.system x",
        "a: !ENV x",
        "a: !!int '5'",
        "a: !!binary aGk=",
        "a: !!set {x}",
    ],
)
def test_tags_construct_nothing(text: str) -> None:
    found = document(text)
    assert [problem.message for problem in found.problems] == ["tags are not allowed"]


def test_aliases_and_merges_are_followed() -> None:
    found = document("a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}\nc: *x\n")
    assert found.tree == {"a": {"p": 1, "q": 2}, "b": {"p": 1, "q": 3}, "c": {"p": 1, "q": 2}}
    assert found.problems == []


def test_an_alias_that_holds_itself_ends() -> None:
    assert [p.message for p in document("a: &x [*x]").problems] == ["an alias that contains itself"]


def test_a_small_file_cannot_become_a_huge_tree() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    (problem,) = document("\n".join(lines)).problems
    assert "too large" in problem.message


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("a: {b: ${X}}", "f:1:", "quote a value that has ${...}"),
        ("a: {b: string?}", "f:1:14:", "quote a text that has a question mark"),
        ("a: b: c", "f:1:5:", "quote a value that has a colon"),
        ("a:\n\tb: 1", "f:2:1:", "spaces, not tabs"),
        ("a: @b", "f:1:4:", "quote a value that starts with"),
        ("a: 'b", "f:1:6:", "is not YAML"),
        ("", "f:1:1:", "is empty"),
        ("a: 1\n---\nb: 2", "f:2:1:", "is not YAML"),
        ("a: *nowhere", "f:1:4:", "undefined alias"),
        ("a: \x07", "f:1:4:", "character that YAML does not allow"),
        ("[" * 5000, "f:1:1:", "nested too deeply"),
    ],
)
def test_what_is_not_yaml_is_told_with_its_place(text: str, place: str, words: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        document(text)
    assert place in str(caught.value)
    assert words in str(caught.value)


def test_a_template_without_quotes_is_told_to_take_some() -> None:
    (problem,) = document("text: {{ event.used }}").problems
    assert problem.hint == "a value with {{ }} needs quotes around it"


def test_a_file_that_is_not_utf8_is_told_where(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(InvalidConfig, match=r":2:4: is not UTF-8"):
        read(path, {})


@given(st.text(max_size=60))
def test_no_text_breaks_the_reader(text: str) -> None:
    with suppress(InvalidConfig):
        document(text)


@given(st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), st.integers(), min_size=1))
def test_each_value_knows_its_place(values: dict[str, int]) -> None:
    lines = [f"{key}: {value}" for key, value in values.items()]
    found = document("\n".join(lines))
    for number, key in enumerate(values, start=1):
        assert found.keys[(key,)] == Position(number, 1)
        assert found.values[(key,)] == Position(number, len(key) + 3)
