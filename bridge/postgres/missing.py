"""Reading from the outbox table what a floor does not show: for catch-up and polling."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from psycopg import sql

from bridge.postgres.outbox import Outbox, events_of, floor_values, foreign_rows, unplaceable_rows
from bridge.postgres.profiled import ProfiledConnection
from bridge.protocol.events import NOTHING, Batch, Event
from bridge.protocol.requests import MissingRows, ReadMissing

_FETCH = 500
_BATCH_BYTES = 16 << 20


class MissingReader:
    """Reads the rows of one goal by seq through a cursor: one sort for all batches.

    A batch ends where seq changes, because the ledger knows how far it is by seq alone. In an outbox of the customer's
    own many rows may have one seq; more than a batch of them is handed out in chunks, one target transaction.

    The cursor's snapshot is newer than the goal, and no transaction visible in the goal is still running, so the
    cursor sees all rows. A stream that has applied nothing yet (NOTHING) takes every row, also those whose xid cannot
    be their own: after a restore, or from before the column was added. Later such rows are `foreign`.
    """

    def __init__(self, connection: ProfiledConnection, outbox: Outbox, max_events: int) -> None:
        self._connection = connection
        self._outbox = outbox.on(connection)
        self.max_events = max_events
        self._at: tuple[object, ...] | None = None  # what would be returned next
        self._rest: list[Event] = []  # fetched, and not handed out
        self._xids: dict[int, None] = {}  # of the chunks so far
        self._one = 0  # the seq that comes in chunks

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
        whole, seq, cut = True, request.after_seq, len(events)
        if request.inside:
            seq = self._one
            cut = bisect_right(events, seq, key=_number)
            whole = cut < len(events) or not more
        elif events:
            seq = int(events[-1].seq)
            if more:
                first = bisect_left(events, seq, key=_number)
                whole = first > 0
                cut = first or cut
                self._one, seq = seq, int(events[first - 1].seq) if whole else request.after_seq
        events, self._rest = events[:cut], events[cut:]
        more = more or bool(self._rest)
        chunk = request.inside or not whole
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

    def _fetch(self) -> tuple[list[Event], bool]:
        """The rest of last time, and as many rows as make a batch; whether there may be more."""
        events = self._rest
        most = max(self.max_events, len(events) + 1)
        while True:
            count = min(_FETCH, most - len(events))
            cursor = self._connection.execute(f"fetch forward {count} from missing", binary=False)
            rows = events_of(cursor.pgresult, self._outbox)
            events += rows
            if len(rows) < count:
                return events, False
            if len(events) >= most or sum(len(event.payload) for event in events) >= _BATCH_BYTES:
                return events, True

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
                " and {seq} > %(seq)s::bigint"
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
            ),
            {
                **floor_values(request.floor),
                "upto": str(request.upto),
                "first": first,
                "seq": request.after_seq,
                "since": request.since,
            },
        )
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
