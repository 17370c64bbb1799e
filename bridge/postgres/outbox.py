"""The outbox table: its name and columns, reading what a floor does not show, waking up, counting repeats.

Catch-up and polling read rows from here. A notification only wakes the reader sooner, the timer guarantees it:
behind a pooler in transaction mode LISTEN is accepted, and what arrives between two statements is lost. So the
listening connection proves first that it is a session, then notifies itself; when either fails, there is only the
timer. Each repeat of an idempotency key is a row of outbox.suppressed, written in the repeating transaction, so
that producers never wait for each other and a rollback counts nothing; those rows are added together here.
"""

from __future__ import annotations

import re
import uuid
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, LiteralString

import psycopg
from psycopg import Connection, sql
from psycopg.pq.abc import PGresult

from bridge.errors import BridgeError
from bridge.postgres.connect import connect
from bridge.postgres.profiled import ProfiledConnection
from bridge.postgres.profiles import LISTEN
from bridge.protocol.events import Batch, Event, event_of
from bridge.protocol.requests import MissingRows, ReadMissing

_FETCH = 500
_BATCH_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Outbox:
    """The table that producers insert into. columns: Event field -> column name, for the fields it has."""

    schema: str = "outbox"
    table: str = "event"
    columns: Mapping[str, str] = field(default_factory=lambda: {name: name for name in Event._fields})

    @property
    def name(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.table)

    @property
    def is_foreign(self) -> bool:
        """Is it the customer's own outbox?"""
        return (self.schema, self.table) != ("outbox", "event")

    @property
    def has_xid(self) -> bool:
        return "xid" in self.columns

    def column(self, field_name: str) -> sql.Composable:
        """The column of this field, or its substitute in an Event if the table has none."""
        if field_name in self.columns:
            return sql.Identifier(self.columns[field_name])
        return sql.SQL("'0'") if field_name in ("seq", "xid") else sql.SQL("null")

    def order(self) -> sql.Composable:
        """What rows are read by: seq, and 0 where it is NULL. Qualified by `e`: bare, it would be the text in the
        select list."""
        if "seq" not in self.columns:
            return sql.SQL("coalesce(0, 0)")  # a bare number would be a column's place
        seq = sql.Identifier("e", self.columns["seq"])
        return sql.SQL("coalesce({}, 0)").format(seq) if self.is_foreign else seq

    def select_list(self) -> sql.Composed:
        """All fields of Event, to be read with events_of(): what the server prints is what a slot brings. A cast to
        text would print char(n), boolean and inet in another way."""
        return sql.SQL(", ").join(self.column(name) for name in Event._fields)


def decoded(events: list[Event]) -> list[Event]:
    """Payloads of a bytea column are printed as hex; no JSON text begins with a backslash. Any other text that does is
    left as it is: no JSON, so a dead letter."""
    if not any(event.payload.startswith(b"\\x") for event in events):
        return events
    return [
        event._replace(payload=bytes.fromhex(event.payload[2:].decode()))
        if _HEX.fullmatch(event.payload)
        else event
        for event in events
    ]


_HEX = re.compile(rb"\\x(?:[0-9a-f]{2})*")


def events_of(result: PGresult | None, outbox: Outbox) -> list[Event]:
    """The rows of a select_list() in text format, untouched."""
    if result is None:
        return []
    make: Callable[[list[bytes | None]], Event] = event_of if outbox.is_foreign else Event._make
    width = range(len(Event._fields))
    get = result.get_value
    return [make([get(row, n) for n in width]) for row in range(result.ntuples)]


class MissingReader:
    """Reads the rows of one goal by seq through a cursor: one sort for all batches.

    A batch ends where seq changes, because the ledger knows how far it is by seq alone. In an outbox of the customer's
    own many rows may have one seq; more than a batch of them is handed out in chunks, one target transaction.

    The cursor's snapshot is newer than the goal, and no transaction visible in the goal is still running, so the
    cursor sees all rows.
    """

    def __init__(self, connection: ProfiledConnection, outbox: Outbox, max_events: int) -> None:
        self._connection = connection
        self._outbox = outbox
        self._max_events = max_events
        self._at: tuple[object, ...] | None = None  # what would be returned next
        self._rest: list[Event] = []  # fetched, and not handed out
        self._xids: dict[int, None] = {}  # of the chunks so far
        self._one = 0  # the seq that comes in chunks

    def read(self, request: ReadMissing) -> MissingRows:
        goal = (request.floor, request.upto, request.since)
        if self._at != (*goal, request.after_seq, request.inside):
            if request.inside:
                raise RuntimeError("chunks are read in one go")
            self._open(request)
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
        most = max(self._max_events, len(events) + 1)
        while True:
            count = min(_FETCH, most - len(events))
            cursor = self._connection.execute(f"fetch forward {count} from missing", binary=False)
            rows = events_of(cursor.pgresult, self._outbox)
            events += rows
            if len(rows) < count:
                return events, False
            if len(events) >= most or sum(len(event.payload) for event in events) >= _BATCH_BYTES:
                return events, True

    def _open(self, request: ReadMissing) -> None:
        self.close()
        self._connection.begin("isolation level repeatable read, read only")
        self._connection.execute(
            sql.SQL(
                "declare missing no scroll cursor for select {columns} from {table} as e"
                " where ({xid} >= %(xmax)s::xid8 or {xid} = any(%(xip)s::xid8[]))"
                " and pg_visible_in_snapshot({xid}, %(upto)s::pg_snapshot)"
                " and {seq} > %(seq)s::bigint"
                " and (%(since)s::timestamptz is null or {occurred} >= %(since)s::timestamptz)"
                " order by {seq}"
            ).format(
                columns=self._outbox.select_list(),
                table=self._outbox.name,
                xid=self._outbox.column("xid"),
                seq=self._outbox.order(),
                occurred=self._outbox.column("occurred_at"),
            ),
            {
                "xmax": str(request.floor.xmax),
                "xip": "{" + ",".join(map(str, request.floor.xip)) + "}",
                "upto": str(request.upto),
                "seq": request.after_seq,
                "since": request.since,
            },
        )
        if self._connection.info.parameter_status("server_encoding") == "SQL_ASCII":
            # Otherwise one payload that is not UTF-8 would make the read fail; this way it becomes a dead letter.
            self._connection.execute("set local client_encoding = 'SQL_ASCII'")

    def close(self) -> None:
        self._at = None
        self._rest, self._xids = [], {}
        if not self._connection.closed:
            self._connection.rollback()


def _number(event: Event) -> int:
    return int(event.seq)


CHANNEL = "outbox_bridge"
_PROBE_SECONDS = 2.0


class Listener:
    """`descriptor` is readable after a notification; None: notifications do not arrive."""

    def __init__(self, dsn: str, stream: str) -> None:
        self._connection: psycopg.Connection | None = None
        self.descriptor: int | None = None
        try:
            connection = connect(dsn, LISTEN, stream)
        except (psycopg.Error, BridgeError):
            return
        try:
            proved = self._proves(connection)
        except psycopg.Error:
            proved = False
        if not proved:
            connection.close()
            return
        self._connection = connection
        self.descriptor = connection.fileno()

    def _proves(self, connection: psycopg.Connection) -> bool:
        token = str(uuid.uuid4())
        connection.execute(f"listen {CHANNEL}")
        connection.execute("select pg_notify(%s, %s)", [CHANNEL, token])
        return any(
            notification.payload == token
            for notification in connection.notifies(timeout=_PROBE_SECONDS, stop_after=1)
        )

    def drain(self) -> None:
        """Discard notifications. If the connection is broken, only the timer remains."""
        if self._connection is None:
            return
        try:
            for _ in self._connection.notifies(timeout=0):
                pass
        except psycopg.Error:
            self.close()

    def close(self) -> None:
        self.descriptor = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None


_AT_ONCE = 10_000
"""Rows that one transaction merges."""

_READABLE: LiteralString = "select has_table_privilege(to_regclass('outbox.suppressed'), 'select')"

COUNTS: LiteralString = "select type, sum(count)::bigint from outbox.suppressed group by type order by type"
"""Event type and count; needs SELECT on outbox.suppressed, which the role outbox_bridge has."""

_ROWS: LiteralString = "select count(*), count(distinct type) from outbox.suppressed"

# Two bridges at once take different rows: neither waits, and nothing is added twice.
_FOLD: LiteralString = """
    with taken as materialized (
        delete from outbox.suppressed where ctid = any(array(
            select ctid from outbox.suppressed limit %s for update skip locked))
        returning type, count, since
    )
    insert into outbox.suppressed (type, count, since)
    select type, sum(count), min(since) from taken group by type"""


def suppressed(source: Connection[Any]) -> dict[str, int] | None:
    """The count by event type; None if the source does not have the table yet, or we may not read it (doctor says
    so)."""
    if not _readable(source):
        return None
    return dict(source.execute(COUNTS).fetchall())


def fold(source: Connection[Any], *, go_on: Callable[[], bool] = lambda: True) -> int:
    """Merge the rows of each type, some thousands per transaction. Returns how many rows there were. Needs a
    connection in autocommit. Raises psycopg's errors; earlier transactions stay committed."""
    if not _readable(source):
        return 0
    row = source.execute(_ROWS).fetchone()
    rows, types = row or (0, 0)
    if rows > types:
        for _ in range(rows // _AT_ONCE + 1):  # rows that come meanwhile are for the next time
            if not go_on():
                break
            source.execute(_FOLD, [_AT_ONCE])
    return int(rows)


def _readable(source: Connection[Any]) -> bool:
    return source.execute(_READABLE).fetchone() == (True,)
