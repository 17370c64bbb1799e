"""Python values to JSON text that Postgres' jsonb takes, every number exact.

Apart from the standard library's encoder, which cannot write a Decimal, writes NaN, and lets through
what jsonb refuses. All of that is found here, before anything is sent: an error raised by the server
would cost the producer its whole transaction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date, datetime, time
from decimal import Decimal
from json.encoder import encode_basestring
from uuid import UUID

MAX_DEPTH = 200
"""Levels of nesting. Python's own stack ends at 1,000 frames, jsonb at some thousand levels."""


def json_text(value: object, name: str = "payload") -> str:
    """`value` as JSON text. `name` is what error messages call it.

    Takes mappings with str keys, lists, tuples, str, bool, None, int, finite float and Decimal, and as
    text date, time, datetime (ISO 8601) and UUID. Raises ValueError for NaN, infinities, NUL characters,
    lone surrogates and nesting deeper than MAX_DEPTH, TypeError for other types and keys. Messages name
    the place (`payload.items[2].price`), never the value.
    """
    parts: list[str] = []
    _write(value, name, 0, parts)
    return "".join(parts)


def refuse_text(text: str, name: str) -> None:
    """Raise ValueError where `text` holds what Postgres' text cannot: NUL or a lone surrogate."""
    if "\x00" in text:
        raise ValueError(f"{name} holds a NUL character (\\u0000), which Postgres cannot store: remove it")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            surrogate = f"\\u{ord(text[error.start]):04x}"
            raise ValueError(
                f"{name} holds half of a surrogate pair ({surrogate} at {error.start}): not a character"
            ) from None


def _write(value: object, name: str, depth: int, parts: list[str]) -> None:
    if isinstance(value, str):
        refuse_text(value, name)
        parts.append(encode_basestring(value))
    elif value is None or value is True or value is False:
        parts.append("null" if value is None else "true" if value else "false")
    elif isinstance(value, (int, float, Decimal)):
        parts.append(_number(value, name))
    elif isinstance(value, (Mapping, list, tuple)):
        _write_container(value, name, depth, parts)
    elif isinstance(value, (datetime, date, time)):
        parts.append(f'"{value.isoformat()}"')
    elif isinstance(value, UUID):
        parts.append(f'"{value}"')
    else:
        raise TypeError(f"{name} is a {type(value).__name__}, which has no JSON form")


def _number(value: int | float | Decimal, name: str) -> str:
    if isinstance(value, int):
        return int.__repr__(value)  # an IntEnum prints its name otherwise
    finite = value.is_finite() if isinstance(value, Decimal) else math.isfinite(value)
    if not finite:
        number = "NaN" if "nan" in str(value).lower() else "an infinity"
        raise ValueError(f"{name} is {number}: JSON has no such number; send null or leave the field out")
    return float.__repr__(value) if isinstance(value, float) else str(value)


def _write_container(
    value: Mapping[object, object] | list[object] | tuple[object, ...],
    name: str,
    depth: int,
    parts: list[str],
) -> None:
    if depth >= MAX_DEPTH:
        raise ValueError(f"{name[:80]}... is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        before = "{"
        for key, each in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{name} has a key of type {type(key).__name__}; JSON's keys are text")
            refuse_text(key, f"a key of {name}")
            parts += (before, encode_basestring(key), ":")
            _write(each, f"{name}.{key}", depth + 1, parts)
            before = ","
        parts.append("}" if value else "{}")
        return
    before = "["
    for index, each in enumerate(value):
        parts.append(before)
        _write(each, f"{name}[{index}]", depth + 1, parts)
        before = ","
    parts.append("]" if value else "[]")
