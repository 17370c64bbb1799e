"""Request bodies: read within limits of size and time, and turned into payloads that Postgres accepts.

A body is read before a webhook is authenticated. Values that jsonb refuses are found here, for each request; the
server would find them in the transaction that several requests share. A body of many events is
`application/x-ndjson`, one object per line: `{"payload": {...}, "idempotency_key": "...", "key": "..."}`, the last two
optional. Lines are independent: a refused line does not affect the others.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable
from decimal import Decimal
from http import HTTPStatus
from typing import Any

import orjson
from starlette.types import Receive

from bridge.errors import PayloadFailure
from bridge.expressions.document import exact_json, json_text, parse_exact
from bridge.ingress.problem import Refusal
from bridge.ingress.store import Item, Stored
from bridge.planning.contract import Contract
from bridge.producer import refuse_text, strict_json
from bridge.signatures.scheme import FORM, Signed

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


LONGEST = {"type": 200, "key": 500, "idempotency_key": 255, "id": 255, "source": 63}
"""Maximum lengths in characters. `id`: a webhook delivery's id."""

_TYPE = re.compile(r"[^\s*?\[\]/\x00-\x1f]+")
NOT_IN_A_TYPE = re.compile(r"[\s*?\[\]/\x00-\x1f]+")
"""What check_text refuses in an event type."""


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


def read_documents(
    request: Signed, json_field: str
) -> tuple[dict[str, Any], bytes] | list[tuple[dict[str, Any], bytes]]:
    """The object in a webhook's body and its JSON text; of an array, a list of these. A form is an object of its
    fields, a list for one that is repeated, or the JSON in its field `json_field`. Raises Refusal: 400 if the body is
    neither JSON nor a form, 413 for more than MOST_LINES elements, 422 for what jsonb refuses."""
    body = request.body
    if request.media_type == FORM and not body.lstrip().startswith((b"{", b"[")):  # curl says form by itself
        body = _form_text(request, json_field)
    is_array = body.lstrip().startswith(b"[")
    try:
        if not is_array:
            return read_payload(body), body
        read_payload(body)
    except Refusal as refusal:
        if refusal.status == HTTPStatus.BAD_REQUEST:
            raise _with_media_type(refusal, request) from None
        if not is_array:
            raise
    return _elements(body)


def _elements(body: bytes) -> list[tuple[dict[str, Any], bytes]]:
    try:
        elements = exact_json(body.decode())
    except PayloadFailure as failure:
        raise Refusal(422, "payload", failure.cause) from None
    if not all(isinstance(one, dict) for one in elements):
        raise Refusal(422, "payload", "the payload is an array of something else than JSON objects")
    if len(elements) > MOST_LINES:
        raise Refusal(413, "too-large", f"an array may have {MOST_LINES} elements")
    texts = [json_text(one) for one in elements]
    return [(read_payload(text), text) for text in texts]


def _form_text(request: Signed, json_field: str) -> bytes:
    try:
        fields: dict[str, list[str]] = {}
        for name, value in request.fields():
            fields.setdefault(name, []).append(value)
    except ValueError:
        raise Refusal(400, "malformed", "the body is not a form of UTF-8 text") from None
    if len(given := fields.get(json_field, [])) == 1 and given[0].lstrip().startswith(("{", "[")):
        return given[0].encode()
    return orjson.dumps({name: values[0] if len(values) == 1 else values for name, values in fields.items()})


_MEDIA_TYPE = re.compile(rb"[a-z0-9!#$&^_.+-]{1,60}/[a-z0-9!#$&^_.+-]{1,60}")  # RFC 6838, 4.2


def _with_media_type(refusal: Refusal, request: Signed) -> Refusal:
    """Say what the sender calls its body, if that is why it cannot be read."""
    named = request.media_type
    if refusal.status != HTTPStatus.BAD_REQUEST or named.endswith((b"/json", b"+json")):
        return refusal
    told = named.decode() if _MEDIA_TYPE.fullmatch(named) else "missing" if not named else "malformed"
    detail = f"{refusal.detail}; its content-type is {told}: a webhook takes JSON and {FORM.decode()}"
    return Refusal(refusal.status, refusal.kind, detail, field="content-type")


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
