"""Encode columns as binary arrays: 4 us a row, where psycopg's adaptation of a list costs 86.

Binary form of an array: dimensions, has-null flag, element type oid, then per dimension length and lower
bound, then each element as length and bytes, -1 for NULL (array_recv in src/backend/utils/adt/arrayfuncs.c).
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct, pack

_HEAD = Struct("!iiIii").pack
_NULL = b"\xff\xff\xff\xff"
_LENGTHS = [length.to_bytes(4, "big") for length in range(4096)]
_EMPTY = Struct("!iiI").pack

TEXT = 25
XID8 = 5069
PG_LSN = 3220


def text_array(values: Sequence[bytes | None]) -> bytes:
    """text[]: elements are UTF-8 bytes as they are."""
    if not values:
        return _EMPTY(0, 0, TEXT)
    if None in values:
        return _HEAD(1, 1, TEXT, len(values), 1) + b"".join(map(_element, values))
    lengths = list(map(len, values))  # type: ignore[arg-type]  # there is no None among them
    longest = max(lengths)
    if longest == min(lengths):
        length = longest.to_bytes(4, "big")
        return _HEAD(1, 0, TEXT, len(values), 1) + length + length.join(values)  # type: ignore[arg-type]
    parts: list[bytes] = [_HEAD(1, 0, TEXT, len(values), 1)] * (2 * len(values) + 1)
    if longest < len(_LENGTHS):
        parts[1::2] = map(_LENGTHS.__getitem__, lengths)
    else:
        parts[1::2] = [length.to_bytes(4, "big") for length in lengths]
    parts[2::2] = values  # type: ignore[assignment]
    return b"".join(parts)


def _element(value: bytes | None) -> bytes:
    return _NULL if value is None else len(value).to_bytes(4, "big") + value


def eight_byte_array(oid: int, values: Sequence[int]) -> bytes:
    """xid8[] or pg_lsn[]: elements are unsigned 64-bit integers."""
    if not values:
        return _EMPTY(0, 0, oid)
    elements = [8] * (2 * len(values))
    elements[1::2] = values
    return _HEAD(1, 0, oid, len(values), 1) + pack("!" + "iQ" * len(values), *elements)
