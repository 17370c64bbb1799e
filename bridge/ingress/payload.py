"""A request's body to a payload that Postgres will take, its text untouched.

What jsonb refuses is found here, one request at a time: later it would be found by the server, in the
transaction of everybody who was gathered with it.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import orjson

from bridge.core.contract import Contract
from bridge.core.json_text import json_text, refuse_text
from bridge.ingress.problem import Refusal

_DIGITS = 4000  # Python converts at most 4300 to an int
_NOT_JSON = {"NaN": Decimal("NaN"), "Infinity": Decimal("Infinity"), "-Infinity": Decimal("-Infinity")}
_LENIENT = json.JSONDecoder(
    parse_float=Decimal,
    parse_int=lambda digits: int(digits) if len(digits) < _DIGITS else Decimal(digits),
    parse_constant=_NOT_JSON.__getitem__,
)


def read_payload(body: bytes) -> dict[str, Any]:
    """The document of a body that holds one JSON object; its floats may be rounded.

    Raises Refusal: 400 for what is not JSON, 422 for what is no object or what jsonb has no place for.
    """
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
    """Numbers beyond float64 are JSON; NaN and half surrogate pairs are told by the field they stand in."""
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
            json_text(value, f"field {name[:80]}")
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
