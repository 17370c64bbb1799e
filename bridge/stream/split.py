"""Divides what a slot brings into partitions, a relay's work for each event: pgoutput's messages in, pieces out.

Nothing is decoded but what says where a row belongs; the messages go on as they came, and whoever applies them decodes
them as from a slot of its own. Code in feed() runs for every message, so three times for an event that is a
transaction of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from struct import Struct

from bridge.protocol.chain import partition_of
from bridge.protocol.events import ZERO, Event, Lsn
from bridge.protocol.requests import Piece
from bridge.stream.decode import singles
from bridge.stream.frames import body_of
from bridge.stream.relation import HEADER, Layout, Relations, RowParser, compile_rows

FRAME_EVENTS = 500
FRAME_BYTES = 256 << 10
"""A frame is full with so many events or bytes: one message an event would cost 40 us each (docs/performance.md)."""

_BEGIN = Struct(f"!{HEADER + 1}xQQI").unpack_from  # commit LSN, commit time, xid
_COMMIT = Struct(f"!{HEADER + 1}xBQQQ").unpack_from  # flags, commit LSN, end LSN, commit time
_KEEPALIVE = Struct("!cQQB").unpack_from
_BEGIN_XIDS = Struct(f"!{HEADER + 17}xI").iter_unpack
_COMMIT_ENDS = Struct(f"!{HEADER + 10}xQ8x").iter_unpack
_RELATION = slice(HEADER + 1, HEADER + 5)


@dataclass(slots=True)
class _Pile:
    """Messages of one partition that wait for a frame: of whole transactions, and of the open one."""

    messages: list[bytes] = field(default_factory=list)
    rows: int = 0
    size: int = 0
    opened: list[bytes] = field(default_factory=list)  # of the open transaction, without its beginning
    opened_rows: int = 0
    opened_size: int = 0
    offset: int = 0  # rows of the open transaction that were handed out
    parted: bool = False  # and so its beginning was


class Splitter:
    """feed() gets CopyData messages in order, take() hands out what is ready. columns: as the Decoder has them."""

    def __init__(self, schema: str, table: str, columns: Mapping[str, str], partitions: int) -> None:
        self._relations = Relations(schema, table, columns)
        self._layout = Layout()
        self._partitions = partitions
        self._oid = b""
        self._relation = b""  # the message that describes the rows
        self._parse: RowParser | None = None
        self._piles = [_Pile() for _ in range(partitions)]
        self._begin: list[bytes] = []  # of the open transaction: Begin, and Origin if there is one
        self._commit_lsn = ZERO
        self._touched: set[int] = set()  # partitions that have rows of it
        self._ready: list[Piece] = []
        self.ends: list[Lsn] = []
        self.xids: list[int] = []
        self.position = ZERO
        """Everything up to here was fed, and lies in the piles or in pieces."""
        self.inside = False
        self.wal_end = ZERO
        self.reply_wanted = False

    @property
    def reached(self) -> Lsn:
        """Everything up to here lies in pieces, if all piles were taken."""
        return self.position if self.inside else max(self.position, self.wal_end)

    @property
    def behind(self) -> bool:
        """Full pieces wait: stop reading until they are taken."""
        return len(self._ready) >= self._partitions

    def expect(self, layout: Layout) -> None:
        """What the table is like now, where the stream begins with older rows."""
        self._layout = layout

    def restart(self, position: Lsn) -> None:
        """The stream is read from here again."""
        self._piles = [_Pile() for _ in range(self._partitions)]
        self._ready, self._begin, self._touched = [], [], set()
        self.ends, self.xids = [], []
        self.position, self.inside, self.wal_end = position, False, ZERO

    def take(self, idle: Sequence[int]) -> list[Piece]:
        """Full pieces, and what lies in the piles of these partitions."""
        for partition in idle:
            self._cut(partition)
        ready, self._ready = self._ready, []
        return ready

    def transactions(self) -> tuple[list[Lsn], list[int]]:
        """The ends and xids of the transactions since the last call."""
        ends, xids, near = self.ends, self.xids, self._layout.next_xid
        self.ends, self.xids = [], []
        return ends, [near + ((xid - near + 0x80000000) & 0xFFFFFFFF) - 0x80000000 for xid in xids]

    def feed(self, messages: Sequence[bytes]) -> None:
        """CopyData messages as received."""
        span = singles(messages)
        if span is None:
            self._each(messages)
            return
        start, stop = span
        self._each(messages[:start])
        self._singles(messages[start:stop])
        self._each(messages[stop:])

    def _singles(self, messages: Sequence[bytes]) -> None:
        """Whole transactions of one row each."""
        oid, parse, piles, count = self._oid, self._parse, self._piles, self._partitions
        rows = messages[1::3]
        if parse is None or any(row[_RELATION] != oid for row in rows):
            self._each(messages)
            return
        ends = [end for (end,) in _COMMIT_ENDS(b"".join(messages[2::3]))]
        for at, (row, end) in enumerate(zip(map(parse, rows), ends, strict=True)):
            place = partition_of(row.key, row.id, count) - 1
            pile = piles[place]
            pile.messages += messages[3 * at : 3 * at + 3]
            pile.rows += 1
            pile.size += len(rows[at])
            self.position = end
            if pile.rows >= FRAME_EVENTS or pile.size >= FRAME_BYTES:
                self._cut(place + 1)
        self.ends += ends
        self.xids += [xid for (xid,) in _BEGIN_XIDS(b"".join(messages[0::3]))]

    def _each(self, messages: Sequence[bytes]) -> None:
        for data in messages:
            if data[0] != 0x77:  # not 'w', so 'k'
                _, end, _, reply = _KEEPALIVE(data)
                self.wal_end = Lsn(end)
                self.reply_wanted = self.reply_wanted or bool(reply)
                continue
            tag = data[HEADER]
            if tag == 0x49:  # Insert
                if data[_RELATION] == self._oid:
                    self._row(data)
            elif tag == 0x42:  # Begin
                self.inside = True
                self._begin = [data]
                self._commit_lsn = Lsn(_BEGIN(data)[0])
            elif tag == 0x43:  # Commit
                self.inside = False
                self._commit(data)
            elif tag == 0x4F:  # Origin
                self._begin.append(data)
            elif tag == 0x52:  # Relation
                self._describe(data)

    def _row(self, data: bytes) -> None:
        row = self._parse(data)  # type: ignore[misc]  # set with _oid
        place = partition_of(row.key, row.id, self._partitions) - 1
        self._touched.add(place)
        pile = self._piles[place]
        pile.opened.append(data)
        pile.opened_rows += 1
        pile.opened_size += len(data)
        if pile.opened_rows >= FRAME_EVENTS * 2 or pile.opened_size >= FRAME_BYTES * 2:
            self._part(place, end=None, commit=[])

    def _part(self, place: int, *, end: Lsn | None, commit: list[bytes]) -> None:
        """A part of the open transaction. end: where it ends, with the last one."""
        self._cut(place + 1)
        pile = self._piles[place]
        begin = [] if pile.parted else self._begin
        body = body_of(self._relation, [*begin, *pile.opened, *commit])
        self._ready.append(
            Piece(
                place + 1,
                end or ZERO,
                pile.opened_rows,
                body,
                commit=self._commit_lsn,
                offset=pile.offset,
                is_open=end is None,
            )
        )
        pile.offset += pile.opened_rows
        pile.parted = True
        pile.opened, pile.opened_rows, pile.opened_size = [], 0, 0

    def _commit(self, data: bytes) -> None:
        _, _, end, _ = _COMMIT(data)
        if not self._touched:
            return
        for place in self._touched:
            pile = self._piles[place]
            if pile.parted:
                self._part(place, end=Lsn(end), commit=[data])
                pile.offset, pile.parted = 0, False
                continue
            pile.messages += [*self._begin, *pile.opened, data]
            pile.rows += pile.opened_rows
            pile.size += pile.opened_size
            pile.opened, pile.opened_rows, pile.opened_size = [], 0, 0
        self.position = Lsn(end)
        self.ends.append(Lsn(end))
        self.xids.append(_BEGIN(self._begin[0])[2])
        for place in self._touched:
            pile = self._piles[place]
            if pile.rows >= FRAME_EVENTS or pile.size >= FRAME_BYTES:
                self._cut(place + 1)
        self._touched = set()

    def _cut(self, partition: int) -> None:
        """What lies in a pile becomes a piece. It ends where all that was fed ends."""
        pile = self._piles[partition - 1]
        if not pile.rows:
            return
        body = body_of(self._relation, pile.messages)
        self._ready.append(Piece(partition, self.position, pile.rows, body))
        pile.messages, pile.rows, pile.size = [], 0, 0

    def _describe(self, data: bytes) -> None:
        found = self._relations.read(data, self._layout)
        if found is None:
            return
        if data != self._relation:
            for number in range(1, self._partitions + 1):  # a frame has one description
                self._cut(number)
            self._flush_open()
        self._relation, self._oid = data, data[_RELATION]
        places = [
            place if name in ("id", "key") else None
            for name, place in zip(Event._fields, found.places, strict=True)
        ]
        self._parse = compile_rows(HEADER + 8, found.types, places)

    def _flush_open(self) -> None:
        """The table was altered amid a transaction: its rows so far are described by the message before."""
        for place in self._touched:
            if self._piles[place].opened:
                self._part(place, end=None, commit=[])
