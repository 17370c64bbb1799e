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
from struct import Struct
from typing import NoReturn

from bridge.errors import Halt
from bridge.protocol.events import Batch, Event, Lsn, xid_of

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


def compile_rows(at: int, types: Sequence[int], places: Sequence[int | None]) -> RowParser:
    """Compile the function from an Insert message to its Event. at: the offset of the first column in the message.
    types: the columns' type oids. places: for each Event field its column, or None."""
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


_U32 = Struct("!I").unpack_from
_BEGIN = Struct("!QQI").unpack_from  # commit LSN, commit time, xid
_COMMIT = Struct("!BQQQ").unpack_from  # flags, commit LSN, end LSN, commit time
_KEEPALIVE = Struct("!cQQB").unpack_from  # 'k', end of WAL, clock, reply wanted
_POSTGRES_EPOCH = 946_684_800_000_000  # 2000-01-01 in unix microseconds
_HEADER = 25  # of XLogData: 'w', start, end, clock
_TAG = itemgetter(_HEADER)
_RELATION = itemgetter(slice(_HEADER + 1, _HEADER + 5))
_COMMITS = Struct(f"!{_HEADER + 1}xBQQQ").iter_unpack
_SINGLES = re.compile(rb"(?:BIC){4,}")  # below this number the column path costs more than it saves


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
        self.oid: int | None = None
        """Of the outbox. Rows that come under this oid with another name are its rows, from before a rename."""
        self._name = (schema, table)
        self._columns = columns
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._relation = b""  # oid of the outbox as the stream spells it
        self._parse: RowParser | None = None
        self._batch = Batch()
        self._open: list[Event] = []  # rows of the transaction that has not ended yet
        self._open_size = 0
        self._chunked = False
        self._xid = 0
        self.inside = False
        self.behind = False
        """A full batch is waiting: stop reading until it is taken."""
        self.ready: deque[Batch] = deque()
        self.wal_end = Lsn(0)  # of the last keepalive
        self.reply_wanted = False

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
        stop = min(stop, start + 3 * (self._max_events - len(self._batch.events)))
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
        _, _, ends, clocks = zip(*_COMMITS(b"".join(messages[2::3])), strict=True)
        batch.events += events
        batch.xids += map(int, map(xid_of, events))
        batch.end_lsns += ends
        batch.commit_times += map(_POSTGRES_EPOCH.__add__, clocks)
        batch.commit_rows += [1] * len(events)
        batch.end_lsn = ends[-1]
        batch.size += size
        if len(batch.events) >= self._max_events:
            self._hand_out(batch)
            self._batch = Batch()

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
                    if self._open_size >= self._max_bytes or len(self._open) >= self._max_events * 2:
                        self._chunk()
            elif tag == 0x42:  # Begin
                self.inside = True
                self._xid = 0
            elif tag == 0x43:  # Commit
                self.inside = False
                if self._open or self._chunked:
                    _, _, end, clock = _COMMIT(data, _HEADER + 1)
                    self._commit(end, clock)
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

    def _chunk(self) -> None:
        """The open transaction is larger than a batch: hand out a chunk of it."""
        if self._batch.xids:
            self._hand_out(self._batch)
            self._batch = Batch()
        self._xid = int(self._open[0].xid)
        self._chunked = True
        self._hand_out(Batch(events=self._open, size=self._open_size, chunk=True, whole=False))
        self._open, self._open_size = [], 0

    def _commit(self, end: Lsn, clock: int) -> None:
        events = self._open
        batch = Batch(chunk=True) if self._chunked else self._batch
        batch.events += events
        batch.xids.append(int(events[0].xid) if events else self._xid)
        batch.end_lsns.append(end)
        batch.commit_times.append(clock + _POSTGRES_EPOCH)
        batch.commit_rows.append(len(events))
        batch.end_lsn = end
        batch.size += self._open_size
        self._open, self._open_size = [], 0
        if self._chunked or len(batch.events) >= self._max_events or batch.size >= self._max_bytes:
            self._hand_out(batch)
            if not self._chunked:
                self._batch = Batch()
        self._chunked = False

    def _describe(self, data: bytes) -> None:
        """A Relation message comes before the first row, and again whenever the table was altered."""
        at = _HEADER + 5
        names: list[str] = []
        for _ in range(2):
            end = data.index(0, at)
            names.append(data[at:end].decode())
            at = end + 1
        if (names[0], names[1]) != self._name:
            if _U32(data, _HEADER + 1)[0] == self.oid:
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
        for name in Event._fields:
            column = self._columns.get(name)
            if column in columns:
                places.append(columns.index(column))
            elif name in ("id", "type", "payload"):
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
