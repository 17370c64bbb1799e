"""The Relation message of pgoutput: which table its rows are of, and where each field of an event lies in them.

A relation's rows are read by a parser that is compiled from what the message says of its columns (as namedtuple
compiles its code): without a loop over the columns, at half the cost. PostgreSQL manual, 53.9 Logical Replication
Message Formats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import NoReturn

from bridge.errors import Halt
from bridge.protocol.events import MUST_HAVE, Event

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
        c{n} = {null!r}
    else:
        refuse(kind)"""


def compile_rows(at: int, types: Sequence[int], places: Sequence[int | None]) -> RowParser:
    """Compile the function from an Insert message to its Event. at: the offset of the first column in the message.
    types: the columns' type oids. places: for each Event field its column, or None."""
    last = max(place for place in places if place is not None)
    seq, xid = Event._fields.index("seq"), Event._fields.index("xid")
    nulls = {places[Event._fields.index(name)]: mark for name, mark in MUST_HAVE.items()}
    lines = [f"def parse(data):\n    at = {at}"]
    for n, oid in enumerate(types[: last + 1]):
        length = "data[at + 4]" if oid in _SHORT else "u32(data, at + 1)[0]"
        lines.append(_COLUMN.format(n=n, length=length, null=nulls.get(n)))
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


_U32 = Struct("!I").unpack_from
HEADER = 25
"""Bytes of XLogData before pgoutput's message: 'w', start, end, clock."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The outbox's table as it is when the stream is opened.

    columns: in the order in which they were added. partitioned: an update can move a row to another partition, which
    pgoutput sends as an insert. counted: Postgres counts seq, so no two rows have the same. next_xid: what the server
    gives out next. oid: rows that come under it with another name are its rows, from before a rename.
    """

    columns: tuple[str, ...] = ()
    partitioned: bool = False
    counted: bool = True
    next_xid: int = 0
    oid: int = 0

    def added_after(self, column: str, older: Sequence[str]) -> bool:
        """Was the column added to a table that had these, rather than renamed, or dropped and added again?"""
        if column not in self.columns:
            return False
        return set(older) <= set(self.columns[: self.columns.index(column)])


@dataclass(frozen=True, slots=True)
class Relation:
    """What a Relation message says of the outbox. types: of the columns, by oid. places: for each Event field its
    column, or None. unmarked: its rows are from before the outbox had its column xid."""

    types: Sequence[int]
    places: Sequence[int | None]
    unmarked: bool


class Relations:
    """Reads Relation messages. columns: Event field -> the outbox's column name."""

    def __init__(self, schema: str, table: str, columns: Mapping[str, str]) -> None:
        self._name = (schema, table)
        self._columns = columns

    def read(self, data: bytes, layout: Layout) -> Relation | None:
        """The relation, None for another table. layout: of the outbox, as it is now. Raises Halt where the outbox was
        renamed, or has lost a column."""
        at = HEADER + 5
        names: list[str] = []
        for _ in range(2):
            end = data.index(0, at)
            names.append(data[at:end].decode())
            at = end + 1
        if (names[0], names[1]) != self._name:
            if _U32(data, HEADER + 1)[0] == layout.oid:
                raise Halt(
                    f"the outbox table was called {'.'.join(names)} when rows came into it",
                    reason="outbox_changed",
                    hint="the bridge gives the slot up, whose WAL keeps the other name, and reads the table instead",
                )
            return None
        count = (data[at + 1] << 8) | data[at + 2]
        at += 3
        columns: dict[str, int] = {}
        for _ in range(count):
            end = data.index(0, at + 1)
            columns[data[at + 1 : end].decode()] = _U32(data, end + 1)[0]
            at = end + 9  # type oid, type modifier
        places, unmarked = self._places(list(columns), layout)
        return Relation(list(columns.values()), places, unmarked)

    def _places(self, columns: list[str], layout: Layout) -> tuple[list[int | None], bool]:
        """The index of each Event field in a row."""
        places: list[int | None] = []
        unmarked = False
        for name in Event._fields:
            column = self._columns.get(name)
            if column in columns:
                places.append(columns.index(column))
            elif column is not None and name in ("seq", "xid") and layout.added_after(column, columns):
                unmarked = unmarked or name == "xid"
                places.append(None)
            elif column is not None or name in ("id", "type", "payload"):
                raise Halt(
                    f"the outbox table {'.'.join(self._name)} no longer has the column {column or name!r}",
                    reason="outbox_changed",
                    hint="rename it back, or name it under source.columns in bridge.yaml: the bridge then gives the "
                    "slot up, whose WAL keeps the other name, and reads the table instead. Where the column was "
                    "dropped and added again, its old values are lost with the slot: "
                    "select pg_drop_replication_slot(slot) from outbox.stream where slot is not null",
                )
            else:
                places.append(None)
        return places, unmarked
