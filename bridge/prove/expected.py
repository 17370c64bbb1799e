"""Which events are applied by now, and what should be there for them.

1. On the target, one REPEATABLE READ snapshot: the ledger row, `bridge.applied`, dead letters and every table
   are read in it. The bridge changes them in one transaction, so they agree with each other.
2. Afterwards, on the source, a REPEATABLE READ snapshot that sees every transaction which the ledger lists (the
   stream can run ahead of visibility: until it does, the snapshot is taken again). It is younger, so no applied
   event is missing in it; what it has beyond the ledger is not compared. What prune deleted between the two is
   told by outbox.pruned, read in the same snapshot.

Applied is what docs/guarantees.md calls I6: the floor shows the xid, or `applied` lists the row, or a goal that is
being read shows it and its seq was reached. Nothing of this is shared with the code that applies. The events go
through the planner without lookups, a batch at a time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import LiteralString

import psycopg
from psycopg import sql

from bridge.errors import BridgeError
from bridge.planning.planner import Planner, answered
from bridge.planning.spec import ContractSpec, Unit
from bridge.postgres.outbox import Outbox, events_of
from bridge.postgres.parts import Position, covered, partition_in
from bridge.protocol.events import NULL, Event
from bridge.prove.digest import Link, Window, bucket
from bridge.prove.subject import EMPTIED, Subject

_VISIBLE_SECONDS = 60.0

_LEDGER: LiteralString = """
    select stream, floor::text, coalesce(next::text, '3:3:'), next_seq, since, started_at,
           (select coalesce(array_agg(distinct x)::text, '{}') from bridge.applied a, unnest(a.xids) as x
            where a.stream = c.stream),
           (select coalesce(range_agg(r)::text, '{}') from bridge.applied a, unnest(a.seqs) as r
            where a.stream = c.stream)
    from bridge.checkpoint c where stream = any(%s) order by stream"""


@dataclass(frozen=True, slots=True)
class AppliedPosition:
    """The ledger's position: of each partition, where there are some. since: of a stream that has not finished its
    first catch-up: older rows are not its own."""

    parts: Sequence[Position] = ()
    since: datetime | None = None
    started_at: datetime | None = None

    @property
    def listed(self) -> str:
        """All xids that are listed, as xid8[]."""
        xids = [one.xids.strip("{}") for one in self.parts]
        return "{" + ",".join(filter(None, xids)) + "}"

    def position(self, outbox: Outbox) -> sql.Composed:
        """Over a row of the outbox: does the ledger cover it?"""
        return covered(self.parts, outbox)

    def predicate(self, outbox: Outbox) -> sql.Composed:
        """The same, without rows from before the stream's start: those are covered, but not applied."""
        applied = self.position(outbox)
        if self.since is None:
            return applied
        own = sql.SQL(" and {} >= {}::timestamptz").format(
            outbox.column("occurred_at"), sql.Literal(self.since.isoformat())
        )
        return applied + own


def begin(connection: Link) -> None:
    connection.begin("isolation level repeatable read, read only")


def read_applied(target: Link, rows: Sequence[str]) -> AppliedPosition:
    """`target` is in its snapshot already. rows: what a stream's rows are called. No ledger row: nothing is applied."""
    parts, sinces, starts = [], [], []
    for stream, floor, goal, goal_seq, since, started_at, xids, seqs in target.execute(
        _LEDGER, [list(rows)]
    ).fetchall():
        parts.append(Position(floor, goal, goal_seq, xids, seqs, partition_in(stream)))
        sinces.append(since)
        starts.append(started_at)
    since = max((since for since in sinces if since is not None), default=None)
    return AppliedPosition(parts, since, min((at for at in starts if at is not None), default=None))


def begin_source(source: Link, applied: AppliedPosition) -> None:
    """Begin a snapshot in which everything that the ledger lists is visible. Raises BridgeError if that does not
    happen in time."""
    end = time.monotonic() + _VISIBLE_SECONDS
    while True:
        begin(source)
        row = source.execute(
            "select (select coalesce(bool_and(pg_visible_in_snapshot(x, pg_current_snapshot())), true)"
            "  from unnest(%s::xid8[]) as x)",
            [applied.listed],
        ).fetchone()
        if row == (True,):
            return
        source.rollback()
        if time.monotonic() > end:
            raise BridgeError(
                "the target lists transactions as applied that are not visible at the source: "
                "the source was restored from a copy",
                reason="history_diverged",
                hint="bridge recover --help",
            )
        time.sleep(0.05)


@dataclass(frozen=True, slots=True)
class Pruning:
    """The state of pruning; `at` None: nothing was ever deleted."""

    at: datetime | None = None


def read_pruning(source: Link) -> Pruning:
    row = source.execute("select pruned_at from outbox.pruned where xid is not null").fetchone()
    return Pruning(row[0] if row else None)


_BATCH = 5000
DELIVERIES_KEPT = 7 * 86400 - 3600
"""Seconds that a settled delivery certainly exists: the dispatcher keeps it for seven days."""


@dataclass(slots=True)
class Wanted:
    """Rows that a batch makes here: parallel lists of ids, seqs and column texts; `dead`: units that the planner
    refuses."""

    ids: list[bytes] = field(default_factory=list)
    units: list[Unit] = field(default_factory=list)
    seqs: list[int] = field(default_factory=list)
    columns: list[list[bytes | None]] = field(default_factory=list)
    dead: list[tuple[bytes, Unit]] = field(default_factory=list)

    def without(self, places: set[int]) -> Wanted:
        """The same without the rows at these indexes."""
        kept = [n for n in range(len(self.ids)) if n not in places]
        return self.pick(kept)

    def pick(self, kept: Sequence[int]) -> Wanted:
        return Wanted(
            [self.ids[n] for n in kept],
            [self.units[n] for n in kept],
            [self.seqs[n] for n in kept],
            [[column[n] for n in kept] for column in self.columns],
            self.dead,
        )


class ExpectedEffects:
    """The applied events of one subject's window, planned."""

    def __init__(
        self,
        subject: Subject,
        contracts: Mapping[str, ContractSpec],
        outbox: Outbox,
        *,
        applied: AppliedPosition,
        window: Window,
        max_payload: int,
    ) -> None:
        self._subject = subject
        self._names = [column.name for column in subject.columns]
        if subject.by == "key":
            self._names += [column.name for column in subject.key]
            if subject.version:
                self._names.append(subject.version)
        self._outbox = outbox
        self._applied = applied
        self._window = window
        self._planner = Planner(
            subject.pipelines,
            contracts,
            dict(subject.shapes or {}),
            sinks=subject.units if subject.sink else (),
            only=subject.units,
            max_payload=max_payload,
            nulls=outbox.is_foreign,
        )

    def events(self, source: Link, buckets: Sequence[str] | None = None) -> Iterator[list[Event]]:
        """Applied events of the period; of chosen buckets by id, otherwise in any order."""
        identity = sql.SQL("{}::text").format(self._outbox.column("id"))
        where = [self._applied.predicate(self._outbox), self._window.predicate(identity), self._types()]
        if self._subject.sink:
            where.append(
                sql.SQL("{} >= now() - {} * interval '1 second'").format(
                    self._outbox.column("occurred_at"), sql.Literal(DELIVERIES_KEPT)
                )
            )
        order: sql.Composable = sql.SQL("")
        if buckets is not None:
            where.append(sql.SQL("{} = any({})").format(bucket(identity), sql.Literal(list(buckets))))
            order = sql.SQL(' order by {} collate "C"').format(identity)
        query = sql.SQL("declare outbox_events no scroll cursor for select {} from {} where {}").format(
            self._outbox.placed_list(), self._outbox.name, sql.SQL(" and ").join(where)
        )
        source.execute(query + order)
        try:
            while events := _fetch(source, self._outbox):
                # What has no type or no id is no event of this subject: run.py counts the rows that nothing can place.
                yield [e for e in events if e.headers != EMPTIED and NULL not in (e.id, e.type)]
        finally:
            if source.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS:
                source.execute("close outbox_events")

    def _types(self) -> sql.Composed:
        """If the patterns are exact names, read only those events."""
        patterns = [pattern for spec in self._subject.pipelines for pattern in spec.events]
        if any(character in pattern for pattern in patterns for character in "*?["):
            return sql.SQL("true") + sql.SQL("")
        return sql.SQL("{} = any({})").format(self._outbox.column("type"), sql.Literal(patterns))

    def wanted(self, events: Sequence[Event]) -> Wanted:
        """The rows that these events should have made here, in their order."""
        planned = answered(self._planner.plan(events), lambda _lookup: {})
        found = Wanted()
        if self._subject.sink:
            for delivery in planned.deliveries:
                found.ids.append(delivery.event.id)
                found.units.append((delivery.pipeline, delivery.destination))
                found.seqs.append(int(delivery.event.seq))
        rows: list[tuple[int, int, int]] = []
        for number, write in enumerate(planned.writes):
            rows += [(place, number, row) for row, place in enumerate(write.places)]
        rows.sort()
        at = [{name: n for n, name in enumerate(write.names)} for write in planned.writes]
        for _, number, row in rows:
            write = planned.writes[number]
            found.ids.append(write.events[row].id)
            found.units.append(write.unit)
            found.seqs.append(int(write.events[row].seq))
        for name in self._names:
            column: list[bytes | None] = []
            for _, number, row in rows:
                n = at[number].get(name)
                column.append(None if n is None else planned.writes[number].columns[n][row])
            found.columns.append(column)
        found.dead = [
            (letter.event.id, (letter.pipeline, letter.destination)) for letter in planned.dead_letters
        ]
        return found


def _fetch(source: Link, outbox: Outbox) -> list[Event]:
    return events_of(source.execute(f"fetch forward {_BATCH} from outbox_events".encode()).pgresult, outbox)
