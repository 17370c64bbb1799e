"""Which events are applied by now, asked of SQL, in an order that makes a running bridge no false alarm.

1. On the target, one REPEATABLE READ snapshot: the ledger row, `bridge.applied`, dead letters and every table
   are read in it. The bridge changes them in one transaction, so they agree with each other.
2. Afterwards, on the source, a REPEATABLE READ snapshot that sees every transaction which the ledger lists (the
   stream can run ahead of visibility: until it does, the snapshot is taken again). It is younger, so no applied
   event is missing in it; what it has beyond the ledger is not compared. What prune deleted between the two is
   told by outbox.pruned, read in the same snapshot.

Applied is what docs/guarantees.md calls I6: the floor shows the xid, or `applied` lists the row, or a goal that is
being read shows it and its seq was reached. Nothing of this is shared with the code that applies.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from bridge.errors import BridgeError, CannotConnect
from bridge.postgres import wire
from bridge.postgres.outbox import Outbox

Connection = psycopg.Connection[tuple[Any, ...]]

_SETTINGS = (
    "-c search_path= -c statement_timeout=0 -c lock_timeout=10s -c client_encoding=UTF8 -c datestyle=ISO,YMD"
    " -c timezone=UTC -c extra_float_digits=1 -c intervalstyle=iso_8601 -c bytea_output=hex -c jit=off"
    " -c row_security=off"
)
_VISIBLE_SECONDS = 60.0

_LEDGER: LiteralString = """
    select floor::text, coalesce(next::text, '3:3:'), next_seq, since, started_at, system_identifier,
           (select coalesce(array_agg(distinct x)::text, '{}') from bridge.applied a, unnest(a.xids) as x
            where a.stream = c.stream),
           (select coalesce(range_agg(r)::text, '{}') from bridge.applied a, unnest(a.seqs) as r
            where a.stream = c.stream)
    from bridge.checkpoint c where stream = %s"""


@dataclass(frozen=True, slots=True)
class Applied:
    """The ledger's word, as texts that Postgres reads."""

    floor: str = "3:3:"
    goal: str = "3:3:"
    goal_seq: int = 0
    listed: str = "{}"  # xid8[]
    listed_seqs: str = "{}"  # int8multirange: of those transactions, the rows that were applied
    since: datetime | None = (
        None  # a stream that has not finished its first catch-up: older rows are not its own
    )
    started_at: datetime | None = None
    system_identifier: str | None = None

    def predicate(self, outbox: Outbox) -> sql.Composed:
        """Over a row of the outbox."""
        xid, seq = outbox.column("xid"), outbox.column("seq")
        applied = sql.SQL(
            "(pg_visible_in_snapshot({xid}, {floor}::pg_snapshot) "
            " or ({xid} = any({listed}::xid8[]) and {seq}::bigint <@ {seqs}::int8multirange)"
            " or (pg_visible_in_snapshot({xid}, {goal}::pg_snapshot) and {seq} <= {goal_seq}))"
        ).format(
            xid=xid,
            seq=seq,
            floor=sql.Literal(self.floor),
            listed=sql.Literal(self.listed),
            seqs=sql.Literal(self.listed_seqs),
            goal=sql.Literal(self.goal),
            goal_seq=sql.Literal(self.goal_seq),
        )
        if self.since is None:
            return applied
        own = sql.SQL(" and {} >= {}::timestamptz").format(
            outbox.column("occurred_at"), sql.Literal(self.since.isoformat())
        )
        return applied + own


def connect(dsn: str, stream: str) -> Connection:
    """A connection for long reads. Raises CannotConnect."""
    try:
        conninfo = wire.complete(dsn, application_name=f"bridge-prove/{stream}", options=_SETTINGS)
        return psycopg.connect(conninfo, autocommit=True, prepare_threshold=None)
    except psycopg.OperationalError as error:
        said = str(error).rstrip()
        raise CannotConnect(f"cannot connect: {said}", hint=wire.advice(said)) from None


def begin(connection: Connection) -> None:
    connection.execute("begin isolation level repeatable read, read only")


def read_applied(target: Connection, stream: str) -> Applied:
    """`target` is in its snapshot already. No ledger row: nothing is applied."""
    row = target.execute(_LEDGER, [stream]).fetchone()
    if row is None:
        return Applied()
    floor, goal, goal_seq, since, started_at, system, listed, seqs = row
    return Applied(floor, goal, goal_seq, listed, seqs, since, started_at, system)


def begin_source(source: Connection, applied: Applied) -> None:
    """Begin a snapshot that sees all that the ledger lists. Raises BridgeError when that does not come."""
    end = time.monotonic() + _VISIBLE_SECONDS
    while True:
        begin(source)
        row = source.execute(
            "select (select system_identifier::text from pg_control_system()),"
            " (select coalesce(bool_and(pg_visible_in_snapshot(x, pg_current_snapshot())), true)"
            "  from unnest(%s::xid8[]) as x)",
            [applied.listed],
        ).fetchone()
        system, visible = row or (None, False)
        if applied.system_identifier not in (None, system):
            raise BridgeError(
                f"the ledger belongs to another source: system identifier {applied.system_identifier}, "
                f"this one is {system}",
                reason="other_system",
                hint="point source.dsn back, or see bridge recover --help",
            )
        if visible:
            return
        source.execute("rollback")
        if time.monotonic() > end:
            raise BridgeError(
                "the target lists transactions as applied that the source does not show: it was restored from a copy",
                reason="history_diverged",
                hint="bridge recover --help",
            )
        time.sleep(0.05)


@dataclass(frozen=True, slots=True)
class Pruning:
    """What pruning has done: `at` None, nothing was ever deleted."""

    at: datetime | None = None


def read_pruning(source: Connection) -> Pruning:
    row = source.execute("select pruned_at from outbox.pruned where xid is not null").fetchone()
    return Pruning(row[0] if row else None)
