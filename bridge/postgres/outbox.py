"""The outbox table as a source of rows: its name and columns, and the reading of what a stream's floor does
not show (catch-up and polling). Apart from source.py, which asks about servers and slots, not events.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import psycopg
from psycopg import sql
from psycopg.pq.abc import PGresult

from bridge.core.event import Batch, Event
from bridge.core.requests import Missing, ReadMissing

_FETCH = 500
_BATCH_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Outbox:
    """The table that producers insert into. columns: Event field -> column name, for those it has."""

    schema: str = "outbox"
    table: str = "event"
    columns: Mapping[str, str] = field(default_factory=lambda: {name: name for name in Event._fields})

    @property
    def name(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.table)

    @property
    def is_foreign(self) -> bool:
        """One of the customer's own."""
        return (self.schema, self.table) != ("outbox", "event")

    @property
    def has_xid(self) -> bool:
        return "xid" in self.columns

    def column(self, field_name: str) -> sql.Composable:
        """The column of this field; what stands for it in an Event where the table has none."""
        if field_name in self.columns:
            return sql.Identifier(self.columns[field_name])
        return sql.SQL("'0'") if field_name in ("seq", "xid") else sql.SQL("null")

    def select_list(self) -> sql.Composed:
        """All fields of Event, as text."""
        return sql.SQL(", ").join(sql.SQL("{}::text").format(self.column(name)) for name in Event._fields)


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


class MissingReader:
    """Reads the rows of one goal by seq through a cursor: one sort, however many batches.

    The cursor's snapshot is younger than the goal, and nothing that the goal shows is still running, so
    it sees all of them.
    """

    def __init__(self, connection: psycopg.Connection, outbox: Outbox, max_events: int) -> None:
        self._connection = connection
        self._outbox = outbox
        self._max_events = max_events
        self._at: tuple[object, ...] | None = None  # what the open cursor would return next

    def read(self, request: ReadMissing) -> Missing:
        goal = (request.floor, request.upto, request.since)
        if self._at != (*goal, request.after_seq):
            self._open(request)
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
        return Missing(Batch(events=events, xids=xids, size=size), last, more)

    def _open(self, request: ReadMissing) -> None:
        self.close()
        self._connection.execute("begin isolation level repeatable read, read only")
        self._connection.execute("set local datestyle = 'ISO, YMD'; set local timezone = 'UTC'")
        self._connection.execute(
            sql.SQL(
                "declare missing no scroll cursor for select {columns} from {table} as e"
                " where ({xid} >= %(xmax)s::xid8 or {xid} = any(%(xip)s::xid8[]))"
                " and pg_visible_in_snapshot({xid}, %(upto)s::pg_snapshot)"
                " and {seq} > %(seq)s"
                " and (%(since)s::timestamptz is null or {occurred} >= %(since)s::timestamptz)"
                " order by e.{seq}"  # bare, it would be the text in the select list
            ).format(
                columns=self._outbox.select_list(),
                table=self._outbox.name,
                xid=self._outbox.column("xid"),
                seq=self._outbox.column("seq"),
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
            # Or one payload that is no UTF-8 could not be read: it is a dead letter, found in its turn.
            self._connection.execute("set local client_encoding = 'SQL_ASCII'")

    def close(self) -> None:
        self._at = None
        if not self._connection.closed:
            self._connection.execute("rollback")
