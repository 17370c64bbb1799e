"""A configuration is shown without its secrets, whatever holds them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from bridge.config.model import Config
from bridge.console.configuration import SECRET_KEYS, masked
from bridge.console.pages import _pretty, hide
from bridge.section import Section


def sections(base: type[BaseModel] = Section) -> Iterator[type[BaseModel]]:
    for one in base.__subclasses__():
        yield one
        yield from sections(one)


def test_every_field_that_is_not_to_be_printed_is_masked() -> None:
    assert Config in set(sections())
    hidden = {name for one in sections() for name, field in one.model_fields.items() if not field.repr}
    assert hidden - SECRET_KEYS == set()
    assert "webhook_url" in hidden


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a: {token: 's e', b: 1}", "a: {token: •••, b: 1}"),
        ("token: ${TOKEN}", "token: ${TOKEN}"),
        ("token: ${file:/run/x}", "token: ${file:/run/x}"),
        ("token: ${TOKEN:-hunter2}", "token: •••"),
        ("api_keys: [x, '${Y}']", "api_keys: [•••, '${Y}']"),
        ("secrets:\n- one\n- |\n  two\n", "secrets:\n- •••\n- •••"),
        ("headers: {authorization: Bearer x}", "headers: {authorization: •••}"),
        ("dsn: &it postgres://u:p@h/d\nother: *it", "dsn: •••\nother: *it"),
    ],
)
def test_secrets_are_masked_in_every_form(text: str, shown: str) -> None:
    assert (masked(text) or "").rstrip() == shown


def test_what_is_no_yaml_is_not_shown() -> None:
    assert masked("token: [hunter2") is None


def test_values_are_hidden_and_their_names_are_not() -> None:
    assert hide({"a": [1, {"b": "x"}], "c": None}) == {"a": ["•••", {"b": "•••"}], "c": None}


def test_laid_out_json_keeps_every_number_and_text() -> None:
    text = '{"a":[1.10,{"b\\"{":{}},[]],"c":"x, y: {"}'
    assert "1.10" in _pretty(text)
    assert _pretty('{"a": [1]}') == '{\n  "a": [\n    1\n  ]\n}'
    assert '"c": "x, y: {"' in _pretty(text)
    assert _pretty("no json") == "no json"
