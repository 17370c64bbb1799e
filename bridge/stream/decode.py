"""Decode pgoutput and put its rows together to batches. CopyData bytes in, batches out; the socket is elsewhere.

Protocol version 1, text values: PostgreSQL manual, 53.4 Streaming Replication Protocol and 53.9 Logical
Replication Message Formats. `binary` was measured and does not pay for these types (docs/performance.md). Only
inserts into the outbox are events; everything else that a publication may send is passed over. A relation's rows
are read by a parser that is compiled from what pgoutput says of its columns (as namedtuple compiles its code):
without a loop over the columns, at half the cost.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from struct import Struct, pack
from typing import NoReturn

from bridge.errors import Halt
from bridge.protocol.events import MUST_HAVE, NULL, NULL_SEQ, Batch, Event, Lsn, Seqs, numbers, xid_of
from bridge.records import dataclass

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
_BEGIN = Struct("!QQI").unpack_from  # commit LSN, commit time, xid
_COMMIT = Struct("!BQQQ").unpack_from  # flags, commit LSN, end LSN, commit time
_KEEPALIVE = Struct("!cQQB").unpack_from  # 'k', end of WAL, clock, reply wanted
_POSTGRES_EPOCH = 946_684_800_000_000  # 2000-01-01 in unix microseconds
_HEADER = 25  # of XLogData: 'w', start, end, clock
_TAG = itemgetter(_HEADER)
_RELATION = itemgetter(slice(_HEADER + 1, _HEADER + 5))
_BEGIN_XID = itemgetter(slice(_HEADER + 17, _HEADER + 21))
_LOW = 0xFFFFFFFF
"""Begin has the lower half of what a row's xid8 says."""
_COMMITS = Struct(f"!{_HEADER + 1}xBQQQ").iter_unpack
_SINGLES = re.compile(rb"(?:BIC){4,}")  # below this number the column path costs more than it saves


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


_FIRST_EVENTS = 200
"""A stream's first batches have as many, until one is durable: the first row of a backlog need not wait until two
batches of the usual size are decoded."""


class Decoder:
    """Takes CopyData messages in order and returns batches.

    feed() gets many messages at a time, take() is called once per batch. Code in feed() runs for every message, so
    three times for an event that is a transaction of its own.

    columns: Event field -> the outbox's column name; a field without a column is b"0" for seq and xid, otherwise
    None. A batch has whole transactions with about max_events rows in total. A transaction with more than max_events
    rows or max_bytes is split into chunks, so that memory is bounded.
    """

    def __init__(
        self,
        schema: str,
        table: str,
        columns: Mapping[str, str],
        *,
        max_events: int = 2000,
        max_bytes: int = 16 << 20,
    ) -> None:
        self._name = (schema, table)
        self._columns = columns
        self._has_xid = "xid" in columns
        self._layout = Layout()
        self.max_events = max_events
        self._enough = min(max_events, _FIRST_EVENTS)
        self._max_bytes = max_bytes
        self._relation = b""  # oid of the outbox as the stream spells it
        self._parse: RowParser | None = None
        self._batch = Batch()
        self._open: list[Event] = []  # rows of the transaction that has not ended yet
        self._open_size = 0
        self._open_xid = 0  # its xid's lower half, as Begin says it
        self._replicated = False
        self._chunked = False
        self._xid = 0  # its whole xid, once a chunk of it was handed out
        # The rows of its earlier chunks, where a row can come again: by seq, or where that does not tell, with id.
        self._brought: list[Seqs] = []
        self._brought_ids: set[tuple[bytes, bytes]] = set()
        self._unmarked = False  # the stream is at rows from before the outbox had its column xid
        self.inside = False
        self.behind = False
        """A full batch is waiting: stop reading until it is taken."""
        self.ready: deque[Batch] = deque()
        self.wal_end = Lsn(0)  # of the last keepalive
        self.reply_wanted = False

    def at_most(self, events: int) -> None:
        """From now on, batches of so many."""
        self.max_events = self._enough = events

    def expect(self, layout: Layout) -> None:
        """What the table is like now, where the stream begins with older rows."""
        self._layout = layout

    def feed(self, messages: Sequence[bytes]) -> None:
        """CopyData messages as received."""
        try:
            singles = _SINGLES.search(bytes(map(_TAG, messages)))
        except IndexError:  # a keepalive, which is shorter
            singles = None
        if singles is None:
            self._each(messages)
            return
        start, stop = singles.span()
        self._each(messages[:start])
        stop = min(stop, start + 3 * (self._enough - len(self._batch.events)))
        self._singles(messages[start:stop])
        self._each(messages[stop:])

    def _singles(self, messages: Sequence[bytes]) -> None:
        """Decode whole transactions of one row each by columns, without a loop over their messages."""
        rows, batch = messages[1::3], self._batch
        size = sum(map(len, rows))
        if set(map(_RELATION, rows)) != {self._relation} or batch.size + size >= self._max_bytes:
            self._each(messages)
            return
        events = list(map(self._parse, rows))  # type: ignore[arg-type]  # set with _relation
        xids = self._own_xids(messages[0::3], events)
        if xids is None:
            self._each(messages)
            return
        _, _, ends, clocks = zip(*_COMMITS(b"".join(messages[2::3])), strict=True)
        batch.events += events
        batch.xids += xids
        batch.end_lsns += ends
        batch.commit_times += map(_POSTGRES_EPOCH.__add__, clocks)
        batch.commit_rows += [1] * len(events)
        batch.end_lsn = ends[-1]
        batch.size += size
        if len(batch.events) >= self._enough:
            self._hand_out(batch)
            self._batch = Batch()

    def _own_xids(self, begins: Sequence[bytes], events: Sequence[Event]) -> list[int] | None:
        """The transactions' xids, by their one row each; None where a row's is not its transaction's."""
        try:
            xids = numbers(map(xid_of, events))
        except TypeError:  # NULL
            return None
        if not self._has_xid:
            return xids
        if self._unmarked:
            return None
        said = b"".join(map(_BEGIN_XID, begins))
        low = xids if max(xids) <= _LOW else map(_LOW.__and__, xids)
        return xids if said == pack(f"!{len(xids)}I", *low) else None

    def _each(self, messages: Sequence[bytes]) -> None:
        for data in messages:
            if data[0] != 0x77:  # not 'w', so 'k'
                _, end, _, reply = _KEEPALIVE(data)
                self.wal_end = Lsn(end)
                self.reply_wanted = self.reply_wanted or bool(reply)
                continue
            tag = data[_HEADER]
            if tag == 0x49:  # Insert
                if data[_HEADER + 1 : _HEADER + 5] == self._relation:
                    self._open.append(self._parse(data))  # type: ignore[misc]  # set with _relation
                    self._open_size += len(data)
                    if self._open_size >= self._max_bytes or len(self._open) >= self.max_events * 2:
                        self._chunk()
            elif tag == 0x42:  # Begin
                self.inside = True
                self._xid, self._replicated = 0, False
                self._open_xid = _BEGIN(data, _HEADER + 1)[2]
            elif tag == 0x43:  # Commit
                self.inside = False
                if self._open or self._chunked:
                    _, _, end, clock = _COMMIT(data, _HEADER + 1)
                    self._commit(end, clock)
            elif tag == 0x4F:  # Origin
                self._replicated = True
            elif tag == 0x52:  # Relation
                self._describe(data)

    @property
    def collected(self) -> int:
        """Events of whole transactions that wait for a batch to fill."""
        return len(self._batch.events)

    def take(self) -> Batch | None:
        """The oldest batch, or, if none is full, the events collected so far."""
        if self.ready:
            batch = self.ready.popleft()
            self.behind = len(self.ready) > 1
            return batch
        if self._batch.xids:
            batch, self._batch = self._batch, Batch()
            return batch
        return None

    @property
    def drained(self) -> bool:
        """True if no event is waiting: a keepalive's position then covers everything received."""
        return not (self.inside or self.ready or self._batch.xids)

    def _hand_out(self, batch: Batch) -> None:
        self.ready.append(batch)
        self.behind = len(self.ready) > 1

    def _taken(self) -> tuple[list[Event], list[Event]]:
        """The open rows, and of them those that do not belong to their transaction by what they say."""
        events, strays = self._open, []
        self._open, self._open_size = [], 0
        if self._has_xid:
            xids = set(map(xid_of, events))
            if self._unmarked or (None in xids and not self._layout.partitioned):
                whole = b"%d" % self._whole_xid()
                events = [
                    event._replace(xid=whole) if self._unmarked or event.xid is None else event
                    for event in events
                ]
                xids = set(map(xid_of, events))
            if len(xids) > 1 or not all(map(self._is_own, xids)):
                strays = [event for event in events if not self._is_own(event.xid)]
                events = [event for event in events if self._is_own(event.xid)]
            if self._layout.partitioned:
                events = self._first_versions(events)
        if events:
            self._xid = int(events[0].xid)
        return events, strays

    def _first_versions(self, events: list[Event]) -> list[Event]:
        """Without the rows that their own transaction moved to another partition: pgoutput sends each as inserted
        once more, with the same id and seq. The event is the row as it was inserted, as where an update leaves it in
        its place. A row without id or seq is never taken for another."""
        kept: list[Event] = []
        seen: set[tuple[bytes, bytes]] = set()
        for event in events:
            row = event.id, event.seq
            if event.id != NULL and event.seq != NULL_SEQ:
                if row in seen or self._came_before(row):
                    continue
                seen.add(row)
            kept.append(event)
        return kept

    def _came_before(self, row: tuple[bytes, bytes]) -> bool:
        """In an earlier chunk of the same transaction."""
        if row in self._brought_ids:
            return True
        return any(int(row[1]) in seqs for seqs in self._brought)

    def _remember(self, events: list[Event]) -> None:
        """For _came_before. Where Postgres counts seq, the numbers are enough, and small."""
        if self._layout.counted:
            numbers = Seqs.of(int(event.seq) for event in events if event.seq != NULL_SEQ)
            self._brought = [Seqs.together([*self._brought, numbers])]
        else:
            self._brought_ids.update((event.id, event.seq) for event in events)

    def _whole_xid(self) -> int:
        """The open transaction's, next to the xid that the server gave out when the stream was opened."""
        near = self._layout.next_xid
        return near + ((self._open_xid - near + (1 << 31)) & _LOW) - (1 << 31)

    def _is_own(self, xid: bytes | None) -> bool:
        return xid is not None and int(xid) & _LOW == self._open_xid

    def _chunk(self) -> None:
        """The open transaction is larger than a batch: hand out a chunk of it."""
        self._close()
        size = self._open_size
        events, strays = self._taken()
        self._chunked = True
        if self._layout.partitioned and events:
            self._remember(events)
        self._hand_out(
            Batch(
                events=events,
                size=size,
                chunk=True,
                whole=False,
                strays=strays,
                replicated=self._replicated,
            )
        )

    def _close(self) -> None:
        """What follows is a batch of its own."""
        if self._batch.xids:
            self._hand_out(self._batch)
            self._batch = Batch()

    def _commit(self, end: Lsn, clock: int) -> None:
        size = self._open_size
        events, strays = self._taken()
        if strays:
            self._close()
        batch = Batch(chunk=True) if self._chunked else self._batch
        batch.strays, batch.replicated = strays, self._replicated
        batch.events += events
        if self._xid or not strays:
            batch.xids.append(self._xid)
            batch.end_lsns.append(end)
            batch.commit_times.append(clock + _POSTGRES_EPOCH)
            batch.commit_rows.append(len(events))
        batch.end_lsn = end
        batch.size += size
        if self._chunked or strays or len(batch.events) >= self._enough or batch.size >= self._max_bytes:
            self._hand_out(batch)
            if not self._chunked:
                self._batch = Batch()
        self._chunked, self._brought, self._brought_ids = False, [], set()

    def _describe(self, data: bytes) -> None:
        """A Relation message comes before the first row, and again whenever the table was altered."""
        at = _HEADER + 5
        names: list[str] = []
        for _ in range(2):
            end = data.index(0, at)
            names.append(data[at:end].decode())
            at = end + 1
        if (names[0], names[1]) != self._name:
            if _U32(data, _HEADER + 1)[0] == self._layout.oid:
                raise Halt(
                    f"the outbox table was called {'.'.join(names)} when rows came into it",
                    reason="outbox_changed",
                    hint="the bridge gives the slot up, whose WAL keeps the other name, and reads the table instead",
                )
            return
        count = (data[at + 1] << 8) | data[at + 2]
        at += 3
        columns: dict[str, int] = {}
        for _ in range(count):
            end = data.index(0, at + 1)
            columns[data[at + 1 : end].decode()] = _U32(data, end + 1)[0]
            at = end + 9  # type oid, type modifier
        self._parse = compile_rows(_HEADER + 8, list(columns.values()), self._places(list(columns)))
        self._relation = data[_HEADER + 1 : _HEADER + 5]

    def _places(self, columns: list[str]) -> list[int | None]:
        """The index of each Event field in a row."""
        places: list[int | None] = []
        self._unmarked = False
        for name in Event._fields:
            column = self._columns.get(name)
            if column in columns:
                places.append(columns.index(column))
            elif column is not None and name in ("seq", "xid") and self._layout.added_after(column, columns):
                self._unmarked = self._unmarked or name == "xid"
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
        return places
