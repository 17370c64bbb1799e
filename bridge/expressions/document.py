"""Payloads: from JSON text to documents with exact numbers.

orjson turns integers beyond 64 bits and long decimals into floats. So a payload is kept as the original text. A
value of the parsed document is used if it cannot have lost precision; otherwise the payload is parsed again with
Decimals.
"""

from __future__ import annotations

import json
from datetime import date, time
from decimal import Decimal
from typing import Any

import orjson

from bridge.errors import PayloadFailure
from bridge.expressions.operators import Path
from bridge.expressions.server_text import ServerText

_LONG = 4000  # digits: Python converts at most 4300 to an int
_JSON_INTEGERS = range(-(2**63), 2**64)


def _integer(digits: str) -> int | Decimal:
    return int(digits) if len(digits) < _LONG else Decimal(digits)


def _refuse(token: str) -> None:
    raise ValueError(f"{token} is not JSON")


_EXACT = json.JSONDecoder(parse_float=Decimal, parse_int=_integer, parse_constant=_refuse)
_SHORT = json.JSONDecoder(
    parse_float=Decimal
)  # of text that is JSON, too short for an integer that is too long


def parse(payload: bytes) -> dict[str, Any]:
    """The document; its floats may be rounded (`exact` has them). Raises PayloadFailure."""
    try:
        document = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return parse_exact(payload)  # numbers beyond float64 are valid JSON
    if document.__class__ is not dict:
        raise PayloadFailure("the payload is not a JSON object")
    return document


def parse_exact(payload: bytes) -> dict[str, Any]:
    """The document with every number exact: int or Decimal. About ten times the cost of `parse`."""
    document = _exact(payload)
    if not isinstance(document, dict):
        raise PayloadFailure("the payload is not a JSON object")
    return document


def exact_json(text: str) -> Any:
    """Any JSON value, every number exact. Raises PayloadFailure."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return _exact(text.encode())
    if not holds_float(value):
        return value
    return (_SHORT if len(text) < _LONG else _EXACT).decode(text)


def _exact(payload: bytes) -> Any:
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        raise PayloadFailure("the payload is not valid UTF-8") from None
    try:
        document = _EXACT.decode(text)
        json.dumps(document, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        raise PayloadFailure("the payload holds a lone surrogate") from None
    except RecursionError:
        raise PayloadFailure("the payload is nested too deeply") from None
    except (ValueError, ArithmeticError):
        raise PayloadFailure("the payload is not valid JSON") from None
    return document


def certain(payload: bytes, name: str, value: float) -> bool:
    """True if the payload certainly contains the field `name` as `repr(value)`.

    Without a backslash nothing in the text is escaped. So a quoted name that occurs once and is followed by a colon
    is a field, and the only one with that name.
    """
    quoted = b'"%b"' % name.encode()
    if b"\\" in payload or payload.count(quoted) != 1:
        return False
    text = b"%b: %b" % (quoted, repr(value).encode())  # as jsonb prints it
    at = payload.find(text)
    if at < 0:
        text = b"%b:%b" % (quoted, repr(value).encode())
        at = payload.find(text)
    return at >= 0 and payload[at + len(text) : at + len(text) + 1] in (b",", b"}", b" ", b"\n")


def holds_float(value: Any) -> bool:
    """True if a JSON value contains a float."""
    if value.__class__ not in (dict, list):
        return value.__class__ is float
    left = [value]  # a payload may be nested more deeply than Python calls
    while left:
        items = left.pop()
        for item in items.values() if items.__class__ is dict else items:
            if item.__class__ is float:
                return True
            if item.__class__ is dict or item.__class__ is list:
                left.append(item)
    return False


def json_text(value: Any) -> bytes:
    """JSON text with exact numbers, dates and UUIDs as ISO text. Raises TypeError for values that JSON cannot
    represent."""
    try:
        return orjson.dumps(value, default=_plain, option=orjson.OPT_PASSTHROUGH_SUBCLASS)
    except TypeError:  # of an integer beyond 64 bits, or nested more than 254 deep
        return _written(value)


_DIGITS = 131_072  # before the point; Postgres' numeric has no more


def digits(value: Decimal) -> str:
    """A number with all of its digits, as Postgres prints a numeric. Python's own text would be 1E-7."""
    text = str(value)
    return format(value, "f") if "E" in text and abs(value.adjusted()) < _DIGITS else text


def _plain(value: Any) -> Any:
    if isinstance(value, ServerText | date | time):
        return value.as_json() if isinstance(value, ServerText) else value.isoformat()
    if isinstance(value, Decimal):
        return orjson.Fragment(digits(value)) if value.is_finite() else str(value)
    if isinstance(value, bytes | memoryview):
        return "\\x" + bytes(value).hex()
    if isinstance(value, tuple | list):
        return list(value)
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, str):
        return str(value)
    raise TypeError(type(value).__name__)


def _written(value: Any) -> bytes:
    """The same for any depth and any integer, without recursion."""
    parts: list[bytes] = []
    left: list[Any] = [value]
    while left:
        item = left.pop()
        if isinstance(item, _Mark):
            parts.append(item)
        elif isinstance(item, dict):
            left.append(_Mark(b"}"))
            for at, (name, inner) in enumerate(reversed(item.items())):
                left += ([] if at == 0 else [_Mark(b",")]) + [inner, _Mark(orjson.dumps(name) + b":")]
            left.append(_Mark(b"{"))
        elif isinstance(item, list | tuple):
            left.append(_Mark(b"]"))
            for at, inner in enumerate(reversed(item)):
                left += ([] if at == 0 else [_Mark(b",")]) + [inner]
            left.append(_Mark(b"["))
        elif isinstance(item, int) and not isinstance(item, bool) and item not in _JSON_INTEGERS:
            parts.append(str(item).encode())
        else:
            parts.append(orjson.dumps(item, default=_plain, option=orjson.OPT_PASSTHROUGH_SUBCLASS))
    return b"".join(parts)


class _Mark(bytes):
    """Text of the document's own, among values that are still to be written."""


def without(document: dict[str, Any], path: Path) -> dict[str, Any]:
    """A copy without one field; the same document if it does not have the field."""
    name, rest = path[0], path[1:]
    if name not in document:
        return document
    if not rest:
        return {key: item for key, item in document.items() if key != name}
    inner = document[name]
    if not isinstance(inner, dict):
        return document
    return {**document, name: without(inner, rest)}
