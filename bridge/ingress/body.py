"""Request bodies: read within limits of size and time, and turned into payloads that Postgres will take.

Before the limits are checked, nobody has proved who they are. What jsonb refuses is found here, one request at a
time: later the server would find it, in the transaction of everybody who was gathered with it. A body of many
events is `application/x-ndjson`, one object a line: `{"payload": {...}, "idempotency_key": "...", "key": "..."}`,
the last two if wanted; a line that is refused costs its neighbours nothing.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import orjson
from starlette.types import Receive

from bridge.errors import PayloadFailure
from bridge.expressions.document import json_text, parse_exact
from bridge.ingress.problem import Refusal
from bridge.ingress.store import Item, Stored
from bridge.planning.contract import Contract
from bridge.producer import refuse_text, strict_json

READ_SECONDS = 10.0
"""Seconds from the end of the header to the end of the body."""


def check_headers(headers: dict[bytes, bytes], most: int, media_types: Iterable[bytes] = ()) -> bytes:
    """Check the headers; returns the media type in lower case. Raises Refusal 413 for a length over `most` bytes,
    415 for a compressed body or a media type that is not in `media_types` (empty: any)."""
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or len(length) > 15 or int(length) > most:
        raise _too_large(most)
    coding = headers.get(b"content-encoding", b"identity").strip().lower()
    if coding != b"identity":
        raise Refusal(415, "media-type", "send the body without content-encoding", close=True)
    media_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if media_types and media_type not in media_types:
        names = " or ".join(name.decode() for name in media_types)
        raise Refusal(415, "media-type", f"send content-type: {names}", close=True)
    return media_type


def _too_large(most: int) -> Refusal:
    return Refusal(413, "too-large", f"a body may have {most} bytes (ingress.max_payload)", close=True)


async def read_body(receive: Receive, most: int) -> bytes:
    """The whole body. Raises Refusal: 413 over `most` bytes, 408 after READ_SECONDS, 400 if it is incomplete."""
    parts: list[bytes] = []
    size, more = 0, True
    try:
        async with asyncio.timeout(READ_SECONDS):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refusal(400, "malformed", "the client closed the connection", close=True)
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                more = message.get("more_body", False)
                if size > most:
                    raise _too_large(most)
    except TimeoutError:
        raise Refusal(408, "slow", f"the body took over {READ_SECONDS:.0f} s", close=True) from None
    return b"".join(parts) if len(parts) > 1 else parts[0]


LONGEST = {"type": 200, "key": 500, "idempotency_key": 255, "id": 255}
"""Maximum lengths in characters. `id`: a webhook delivery's id."""

_TYPE = re.compile(r"[^\s*?\[\]/\x00-\x1f]+")


def check_text(name: str, text: str, field: str | None = None) -> str:
    """Return the text unchanged. Raises Refusal 400, which names `field` (or `name`), if it cannot be stored."""
    field = field or name
    try:
        refuse_text(text, field)
    except ValueError as error:
        raise Refusal(400, "malformed", str(error), field=field) from None
    if not text or len(text) > LONGEST[name]:
        raise Refusal(400, "malformed", f"{field} must have 1 to {LONGEST[name]} characters", field=field)
    if name == "type" and not _TYPE.fullmatch(text):
        raise Refusal(400, "malformed", "an event type has no blanks, no / and no * ? [ ]", field=field)
    return text


_DIGITS = 4000  # Python converts at most 4300 to an int
_NOT_JSON = {"NaN": Decimal("NaN"), "Infinity": Decimal("Infinity"), "-Infinity": Decimal("-Infinity")}
_LENIENT = json.JSONDecoder(
    parse_float=Decimal,
    parse_int=lambda digits: int(digits) if len(digits) < _DIGITS else Decimal(digits),
    parse_constant=_NOT_JSON.__getitem__,
)


def read_payload(body: bytes) -> dict[str, Any]:
    """The document of a body with one JSON object; its floats may be rounded. Raises Refusal: 400 if it is not JSON,
    422 if it is not an object or jsonb would refuse it."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = _read_slowly(body)
    if not isinstance(document, dict):
        raise Refusal(422, "payload", "the payload is not a JSON object")
    if b"\\u0000" in body:
        _refuse_odd_text(document)
    return document


def _read_slowly(body: bytes) -> Any:
    """Parse again: numbers beyond float64 are JSON; NaN and half surrogate pairs are reported with their field."""
    try:
        document = _LENIENT.decode(body.decode())
    except UnicodeDecodeError:
        raise Refusal(400, "malformed", "the body is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise Refusal(400, "malformed", f"the body is not JSON: {error.msg.lower()} at {where}") from None
    except (RecursionError, ValueError, ArithmeticError):
        raise Refusal(422, "payload", "the payload is nested too deeply or has a number too long") from None
    if isinstance(document, dict):
        _refuse_odd_text(document)
    return document


def _refuse_odd_text(document: dict[str, Any]) -> None:
    """NUL, half surrogate pairs, NaN and infinities, in names and values at any depth."""
    for name, value in document.items():
        try:
            refuse_text(name, "the name of a field")
            strict_json(value, f"field {name[:80]}")
        except (ValueError, TypeError, RecursionError) as error:
            field = name.encode(errors="replace").decode()[:200]
            detail = str(error) if isinstance(error, ValueError) else "nested too deeply"
            raise Refusal(422, "payload", detail, field=field) from None


def hold_to_contract(contract: Contract, document: dict[str, Any], body: bytes) -> None:
    """Raise Refusal 422 naming the field that breaks the contract."""
    if not contract.check([document]):
        return
    failure = contract.violation(document, body)
    if failure is None:
        return
    named = (f.name for f in contract.spec.fields if failure.cause.startswith(f'field "{f.name}": '))
    raise Refusal(422, "contract", failure.cause, field=next(named, None))


MOST_LINES = 1000
_MEMBERS = frozenset({"payload", "idempotency_key", "key"})


def read_lines(body: bytes, event_type: str, contract: Contract | None) -> list[Item | Refusal]:
    """Parse each line that is not blank. Raises Refusal 413 for more than MOST_LINES."""
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
        raise Refusal(422, "payload", "a line has payload and, optionally, idempotency_key and key")
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
    """A line of the answer: `status` is the status that the event alone would have got."""
    if isinstance(outcome, Refusal):
        return orjson.dumps(outcome.as_dict())
    if outcome.duplicate:
        return orjson.dumps({"status": 200, "id": outcome.id, "duplicate": True})
    return orjson.dumps({"status": 202, "id": outcome.id})
