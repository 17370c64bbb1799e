"""Decode pgoutput and put its rows together to batches. CopyData bytes in, batches out; the socket is elsewhere.

Protocol version 1, text values: PostgreSQL manual, 53.4 Streaming Replication Protocol and 53.9 Logical
Replication Message Formats. `binary` was measured and does not pay for these types (docs/performance.md). Only
inserts into the outbox are events; everything else that a publication may send is passed over.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping, Sequence
from operator import itemgetter
from struct import Struct, pack

from bridge.protocol.events import NULL, NULL_SEQ, Batch, Event, Lsn, Seqs, numbers, xid_of
from bridge.stream.relation import HEADER, Layout, Relations, RowParser, compile_rows

_BEGIN = Struct("!QQI").unpack_from  # commit LSN, commit time, xid
_COMMIT = Struct("!BQQQ").unpack_from  # flags, commit LSN, end LSN, commit time
_KEEPALIVE = Struct("!cQQB").unpack_from  # 'k', end of WAL, clock, reply wanted
_POSTGRES_EPOCH = 946_684_800_000_000  # 2000-01-01 in unix microseconds
_TAG = itemgetter(HEADER)
"""Of an XLogData message, the kind of pgoutput's message in it."""
_RELATION = itemgetter(slice(HEADER + 1, HEADER + 5))
_BEGIN_XID = itemgetter(slice(HEADER + 17, HEADER + 21))
_LOW = 0xFFFFFFFF
"""Begin has the lower half of what a row's xid8 says."""
_COMMITS = Struct(f"!{HEADER + 1}xBQQQ").iter_unpack
_SINGLES = re.compile(rb"(?:BIC){4,}")  # below this number the column path costs more than it saves


_FIRST_EVENTS = 200
"""A stream's first batches have as many, until one is durable: the first row of a backlog need not wait until two
batches of the usual size are decoded."""


def singles(messages: Sequence[bytes]) -> tuple[int, int] | None:
    """Where transactions of one row each follow each other, from the first message to behind the last; None: not enough
    of them, or among the messages is a keepalive."""
    try:
        found = _SINGLES.search(bytes(map(_TAG, messages)))
    except IndexError:  # a keepalive is shorter
        return None
    return None if found is None else found.span()


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
        self._relations = Relations(schema, table, columns)
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
        span = singles(messages)
        if span is None:
            self._each(messages)
            return
        start, stop = span
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
            tag = data[HEADER]
            if tag == 0x49:  # Insert
                if data[HEADER + 1 : HEADER + 5] == self._relation:
                    self._open.append(self._parse(data))  # type: ignore[misc]  # set with _relation
                    self._open_size += len(data)
                    if self._open_size >= self._max_bytes or len(self._open) >= self.max_events * 2:
                        self._chunk()
            elif tag == 0x42:  # Begin
                self.inside = True
                self._xid, self._replicated = 0, False
                self._open_xid = _BEGIN(data, HEADER + 1)[2]
            elif tag == 0x43:  # Commit
                self.inside = False
                if self._open or self._chunked:
                    _, _, end, clock = _COMMIT(data, HEADER + 1)
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
        found = self._relations.read(data, self._layout)
        if found is None:
            return
        self._unmarked = found.unmarked
        self._parse = compile_rows(HEADER + 8, found.types, found.places)
        self._relation = data[HEADER + 1 : HEADER + 5]
