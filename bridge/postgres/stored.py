"""What is kept about an event in a database that cannot hold it as it is: escaped, in ASCII.

Not every database is UTF-8, jsonb takes neither \\u0000 nor every number, and an index entry has a limit. Used only for
an event whose own text was refused.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import orjson

from bridge.expressions.document import exact_json

_LONGEST = 500  # characters
_ENVELOPE = "outbox-bridge:base64"


def ascii_text(value: bytes | None) -> bytes | None:
    """Readable text; what is not ASCII as Python escapes it (`\\u26a1`), cut with a digest if it is long."""
    if value is None:
        return None
    text = (
        value.decode(errors="backslashreplace").encode("ascii", "backslashreplace").replace(b"\0", b"\\x00")
    )
    if len(text) <= _LONGEST:
        return text
    return text[:_LONGEST] + b"..." + hashlib.sha256(value).hexdigest()[:16].encode()


def ascii_json(value: bytes | None) -> bytes | None:
    """A JSON document with all of its texts so; None if it cannot be read."""
    if value is None:
        return None
    try:
        return orjson.dumps(_escaped(orjson.loads(value)))
    except (orjson.JSONDecodeError, TypeError, RecursionError):
        return None


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return (ascii_text(value.encode()) or b"").decode()
    if isinstance(value, dict):
        return {_escaped(name): _escaped(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return value


def enveloped(body: bytes) -> bytes:
    """A message's body so that any database holds it; opened() gives it back."""
    return orjson.dumps({_ENVELOPE: base64.b64encode(body).decode()})


def storable(body: bytes) -> str:
    """A message's body as text that any database holds: as it is, or in an envelope."""
    return (body if body.isascii() else enveloped(body)).decode()


def message_fields(body: str) -> dict[str, Any]:
    """The fields of a stored message, numbers exact."""
    fields: dict[str, Any] = exact_json(body)
    if (inner := opened(fields)) is not None:
        fields = exact_json(inner.decode())
    return fields


def opened(fields: dict[str, Any]) -> bytes | None:
    """The body in an envelope; None if `fields` is none."""
    inner = fields.get(_ENVELOPE) if len(fields) == 1 else None
    return base64.b64decode(inner) if isinstance(inner, str) else None
