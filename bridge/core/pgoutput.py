"""Decode pgoutput and put its rows together to batches. CopyData bytes in, batches out; the socket lives
in postgres/replication.py.

Protocol version 1, text values: PostgreSQL manual, 53.4 Streaming Replication Protocol and 53.9 Logical
Replication Message Formats. `binary` was measured and does not pay for these types (docs/performance.md).
Only inserts into the outbox are events; everything else that a publication may send is passed over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from operator import itemgetter
from struct import Struct
from typing import Any

from bridge.core.event import Batch, Event
from bridge.core.lsn import Lsn
from bridge.errors import Halt

_U32 = Struct("!I").unpack_from
_BEGIN = Struct("!QQI").unpack_from  # commit LSN, commit time, xid
_COMMIT = Struct("!BQQQ").unpack_from  # flags, commit LSN, end LSN, commit time
_KEEPALIVE = Struct("!cQQB").unpack_from  # 'k', end of WAL, clock, reply wanted
_POSTGRES_EPOCH = 946_684_800_000_000  # 2000-01-01 in unix microseconds
_HEADER = 25  # of XLogData: 'w', start, end, clock

_NULL = ord("n")
_TEXT = ord("t")


class Decoder:
    """Feed it CopyData messages in order; it hands out batches.

    columns: Event field -> the outbox' column name; a field whose column is absent is b"0" for seq and
    xid, else None. Batches hold whole transactions, about max_events of them in rows; a transaction
    beyond max_events rows or max_bytes comes in chunks, so that memory stays bounded.
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
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._relation = -1  # oid of the outbox as the stream spells it
        self._width = 0
        self._pick: Callable[[list[bytes | None]], tuple[Any, ...]] | None = None
        self._batch = Batch()
        self._open: list[Event] = []  # rows of the transaction that has not ended yet
        self._open_size = 0
        self._chunked = False
        self._xid = 0
        self.inside = False
        self.ready: deque[Batch] = deque()
        self.wal_end = Lsn(0)  # of the last keepalive
        self.reply_wanted = False

    def feed(self, view: memoryview) -> None:
        """One CopyData message."""
        if view[0] != 0x77:  # 'w'
            _, end, _, reply = _KEEPALIVE(view)
            self.wal_end = Lsn(end)
            self.reply_wanted = self.reply_wanted or bool(reply)
            return
        tag = view[_HEADER]
        if tag == 0x49:  # Insert
            self._insert(bytes(view))
        elif tag == 0x42:  # Begin
            self.inside = True
            self._xid = 0
        elif tag == 0x43:  # Commit
            _, _, end, clock = _COMMIT(view, _HEADER + 1)
            self._commit(Lsn(end), clock)
        elif tag == 0x52:  # Relation
            self._describe(bytes(view))

    @property
    def behind(self) -> bool:
        """Enough is waiting: read no further before somebody takes it."""
        return len(self.ready) > 1

    @property
    def collected(self) -> int:
        """Events of whole transactions that wait for a batch to fill."""
        return len(self._batch.events)

    def take(self) -> Batch | None:
        """The oldest batch; what has been collected so far when none is full."""
        if self.ready:
            return self.ready.popleft()
        if self._batch.xids:
            batch, self._batch = self._batch, Batch()
            return batch
        return None

    @property
    def drained(self) -> bool:
        """Nothing received waits to be taken: a keepalive's position covers all that came."""
        return not (self.inside or self.ready or self._batch.xids)

    def _insert(self, data: bytes) -> None:
        if _U32(data, _HEADER + 1)[0] != self._relation:
            return
        values: list[bytes | None] = []
        append = values.append
        at = _HEADER + 8
        for _ in range(self._width):
            kind = data[at]
            if kind == _TEXT:
                end = at + 5 + _U32(data, at + 1)[0]
                append(data[at + 5 : end])
                at = end
            elif kind == _NULL:
                append(None)
                at += 1
            else:
                raise Halt(f"pgoutput sent a column of kind {chr(kind)!r}", reason="stream_format")
        values.append(b"0")
        values.append(None)
        assert self._pick is not None  # noqa: S101  set with _relation; this runs for every event
        event = Event._make(self._pick(values))
        self._open.append(event)
        self._open_size += len(data)
        if len(self._open) >= self._max_events * 2 or self._open_size >= self._max_bytes:
            self._chunk()

    def _chunk(self) -> None:
        """The open transaction is larger than a batch may be: hand out what there is of it."""
        if self._batch.xids:
            self.ready.append(self._batch)
            self._batch = Batch()
        self._xid = int(self._open[0].xid)
        self._chunked = True
        self.ready.append(Batch(events=self._open, size=self._open_size, chunk=True, whole=False))
        self._open, self._open_size = [], 0

    def _commit(self, end: Lsn, clock: int) -> None:
        self.inside = False
        events = self._open
        if not events and not self._chunked:
            return
        batch = Batch(chunk=True) if self._chunked else self._batch
        batch.events += events
        batch.xids.append(int(events[0].xid) if events else self._xid)
        batch.end_lsns.append(end)
        batch.commit_times.append((clock + _POSTGRES_EPOCH, len(events)))
        batch.end_lsn = end
        batch.size += self._open_size
        self._open, self._open_size = [], 0
        if self._chunked or len(batch.events) >= self._max_events or batch.size >= self._max_bytes:
            self.ready.append(batch)
            if not self._chunked:
                self._batch = Batch()
        self._chunked = False

    def _describe(self, data: bytes) -> None:
        """A Relation message comes before the first row, and again whenever the table was altered."""
        oid = _U32(data, _HEADER + 1)[0]
        at = _HEADER + 5
        names: list[str] = []
        for _ in range(2):
            end = data.index(0, at)
            names.append(data[at:end].decode())
            at = end + 1
        if (names[0], names[1]) != self._name:
            return
        count = (data[at + 1] << 8) | data[at + 2]
        at += 3
        columns: list[str] = []
        for _ in range(count):
            end = data.index(0, at + 1)
            columns.append(data[at + 1 : end].decode())
            at = end + 9  # type oid, type modifier
        self._compile(oid, columns)

    def _compile(self, oid: int, columns: list[str]) -> None:
        """Where each field of Event stands in a row; two columns are added behind: b"0" and NULL."""
        width = len(columns)
        places: list[int] = []
        for name in Event._fields:
            column = self._columns.get(name)
            if column in columns:
                places.append(columns.index(column))
            elif name in ("id", "type", "payload"):
                raise Halt(
                    f"the outbox table {'.'.join(self._name)} has no column {column or name!r} any more",
                    reason="outbox_changed",
                    hint="rename it back, or name it under source.columns in bridge.yaml and restart",
                )
            else:
                places.append(width if name in ("seq", "xid") else width + 1)
        self._relation, self._width = oid, width
        self._pick = itemgetter(*places)
