"""The outbox table: its name and columns, which of its rows can be placed, waking up, counting repeats.

A notification only wakes the reader sooner, the timer guarantees it:
behind a pooler in transaction mode LISTEN is accepted, and what arrives between two statements is lost. So the
listening connection proves first that it is a session, then notifies itself; when either fails, there is only the
timer. Each repeat of an idempotency key is a row of outbox.suppressed, written in the repeating transaction, so
that producers never wait for each other and a rollback counts nothing; those rows are added together here.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, LiteralString

import psycopg
from psycopg import Connection, sql
from psycopg.pq.abc import PGresult
from psycopg.rows import tuple_row

from bridge.errors import BridgeError
from bridge.postgres.connect import connect
from bridge.postgres.profiles import LISTEN
from bridge.protocol.events import Event, Snapshot, event_of

_NEXT: LiteralString = "(select pg_snapshot_xmax(pg_current_snapshot())::text::bigint)"
BORN: LiteralString = f"({_NEXT} - (({_NEXT} - xmin::text::bigint) & 4294967295))::text::xid8"
"""The whole id of the transaction that wrote this version of a row. Its lower half is a system column, which nobody can
write; the row was inserted by this transaction or by an earlier one. For a query that reads one table."""


_PLACE: LiteralString = (
    "mod(('x' || encode(substr(sha256(convert_to({}, 'UTF8')), 1, 4), 'hex'))::bit(32)::bigint, {}) + 1 = {}"
)

COUNTED: LiteralString = (
    "(a.attidentity <> '' or coalesce(pg_get_expr(d.adbin, d.adrelid), '') like 'nextval(%%')"
)
"""Whether a sequence fills a column: of `a`, a row of pg_attribute, with its default `d` of pg_attrdef."""


@dataclass(frozen=True, slots=True)
class Outbox:
    """The table that producers insert into. columns: Event field -> column name, for the fields it has. view: it is
    one, and so does not say which transaction wrote a row; known after on()."""

    schema: str = "outbox"
    table: str = "event"
    columns: Mapping[str, str] = field(default_factory=lambda: {name: name for name in Event._fields})
    view: bool = False

    def on(self, connection: Connection[Any]) -> Outbox:
        """The same, as this server has it."""
        if not self.is_foreign:
            return self
        with connection.cursor(row_factory=tuple_row) as cursor:
            query = "select relkind = 'v' from pg_catalog.pg_class where oid = to_regclass(%s)"
            [view] = cursor.execute(query, [self.name.as_string()]).fetchone() or [False]
        return replace(self, view=view)

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

    def placed(self) -> sql.Composable:
        """The xid by which a row is placed in a snapshot: its own. A row that has none, or one that the cluster gave
        out later than the row was written (it is another cluster's), has the xid that wrote it."""
        xid = self.column("xid")
        return xid if self.view else sql.SQL("least({}, {})").format(xid, sql.SQL(BORN))

    def is_stranger(self) -> sql.Composable:
        """Whether a row's xid cannot be its own."""
        limit = sql.SQL(f"< {_NEXT}::text::xid8" if self.view else f"<= {BORN}")
        return sql.SQL("({} {}) is not true").format(self.column("xid"), limit)

    def placed_list(self) -> sql.Composed:
        """As select_list(), with the xid by which the row is placed."""
        return sql.SQL(", ").join(
            self.placed() if name == "xid" else self.column(name) for name in Event._fields
        )

    def in_partition(self, partition: tuple[int, int] | None) -> sql.Composable:
        """Whether a row belongs to this partition of so many, as protocol/chain.py, partition_of. Of an outbox of the
        customer's own whoever reads the rows must say: a cast to text may print a column in another way."""
        if partition is None or self.is_foreign:
            return sql.SQL("true")
        said = sql.SQL("coalesce(key, id::text)")
        return sql.SQL(_PLACE).format(said, sql.Literal(partition[1]), sql.Literal(partition[0]))

    def belongs_to(self, partition: tuple[int, int] | None) -> sql.Composable:
        """The same for a query that nobody filters afterwards: of an outbox of the customer's own, its id and key as a
        slot prints them."""
        if partition is None or not self.is_foreign:
            return self.in_partition(partition)
        said = sql.SQL("concat({})").format(self.column("id"))
        if "key" in self.columns:
            key = self.column("key")
            said = sql.SQL("case when {0} is null then {1} else concat({0}) end").format(key, said)
        return sql.SQL(_PLACE).format(said, sql.Literal(partition[1]), sql.Literal(partition[0]))

    def beyond_floor(self) -> sql.Composed:
        """By the index on (xid, seq): the rows that may not be visible in a floor; see floor_values()."""
        return sql.SQL("({0} >= %(xmax)s::xid8 or {0} = any(%(xip)s::xid8[]) or {0} is null)").format(
            self.column("xid")
        )


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


_FOREIGN_LIMIT = 10_000
"""Rows counted at most."""


def foreign_rows(connection: psycopg.Connection[Any], outbox: Outbox, floor: Snapshot) -> str | None:
    """Rows whose xid cannot be their own (none, or one greater than the id of the transaction that wrote them), and of
    which `floor` does not surely say that they are applied. In words; None where there is none, or no xid column.

    What wrote a row may be a savepoint, whose id a snapshot never lists: only before the floor's xmin nothing ran."""
    if not outbox.has_xid:
        return None
    outbox = outbox.on(connection)
    return _told(
        connection,
        sql.SQL("{beyond_floor} and {stranger} and ({placed} < %(xmin)s::xid8) is not true").format(
            beyond_floor=outbox.beyond_floor(), stranger=outbox.is_stranger(), placed=outbox.placed()
        ),
        outbox,
        floor,
    )


def unplaceable_rows(connection: psycopg.Connection[Any], outbox: Outbox, upto: Snapshot) -> str | None:
    """For the first start: rows whose xid cannot be their own, written while other transactions ran, so that it cannot
    be known whether `upto` shows them. Those before are in it."""
    return _told(
        connection,
        sql.SQL(
            "{stranger} and {placed} >= %(xmin)s::xid8 and pg_visible_in_snapshot({placed}, %(floor)s::pg_snapshot)"
        ).format(stranger=outbox.is_stranger(), placed=outbox.placed()),
        outbox,
        upto,
    )


def _told(
    connection: psycopg.Connection[Any], where: sql.Composable, outbox: Outbox, snapshot: Snapshot
) -> str | None:
    row = connection.execute(
        sql.SQL(
            "select count(*) filter (where xid is null), count(*) filter (where xid is not null)"
            " from (select {xid} as xid from {table} where {where} limit %(limit)s) as found"
        ).format(xid=outbox.column("xid"), table=outbox.name, where=where),
        {**floor_values(snapshot), "limit": _FOREIGN_LIMIT},
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
        "xmin": str(floor.xmin),
        "xmax": str(floor.xmax),
        "xip": "{" + ",".join(map(str, floor.xip)) + "}",
    }


CHANNEL = "outbox_bridge"
_PROBE_SECONDS = 2.0
_LISTEN_SECONDS = 5.0
"""Between two attempts to listen: the timer reads meanwhile."""


class Listener:
    """`descriptor` is readable after a notification; None: notifications do not arrive. A connection that is lost, or
    refused, is made again: a password may be rotated, or a session ended."""

    def __init__(self, dsn: str, stream: str) -> None:
        self._dsn, self._stream = dsn, stream
        self._connection: psycopg.Connection | None = None
        self.descriptor: int | None = None
        self._again: float | None = 0.0  # when to connect; None: a pooler swallows notifications

    def listen(self) -> bool:
        """If it is time to: True, when notifications arrive from now on; what came before has to be looked for."""
        if self.descriptor is not None or self._again is None or time.monotonic() < self._again:
            return False
        self._again = time.monotonic() + _LISTEN_SECONDS
        try:
            connection = connect(self._dsn, LISTEN, self._stream)
        except (psycopg.Error, BridgeError):
            return False
        try:
            proved = self._proves(connection)
        except psycopg.Error:
            connection.close()
            return False
        if not proved:
            self._again = None
            connection.close()
            return False
        self._connection = connection
        self.descriptor = connection.fileno()
        return True

    def _proves(self, connection: psycopg.Connection) -> bool:
        token = str(uuid.uuid4())
        connection.execute(f"listen {CHANNEL}")
        connection.execute("select pg_notify(%s, %s)", [CHANNEL, token])
        return any(
            notification.payload == token
            for notification in connection.notifies(timeout=_PROBE_SECONDS, stop_after=1)
        )

    def drain(self) -> None:
        """Discard notifications. If the connection is broken, the timer remains until it is made again."""
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
