"""References are replaced once, in place; everything else stays; no secret gets into a message."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.config import substitution
from bridge.config.substitution import BadReference, Outside, Unset

HERE = Path()
NAMES = st.from_regex(r"[A-Z_][A-Z0-9_]{0,8}", fullmatch=True)
VALUES = st.text(st.characters(exclude_characters="\0"), min_size=1)
PLAIN = st.text().filter(lambda text: "$" not in text)


def substitute(text: str, environ: Mapping[str, str], directory: Path) -> str:
    return substitution.substitute(text, Outside(environ, directory))


@given(PLAIN)
def test_text_without_a_dollar_stays(text: str) -> None:
    assert substitute(text, {}, HERE) == text


@given(NAMES, VALUES, PLAIN, PLAIN)
def test_a_value_comes_in_as_it_is_and_is_not_looked_at_again(
    name: str, value: str, before: str, after: str
) -> None:
    environ = {name: value, "OTHER": "wrong"}
    for form in (f"${{{name}}}", f"${{{name}:-other}}", f"${{{name}:?message}}"):
        assert substitute(f"{before}{form}{after}", environ, HERE) == f"{before}{value}{after}"
    assert substitute(f"${{{name}}}", {name: "${OTHER}"}, HERE) == "${OTHER}"


@given(NAMES, st.text().filter(lambda text: not set(text) & set("${}")))
def test_a_default_stands_in_for_what_is_unset_or_empty(name: str, default: str) -> None:
    for environ in ({}, {name: ""}):
        assert substitute(f"${{{name}:-{default}}}", environ, HERE) == default


@pytest.mark.parametrize(
    "text",
    [
        "$event.used / $event.limit",
        "$$event",
        "costs $5",
        "${{ event.amount }}",
        "$",
        "$${NAME}",
        "$event[0]{}",
    ],
)
def test_expressions_and_literal_dollars_stay(text: str) -> None:
    assert substitute(text, {"NAME": "wrong"}, HERE) == text


@pytest.mark.parametrize("text", ["${", "${}", "${1X}", "${A B}", "${A:=x}", "${NAME", "${A-b}", "${file:}"])
def test_a_broken_reference_is_an_error_and_not_a_text(text: str) -> None:
    with pytest.raises(BadReference):
        substitute(text, {"NAME": "CANARY", "A": "CANARY"}, HERE)


def test_references_do_not_nest() -> None:
    with pytest.raises(BadReference, match="nest"):
        substitute("${A:-${B}}", {"B": "x"}, HERE)


def test_what_is_not_set_is_named_with_its_message() -> None:
    with pytest.raises(Unset, match="A is not set: say where"):
        substitute("${A:?say where}", {"A": ""}, HERE)
    with pytest.raises(Unset, match="A is not set"):
        substitute("${A}", {}, HERE)
    assert substitute("[${A}]", {"A": ""}, HERE) == "[]"


def test_a_file_gives_its_text_without_the_last_line_break(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cr€t $x\n")
    assert substitute("a${file:secret}b", {}, tmp_path) == "as3cr€t $xb"
    assert substitute(f"${{file:{tmp_path}/secret}}", {}, HERE) == "s3cr€t $x"


def test_a_file_that_is_not_there_or_no_text_is_named_without_its_content(tmp_path: Path) -> None:
    with pytest.raises(Unset, match="cannot be read"):
        substitute("${file:nowhere}", {}, tmp_path)
    (tmp_path / "binary").write_bytes(b"CANARY\xff")
    with pytest.raises(BadReference, match="not UTF-8") as caught:
        substitute("${file:binary}", {}, tmp_path)
    assert "CANARY" not in str(caught.value)
