"""The events that a replay brings again: those of the outbox that the ledger shows applied, by seq.

Apart from replay.py, which writes them: here only the source is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from psycopg import sql

from bridge.apply.replay_order import Order
from bridge.apply.stream_plan import StreamPlan
from bridge.core.event import Event
from bridge.errors import Retry
from bridge.postgres import wire
from bridge.postgres.source import connect_source

_BATCH = 1000


class Applied(NamedTuple):
    """What the ledger says, as Postgres writes it: a snapshot, the xids listed beyond it (`xid8[]`) and the seqs
    of their rows (`int8multirange`)."""

    floor: str
    xids: str
    seqs: str


class History:
    """The outbox over a connection of its own, in one read-only transaction. Close it."""

    def __init__(self, plan: StreamPlan, order: Order) -> None:
        self._outbox = plan.outbox
        self._order = order
        self._source = connect_source(plan.source_dsn, f"replay/{plan.stream}", timeout="0")

    def close(self) -> None:
        self._source.close()

    def pruned(self) -> bool:
        """Whether prune has deleted events of this outbox."""
        query = "select pruned_at from outbox.pruned where xid is not null"
        return self._source.execute(query).fetchone() is not None

    def events(self, applied: Applied) -> Iterator[list[Event]]:
        """Applied events of the time asked for, by seq."""
        outbox, order = self._outbox, self._order
        query = sql.SQL(
            "declare history no scroll cursor for select {columns} from {table} as e"
            " where (pg_visible_in_snapshot({xid}, %(floor)s::pg_snapshot)"
            " or ({xid} = any(%(xids)s::xid8[]) and {seq}::bigint <@ %(seqs)s::int8multirange))"
            " and {at} >= %(since)s and (%(until)s::timestamptz is null or {at} < %(until)s) order by e.{seq}"
        ).format(
            columns=outbox.select_list(),
            table=outbox.name,
            xid=outbox.column("xid"),
            at=outbox.column("occurred_at"),
            seq=outbox.column("seq"),
        )
        self._see(applied.xids)
        self._source.execute(query, {**applied._asdict(), "since": order.since, "until": order.until})
        width = range(len(Event._fields))
        while True:
            result = self._source.execute(f"fetch forward {_BATCH} from history".encode()).pgresult
            if result is None or not result.ntuples:
                return
            get = result.get_value
            yield [Event._make(get(row, n) for n in width) for row in range(result.ntuples)]

    def _see(self, listed: str) -> None:
        """Begin a snapshot that sees what the ledger lists: the stream can run ahead of visibility."""
        for attempt in range(10):
            self._source.execute("begin isolation level repeatable read, read only")
            row = self._source.execute(
                "select coalesce(bool_and(pg_visible_in_snapshot(x, pg_current_snapshot())), true)"
                " from unnest(%s::xid8[]) as x",
                [listed],
            ).fetchone()
            if row and row[0]:
                return
            self._source.execute("rollback")
            wire.wait([], [], 0.01 * 2**attempt)
        raise Retry("the source does not show yet what the ledger lists", reason="not_visible")
