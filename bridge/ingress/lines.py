"""A body of many events, `application/x-ndjson`: one object a line, and a result for each.

A line is `{"payload": {...}, "idempotency_key": "...", "key": "..."}`, the last two if wanted. Each
stands for itself: one that is refused costs its neighbours nothing.
"""

from __future__ import annotations

from typing import Any

import orjson

from bridge.core.contract import Contract
from bridge.core.document import json_text, parse_exact
from bridge.core.failure import PayloadFailure
from bridge.ingress.payload import hold_to_contract, read_payload
from bridge.ingress.problem import Refusal
from bridge.ingress.store import Item, Stored
from bridge.ingress.text import check_text

MOST_LINES = 1000
_MEMBERS = frozenset({"payload", "idempotency_key", "key"})


def read_lines(body: bytes, event_type: str, contract: Contract | None) -> list[Item | Refusal]:
    """What each line that is not blank asks for. Raises Refusal 413 for more than MOST_LINES."""
    lines = [line for line in body.split(b"\n") if line.strip()]
    if len(lines) > MOST_LINES:
        raise Refusal(413, "too-large", f"a body may have {MOST_LINES} lines")
    if not lines:
        raise Refusal(400, "malformed", "the body has no lines")
    found: list[Item | Refusal] = []
    for line in lines:
        try:
            found.append(_item(line, event_type, contract))
        except Refusal as refusal:
            found.append(refusal)
    return found


def _item(line: bytes, event_type: str, contract: Contract | None) -> Item:
    document = read_payload(line)
    if "payload" not in document or not document.keys() <= _MEMBERS:
        raise Refusal(422, "payload", "a line has payload and, if wanted, idempotency_key and key")
    try:
        exact = parse_exact(line)["payload"]
    except PayloadFailure as failure:
        raise Refusal(422, "payload", failure.cause) from None
    if not isinstance(exact, dict):
        raise Refusal(422, "payload", "the payload is not a JSON object", field="payload")
    payload = json_text(exact)
    if contract is not None:
        hold_to_contract(contract, document["payload"], payload)
    return Item(
        event_type,
        payload,
        key=_text(document, "key"),
        idempotency_key=_text(document, "idempotency_key"),
    )


def _text(document: dict[str, Any], name: str) -> str | None:
    value = document.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise Refusal(422, "payload", f"{name} is not text", field=name)
    return check_text(name, value)


def result_line(outcome: Stored | Refusal) -> bytes:
    """A line of the answer: `status` is the one that the event alone would have been answered with."""
    if isinstance(outcome, Refusal):
        return orjson.dumps(outcome.as_dict())
    if outcome.duplicate:
        return orjson.dumps({"status": 200, "id": outcome.id, "duplicate": True})
    return orjson.dumps({"status": 202, "id": outcome.id})
