"""What a database refuses to hold as it is: escaped, and a message's body exactly."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from bridge.postgres.stored import ascii_json, ascii_text, enveloped, opened


@given(st.binary(max_size=2000))
def test_any_text_becomes_short_printable_ascii_without_nul(value: bytes) -> None:
    text = ascii_text(value)
    assert text is not None
    assert text.isascii()
    assert b"\0" not in text
    assert len(text) < 540


@given(st.text(max_size=300).filter(lambda text: text.isascii() and "\0" not in text))
def test_short_ascii_stays_as_it_is(value: str) -> None:
    assert ascii_text(value.encode()) == value.encode()


def test_long_texts_that_differ_at_the_end_stay_different() -> None:
    assert ascii_text(b"a" * 3000 + b"b") != ascii_text(b"a" * 3000 + b"c")


def test_the_texts_of_a_document_are_escaped_and_its_numbers_stay() -> None:
    assert json.loads(ascii_json('{"é": ["⚡", 1.5, null], "a\\u0000": true}'.encode()) or b"") == {
        "\\xe9": ["\\u26a1", 1.5, None],
        "a\\x00": True,
    }
    assert ascii_json(None) is None
    assert ascii_json(b"{") is None


@given(st.binary(max_size=200))
def test_an_envelope_gives_back_what_went_in(body: bytes) -> None:
    sealed = enveloped(body)
    assert sealed.isascii()
    assert opened(json.loads(sealed)) == body


def test_what_is_no_envelope_is_not_opened() -> None:
    assert opened({"text": "hello"}) is None
    assert opened({"outbox-bridge:base64": 1}) is None
