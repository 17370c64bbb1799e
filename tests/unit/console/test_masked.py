"""A configuration is shown without its secrets, whatever holds them."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules

import pytest
from pydantic import BaseModel

from bridge import sinks
from bridge.config.model import Config
from bridge.console.configuration import SECRET_KEYS, masked
from bridge.console.pages import _pretty, hide


def sections(base: type[BaseModel] = BaseModel) -> Iterator[type[BaseModel]]:
    for one in base.__subclasses__():
        yield one
        yield from sections(one)


def test_every_field_that_is_not_to_be_printed_is_masked() -> None:
    for module in iter_modules(sinks.__path__, "bridge.sinks."):
        import_module(module.name)
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
