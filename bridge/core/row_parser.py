"""A parser for the rows of one relation, compiled from what pgoutput says of its columns.

Apart from pgoutput.py because it writes code, as namedtuple does: with the layout known, a row is read
without a loop over its columns, at half the cost (docs/performance.md). TupleData: PostgreSQL manual, 53.9.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from typing import NoReturn

from bridge.core.event import Event
from bridge.errors import Halt

RowParser = Callable[[bytes], Event]

_SHORT = frozenset({20, 21, 23, 1184, 2950, 5069})
"""int8, int2, int4, timestamptz, uuid, xid8: their text never needs a second byte of length."""

_COLUMN = """
    kind = data[at]
    if kind == 116:
        start = at + 5
        at = start + {length}
        c{n} = data[start:at]
    elif kind == 110:
        at += 1
        c{n} = None
    else:
        refuse(kind)"""

_U32 = Struct("!I").unpack_from


def compile_rows(at: int, types: Sequence[int], places: Sequence[int | None]) -> RowParser:
    """From an Insert message to its Event. at: of the first column in the message. types: the columns'
    type oids. places: the column of each field of Event, None where there is none."""
    last = max(place for place in places if place is not None)
    seq, xid = Event._fields.index("seq"), Event._fields.index("xid")
    lines = [f"def parse(data):\n    at = {at}"]
    for n, oid in enumerate(types[: last + 1]):
        length = "data[at + 4]" if oid in _SHORT else "u32(data, at + 1)[0]"
        lines.append(_COLUMN.format(n=n, length=length))
    values = ", ".join(
        ("b'0'" if field in (seq, xid) else "None") if place is None else f"c{place}"
        for field, place in enumerate(places)
    )
    lines.append(f"    return new(Event, ({values}))")
    scope = {"u32": _U32, "new": tuple.__new__, "Event": Event, "refuse": _refuse}
    exec("\n".join(lines), scope)  # noqa: S102  made of integers and of nothing that came from outside
    parse: RowParser = scope["parse"]  # type: ignore[assignment]
    return parse


def _refuse(kind: int) -> NoReturn:
    raise Halt(f"pgoutput sent a column of kind {chr(kind)!r}", reason="stream_format")
