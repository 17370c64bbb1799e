"""The outbox table: its name and columns, reading what a floor does not show, waking up, counting repeats.

Catch-up and polling read rows from here. A notification only wakes the reader sooner, the timer guarantees it:
behind a pooler in transaction mode LISTEN is accepted, and what arrives between two statements is lost. So the
listening connection proves first that it is a session, then notifies itself; when either fails, there is only the
timer. Each repeat of an idempotency key is a row of outbox.suppressed, written in the repeating transaction, so
that producers never wait for each other and a rollback counts nothing; those rows are added together here.
"""

from __future__ import annotations

import uuid
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
from bridge.protocol.events import NOTHING, Batch, Event, Snapshot
from bridge.protocol.requests import MissingRows, ReadMissing

_FETCH = 500
_BATCH_BYTES = 16 << 20


_NEXT: LiteralString = "(select pg_snapshot_xmax(pg_current_snapshot())::text::bigint)"
BORN: LiteralString = f"({_NEXT} - (({_NEXT} - xmin::text::bigint) & 4294967295))::text::xid8"
"""The whole id of the transaction that wrote this version of a row. Its lower half is a system column, which nobody can
write; the row was inserted by this transaction or by an earlier one. For a query that reads one table."""


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

    def select_list(self) -> sql.Composed:
        """All fields of Event, as text."""
        return sql.SQL(", ").join(sql.SQL("{}::text").format(self.column(name)) for name in Event._fields)

    def placed(self) -> sql.Composable:
        """The xid by which a row is placed in a snapshot: its own. A row that has none, or one that the cluster gave
        out later than the row was written (it is another cluster's), has the xid that wrote it."""
        return sql.SQL("least({}, {})").format(self.column("xid"), sql.SQL(BORN))

    def is_stranger(self) -> sql.Composable:
        """Whether a row's xid cannot be its own."""
        return sql.SQL("({} <= {}) is not true").format(self.column("xid"), sql.SQL(BORN))

    def placed_list(self) -> sql.Composed:
        """As select_list(), with the xid by which the row is placed."""
        return sql.SQL(", ").join(
            sql.SQL("{}::text").format(self.placed() if name == "xid" else self.column(name))
            for name in Event._fields
        )

    def beyond_floor(self) -> sql.Composed:
        """By the index on (xid, seq): the rows that may not be visible in a floor; see floor_values()."""
        return sql.SQL("({0} >= %(xmax)s::xid8 or {0} = any(%(xip)s::xid8[]) or {0} is null)").format(
            self.column("xid")
        )


def decoded(events: list[Event]) -> list[Event]:
    """Payloads of a bytea column are printed as hex; no JSON text begins with a backslash."""
    if not any(event.payload.startswith(b"\\x") for event in events):
        return events
    return [
        event._replace(payload=bytes.fromhex(event.payload[2:].decode()))
        if event.payload.startswith(b"\\x")
        else event
        for event in events
    ]


def _events(result: PGresult) -> list[Event]:
    width = range(len(Event._fields))
    get = result.get_value
    return [Event._make(get(row, n) for n in width) for row in range(result.ntuples)]


_FOREIGN_LIMIT = 10_000
"""Rows counted at most."""


def foreign_rows(connection: psycopg.Connection[Any], outbox: Outbox, floor: Snapshot) -> str | None:
    """Rows that are not shown by `floor`, and whose xid cannot be their own: none, or one greater than the id of the
    transaction that wrote them. In words; None where there is none, or no xid column. The floor covers what was in the
    table when it was taken, whatever its xid says."""
    if not outbox.has_xid:
        return None
    row = connection.execute(
        sql.SQL(
            "select count(*) filter (where xid is null), count(*) filter (where xid is not null)"
            " from (select {xid} as xid from {table} where {beyond_floor} and {stranger}"
            " and not pg_visible_in_snapshot({placed}, %(floor)s::pg_snapshot) limit %(limit)s) as found"
        ).format(
            xid=outbox.column("xid"),
            table=outbox.name,
            beyond_floor=outbox.beyond_floor(),
            stranger=outbox.is_stranger(),
            placed=outbox.placed(),
        ),
        {**floor_values(floor), "limit": _FOREIGN_LIMIT},
    ).fetchone()
    lacking, ahead = row or (0, 0)
    more = " or more" if lacking + ahead == _FOREIGN_LIMIT else ""
    said = [
        f"{count}{more} rows of the outbox {what}"
        for count, what in (
            (lacking, "have no xid"),
            (ahead, "have an xid that this cluster gave out later than it wrote them, or not yet"),
        )
        if count
    ]
    return " and ".join(said) or None


def floor_values(floor: Snapshot) -> dict[str, str]:
    """The parameters of Outbox.beyond_floor(), and the floor itself."""
    return {
        "floor": str(floor),
        "xmax": str(floor.xmax),
        "xip": "{" + ",".join(map(str, floor.xip)) + "}",
    }


class MissingReader:
    """Reads the rows of one goal by seq through a cursor: one sort for all batches.

    The cursor's snapshot is newer than the goal, and no transaction visible in the goal is still running, so the
    cursor sees all rows. A stream that has applied nothing yet (NOTHING) takes every row, also those whose xid cannot
    be their own: after a restore, or from before the column was added. Later such rows are `foreign`.
    """

    def __init__(self, connection: ProfiledConnection, outbox: Outbox, max_events: int) -> None:
        self._connection = connection
        self._outbox = outbox
        self._max_events = max_events
        self._at: tuple[object, ...] | None = None  # what the open cursor would return next
        self._foreign: str | None = None

    def read(self, request: ReadMissing) -> MissingRows:
        goal = (request.floor, request.upto, request.since)
        if self._at != (*goal, request.after_seq):
            self._open(request)
            if self._foreign is not None:
                self.close()
                return MissingRows(Batch(), request.after_seq, more=True, foreign=self._foreign)
        events: list[Event] = []
        size = 0
        more = True
        while more and len(events) < self._max_events and size < _BATCH_BYTES:
            count = min(_FETCH, self._max_events - len(events))
            cursor = self._connection.execute(f"fetch forward {count} from missing", binary=False)
            rows = _events(cursor.pgresult) if cursor.pgresult else []
            events += rows
            size += sum(len(row.payload) for row in rows)
            more = len(rows) == count
        last = int(events[-1].seq) if events else request.after_seq
        if more:
            self._at = (*goal, last)
        else:
            self.close()
        xids = list(dict.fromkeys(int(event.xid) for event in events))
        return MissingRows(Batch(events=events, xids=xids, size=size), last, more)

    def _open(self, request: ReadMissing) -> None:
        self.close()
        self._connection.begin("isolation level repeatable read, read only")
        first = request.floor == NOTHING
        self._foreign = None if first else foreign_rows(self._connection, self._outbox, request.floor)
        self._connection.execute(
            sql.SQL(
                "declare missing no scroll cursor for select {columns} from {table} as e"
                " where {beyond_floor} and not pg_visible_in_snapshot({placed}, %(floor)s::pg_snapshot)"
                " and (pg_visible_in_snapshot({xid}, %(upto)s::pg_snapshot) or (%(first)s and {stranger}))"
                " and {seq} > %(seq)s"
                " and (%(since)s::timestamptz is null or {occurred} >= %(since)s::timestamptz)"
                " order by e.{seq}"  # bare, it would be the text in the select list
            ).format(
                columns=self._outbox.placed_list(),
                table=self._outbox.name,
                beyond_floor=self._outbox.beyond_floor(),
                placed=self._outbox.placed(),
                stranger=self._outbox.is_stranger(),
                xid=self._outbox.column("xid"),
                seq=self._outbox.column("seq"),
                occurred=self._outbox.column("occurred_at"),
            ),
            {
                **floor_values(request.floor),
                "upto": str(request.upto),
                "first": first,
                "seq": request.after_seq,
                "since": request.since,
            },
        )
        if self._connection.info.parameter_status("server_encoding") == "SQL_ASCII":
            # Otherwise one payload that is not UTF-8 would make the read fail; this way it becomes a dead letter.
            self._connection.execute("set local client_encoding = 'SQL_ASCII'")

    def close(self) -> None:
        self._at = None
        if not self._connection.closed:
            self._connection.rollback()


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
