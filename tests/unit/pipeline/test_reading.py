"""Payloads are parsed many at a time; what one of them is must never depend on its neighbours."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from bridge.planning.planner import read_documents
from bridge.protocol.events import Event

PIECES = [b"{", b"}", b"[", b"]", b",", b'"a":', b'"', b"1", b"{}", b" "]


def read(payloads: list[bytes]) -> tuple[dict[int, Any], set[int]]:
    """Documents and failures by place."""
    events = [Event(b"id", b"1", b"1", b"t", None, payload, None, None, None) for payload in payloads]
    documents: list[dict[str, Any]] = [{}] * len(events)
    good, failures = read_documents(None, events, list(range(len(events))), documents)
    return {place: documents[place] for place in good}, {place for place, _, _ in failures}


def alone(payload: bytes) -> Any:
    try:
        return orjson.loads(payload)
    except ValueError:
        return None


@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=5).map(b"".join), min_size=1, max_size=6))
def test_texts_that_are_json_only_together_are_refused_one_by_one(payloads: list[bytes]) -> None:
    good, failed = read(payloads)
    expected = {place: alone(p) for place, p in enumerate(payloads) if isinstance(alone(p), dict)}
    assert good == expected
    assert failed == set(range(len(payloads))) - expected.keys()


def test_halves_of_a_document_do_not_borrow_from_each_other() -> None:
    good, failed = read([b'{"x": [{}', b"{}]}", b"{}, {}", b'{"y": 1}'])
    assert good == {3: {"y": 1}}
    assert failed == {0, 1, 2}


def test_more_payloads_than_are_parsed_together_keep_their_places() -> None:
    payloads = [orjson.dumps({"n": n}) for n in range(1000)]
    good, failed = read(payloads)
    assert good == {n: {"n": n} for n in range(1000)}
    assert not failed
