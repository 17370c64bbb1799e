"""Encode columns as binary arrays: 4 us a row, where psycopg's adaptation of a list costs 86.

Binary form of an array: dimensions, has-null flag, element type oid, then per dimension length and lower
bound, then each element as length and bytes, -1 for NULL (array_recv in src/backend/utils/adt/arrayfuncs.c).
"""

from __future__ import annotations

from binascii import Error, unhexlify
from collections.abc import Sequence
from struct import Struct, pack

_HEAD = Struct("!iiIii").pack
_NULL = b"\xff\xff\xff\xff"
_LENGTHS = [length.to_bytes(4, "big") for length in range(4096)]
_EMPTY = Struct("!iiI").pack

TEXT = 25
UUID = 2950
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


_SIXTEEN = b"00000010"  # an element's length, in hex as the elements are until all are made binary at once


def uuid_array(values: Sequence[bytes | None]) -> bytes | None:
    """uuid[], or None where not every value is a UUID as Postgres prints it: the server reads other spellings too,
    and says what is wrong with one that is none. Reading 36 digits costs the server more than this costs us."""
    if None in values or set(map(len, values)) != {36}:  # type: ignore[arg-type]  # there is no None among them
        return None
    text = b"".join(values)  # type: ignore[arg-type]
    digits = (_SIXTEEN + _SIXTEEN.join(values)).replace(b"-", b"")  # type: ignore[arg-type]
    dashes = {text[place::36].count(b"-") for place in (8, 13, 18, 23)}
    if dashes != {len(values)} or len(digits) != 40 * len(values):
        return None
    try:
        return _HEAD(1, 0, UUID, len(values), 1) + unhexlify(digits)
    except Error:
        return None


def eight_byte_array(oid: int, values: Sequence[int]) -> bytes:
    """xid8[] or pg_lsn[]: elements are unsigned 64-bit integers."""
    if not values:
        return _EMPTY(0, 0, oid)
    elements = [8] * (2 * len(values))
    elements[1::2] = values
    return _HEAD(1, 0, oid, len(values), 1) + pack("!" + "iQ" * len(values), *elements)
