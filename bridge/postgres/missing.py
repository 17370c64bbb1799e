"""Reading from the outbox table what a floor does not show: for catch-up and polling."""

from __future__ import annotations

from bisect import bisect_left

from psycopg import sql

from bridge.postgres.outbox import Outbox, events_of, floor_values, foreign_rows, unplaceable_rows
from bridge.postgres.profiled import ProfiledConnection
from bridge.protocol.chain import partition_of
from bridge.protocol.events import NOTHING, Batch, Event
from bridge.protocol.requests import MissingRows, ReadMissing

_FETCH = 500
_BATCH_BYTES = 16 << 20
_TOGETHER = 50_000
"""Rows that are applied together at most because their transactions overlap."""

_INDEXED = """
select exists (
    select from pg_catalog.pg_index i
    join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
    where i.indrelid = to_regclass(%s) and a.attname = %s and i.indisvalid and i.indpred is null)"""


class MissingReader:
    """Reads the rows of one goal by seq through a cursor: one sort for all batches.

    A batch ends where seq changes, because the ledger knows how far it is by seq alone, and where no transaction of
    the source has rows on both sides: its rows may need each other (a deferred foreign key), and a plain commit would
    judge them together. Where a batch has no such place, what follows up to the next one is handed out in chunks, one
    target transaction; so are more than a batch of rows with one seq, in an outbox of the customer's own. Two limits:
    after _TOGETHER rows a chunk ends at any seq, and without an index on xid all batches do.

    The cursor's snapshot is newer than the goal, and no transaction visible in the goal is still running, so the
    cursor sees all rows. A stream that has applied nothing yet (NOTHING) takes every row, also those whose xid cannot
    be their own: after a restore, or from before the column was added. Later such rows are `foreign`.
    """

    def __init__(
        self,
        connection: ProfiledConnection,
        outbox: Outbox,
        max_events: int,
        partition: tuple[int, int] | None = None,
    ) -> None:
        """partition: only rows of this one, of so many."""
        self._partition = partition
        self._connection = connection
        self._outbox = outbox.on(connection)
        self.max_events = max_events
        self._at: tuple[object, ...] | None = None  # what would be returned next
        self._rest: list[Event] = []  # fetched, and not handed out
        self._xids: dict[int, None] = {}  # of the chunks so far
        self._indexed = False  # an index says where a transaction's rows end
        self._last = 0  # the seq of the last row that was handed out
        self._reach = 0  # while chunks are handed out: up to this seq there are rows of their transactions
        self._chunked = 0  # and so many rows

    def read(self, request: ReadMissing) -> MissingRows:
        goal = (request.floor, request.upto, request.since)
        if self._at != (*goal, request.after_seq, request.inside):
            if request.inside:
                raise RuntimeError("chunks are read in one go")
            foreign = self._open(request)
            if foreign is not None:
                self.close()
                return MissingRows(Batch(), request.after_seq, more=True, foreign=foreign)
        events, more = self._fetch()
        cut, whole = self._cut(events, inside=request.inside) if more and events else (len(events), True)
        chunk = request.inside or not whole
        events, self._rest = events[:cut], events[cut:]
        if not request.inside:
            self._last = request.after_seq
        if events:
            self._last = _number(events[-1])
        seq = self._last if whole else request.after_seq
        more = more or bool(self._rest)
        self._xids |= dict.fromkeys(int(event.xid) for event in events)
        xids = list(self._xids)
        if whole:
            self._xids = {}
        if more:
            self._at = (*goal, seq, not whole)
        else:
            self.close()
        size = sum(len(event.payload) for event in events)
        return MissingRows(Batch(events=events, xids=xids, size=size, chunk=chunk, whole=whole), seq, more)

    def _cut(self, events: list[Event], *, inside: bool) -> tuple[int, bool]:
        """How many of these rows to hand out, and whether the batch ends there. inside: after chunks."""
        ends, clean = self._ends(events), None
        reach = self._reach if inside else _number(events[0])
        for place, event in enumerate(events):
            number = _number(event)
            if number > reach:
                clean = place
                if inside:
                    return clean, True
            reach = max(reach, number, ends.get(event.xid, number))
        if clean is not None:
            return clean, True
        self._reach = reach
        self._chunked = len(events) + (self._chunked if inside else 0)
        if self._chunked > _TOGETHER and (cut := bisect_left(events, _number(events[-1]), key=_number)):
            return cut, True
        return len(events), False

    def _ends(self, events: list[Event]) -> dict[bytes, int]:
        """The last seq of each transaction."""
        if not self._indexed:
            return {}
        xid, seq = self._outbox.column("xid"), self._outbox.order()
        query = sql.SQL(
            "select {xid}::text, max({seq})::text from {table} as e where {xid} = any(%s::xid8[]) group by {xid}"
        ).format(xid=xid, seq=seq, table=self._outbox.name)
        xids = b",".join({event.xid for event in events}).decode()
        result = self._connection.execute(query, [f"{{{xids}}}"], binary=False).pgresult
        assert result is not None  # noqa: S101  it is a select
        found = [[result.get_value(row, n) or b"" for n in (0, 1)] for row in range(result.ntuples)]
        return {xid: int(last) for xid, last in found}

    def _fetch(self) -> tuple[list[Event], bool]:
        """The rest of last time, and as many rows as make a batch; whether there may be more."""
        events = self._rest
        most = max(self.max_events, len(events) + 1)
        while True:
            count = min(_FETCH, most - len(events))
            cursor = self._connection.execute(f"fetch forward {count} from missing", binary=False)
            rows = events_of(cursor.pgresult, self._outbox)
            events += rows if self._partition is None else self._of_partition(rows, *self._partition)
            if len(rows) < count:
                return events, False
            if len(events) >= most or sum(len(event.payload) for event in events) >= _BATCH_BYTES:
                return events, True

    @staticmethod
    def _of_partition(rows: list[Event], partition: int, partitions: int) -> list[Event]:
        """By the function that a relay divides rows with. What the query asks for only saves their transport."""
        return [row for row in rows if partition_of(row.key, row.id, partitions) == partition]

    def _open(self, request: ReadMissing) -> str | None:
        """Open the cursor. Returns what is said of rows that nothing can place."""
        self.close()
        connection, outbox = self._connection, self._outbox
        connection.begin("isolation level repeatable read, read only")
        first = request.floor == NOTHING
        if first:
            foreign = unplaceable_rows(connection, outbox, request.upto)
        else:
            foreign = foreign_rows(connection, outbox, request.floor)
        if foreign is not None:
            return foreign
        connection.execute(
            sql.SQL(
                "declare missing no scroll cursor for select {columns} from {table} as e"
                " where {beyond_floor} and not pg_visible_in_snapshot({placed}, %(floor)s::pg_snapshot)"
                " and pg_visible_in_snapshot({placed}, %(upto)s::pg_snapshot)"
                " and (%(first)s or not {stranger})"
                " and {seq} > %(seq)s::bigint and {partition}"
                " and (%(since)s::timestamptz is null or {occurred} >= %(since)s::timestamptz)"
                " order by {seq}"
            ).format(
                columns=outbox.placed_list(),
                table=outbox.name,
                beyond_floor=outbox.beyond_floor(),
                placed=outbox.placed(),
                stranger=outbox.is_stranger(),
                seq=outbox.order(),
                occurred=outbox.column("occurred_at"),
                partition=outbox.in_partition(self._partition),
            ),
            {
                **floor_values(request.floor),
                "upto": str(request.upto),
                "first": first,
                "seq": request.after_seq,
                "since": request.since,
            },
        )
        self._indexed = False
        if outbox.has_xid:
            row = connection.execute(_INDEXED, [outbox.name.as_string(), outbox.columns["xid"]]).fetchone()
            self._indexed = row == (True,)
        if connection.info.parameter_status("server_encoding") == "SQL_ASCII":
            # Otherwise one payload that is not UTF-8 would make the read fail; this way it becomes a dead letter.
            connection.execute("set local client_encoding = 'SQL_ASCII'")
        return None

    def close(self) -> None:
        self._at = None
        self._rest, self._xids = [], {}
        if not self._connection.closed:
            self._connection.rollback()


def _number(event: Event) -> int:
    return int(event.seq)
