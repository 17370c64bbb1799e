"""Every row of the outbox, counted without the protocol's filters, and whether each is accounted for.

The comparisons ask of the events that the ledger calls applied. What the ledger cannot see would be nobody's, and no
difference: so this counts the whole table, and the server's own positions say whether a row may still wait. A row is

- applied, as the ledger says: the comparisons look for its effect,
- older than the stream's start (source.start),
- waiting: not applied yet,
- passed over: not applied, and the slot's confirmed position is behind everything that the table had. Postgres never
  sends it again, so that only a catch-up would find it,
- unplaced: not applied, and its xid is not one that its own transaction had.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import LiteralString

from psycopg import sql

from bridge.planning.spec import PipelineSpec
from bridge.postgres.outbox import Outbox
from bridge.prove.digest import Link
from bridge.prove.expected import AppliedPosition, read_applied
from bridge.stream.spec import StreamSpec

NAMED = 100
"""The number of events that are named for each kind; counts are exact."""
_SETTLE_SECONDS = 15.0
"""An idle bridge confirms its position every ten seconds."""
_IN_FLIGHT_SECONDS = 0.5
_KINDS = 1000

_SLOT: LiteralString = """
    select bool_and(s.active),
        bool_and(case when r.slot is null then r.confirmed else s.confirmed_flush_lsn end >= %s::pg_lsn)
    from outbox.stream r join pg_catalog.pg_replication_slots s
        on s.slot_name = coalesce(r.slot, r.relay || '_' || r.incarnation) and s.database = current_database()
    where r.stream = any(%s) and s.confirmed_flush_lsn is not null having count(*) = %s"""
"""Of a stream over a log, the slot is the relay's, and each partition says itself how far it is."""

_NAMELESS_LETTERS: LiteralString = """
    select count(*) from bridge.dead_letter where stream = %s and code = 'incomplete' and event_type = ''"""


@dataclass(slots=True)
class Named:
    """Events of one kind: how many, and the first of them."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, what: str) -> None:
        self.count += 1
        if len(self.first) < NAMED:
            self.first.append(what)


@dataclass(slots=True)
class Census:
    """The rows of one stream's outbox: rows = applied + before + waiting + passed_over + unplaced. typeless: rows
    whose type is NULL, each a dead letter; `unreported` of them are not. in_no_pipeline: type -> rows that no pipeline
    takes."""

    stream: str
    rows: int = 0
    applied: int = 0
    before: int = 0
    waiting: int = 0
    oldest_waiting: str = ""
    passed_over: Named = field(default_factory=Named)
    unplaced: Named = field(default_factory=Named)
    typeless: int = 0
    unreported: int = 0
    in_no_pipeline: dict[str, int] = field(default_factory=dict)

    @property
    def differences(self) -> int:
        return self.passed_over.count + self.unplaced.count + self.unreported

    def lines(self) -> Iterator[str]:
        counts = {
            "applied": self.applied,
            "from before its start": self.before,
            "waiting": self.waiting,
            "passed over": self.passed_over.count,
            "unplaced": self.unplaced.count,
        }
        said = ", ".join(f"{count} {what}" for what, count in counts.items() if count or what == "applied")
        yield f"outbox of {self.stream}: {self.rows} rows: {said}"
        if self.oldest_waiting:
            yield f"  the oldest that waits is from {self.oldest_waiting}"
        for what, named in (("passed over", self.passed_over), ("unplaced", self.unplaced)):
            yield from (f"    {what}: {one}" for one in named.first)
            if named.count > len(named.first):
                yield f"    {what}: and {named.count - len(named.first)} more"
        if self.typeless:
            yield f"  {self.typeless} rows have no type; {self.unreported} of them are no dead letter"
        if self.in_no_pipeline:
            kinds = ", ".join(f"{kind} ({count})" for kind, count in sorted(self.in_no_pipeline.items()))
            yield f"  in no pipeline: {kinds}"


def take(source: Link, other: Link, plan: StreamSpec, applied: AppliedPosition) -> Census:
    """source: in its snapshot. other: a session at the target that is in none, to read the ledger again."""
    stream, rows, outbox = plan.stream, plan.rows, plan.outbox
    census = Census(stream)
    [end] = source.execute("select pg_current_wal_insert_lsn()::text").fetchone() or ("0/0",)
    _count(source, census, outbox, applied)
    if census.waiting:  # what was in flight
        time.sleep(_IN_FLIGHT_SECONDS)
        _count(source, census, outbox, read_applied(other, rows))
    if census.waiting and (again := _passed(source, other, rows, str(end))) is not None:
        _count(source, census, outbox, again)
        waits = sql.SQL("{} and not {}").format(_waits(outbox, again), outbox.is_stranger())
        census.passed_over = _named(source, outbox, waits, census.waiting)
        census.waiting, census.oldest_waiting = 0, ""
    census.in_no_pipeline = _in_no_pipeline(source, outbox, plan.pipelines)
    if census.typeless:
        [letters] = other.execute(_NAMELESS_LETTERS, [stream]).fetchone() or (0,)
        census.unreported = max(0, _applied_typeless(source, outbox, applied) - int(letters))
    return census


def _count(source: Link, census: Census, outbox: Outbox, applied: AppliedPosition) -> None:
    at = outbox.column("occurred_at") if "occurred_at" in outbox.columns else sql.SQL("null::timestamptz")
    query = sql.SQL(
        "select count(*), count(*) filter (where covered and (at >= {since} or {since} is null)),"
        " count(*) filter (where covered and at < {since}), count(*) filter (where not covered and not strays),"
        " count(*) filter (where not covered and strays), count(*) filter (where type is null),"
        " (min(at) filter (where not covered))::text from ("
        "select {position} as covered, {strays} as strays, {type} as type, {at} as at from {table} offset 0) as r"
    ).format(
        since=sql.SQL("{}::timestamptz").format(sql.Literal(applied.since)),
        position=_sure(applied.position(outbox)),
        strays=outbox.is_stranger(),
        type=outbox.column("type"),
        at=at,
        table=outbox.name,
    )
    row = source.execute(query).fetchone() or (0, 0, 0, 0, 0, 0, None)
    census.rows, census.applied, census.before, census.waiting, unplaced, census.typeless, oldest = row
    census.oldest_waiting = oldest or ""
    strays = sql.SQL("{} and {}").format(_waits(outbox, applied), outbox.is_stranger())
    census.unplaced = _named(source, outbox, strays, unplaced)


def _sure(condition: sql.Composable) -> sql.Composed:
    """NULL is false."""
    return sql.SQL("(({}) is true)").format(condition)


def _waits(outbox: Outbox, applied: AppliedPosition) -> sql.Composed:
    return sql.SQL("(({}) is not true)").format(applied.position(outbox))


def _named(source: Link, outbox: Outbox, where: sql.Composable, count: int) -> Named:
    found = Named(count)
    if count:
        query = sql.SQL("select coalesce({}::text, 'a row without id') from {} where {} limit {}").format(
            outbox.column("id"), outbox.name, where, sql.Literal(NAMED)
        )
        found.first = [name for (name,) in source.execute(query)]
    return found


def _passed(source: Link, other: Link, rows: Sequence[str], end: str) -> AppliedPosition | None:
    """The ledger once the slot is behind everything that the source's snapshot shows; None: it is not, or there is no
    slot that must bring it."""
    until = time.monotonic() + _SETTLE_SECONDS
    while True:
        modes = other.execute(
            "select mode from bridge.checkpoint where stream = any(%s)", [list(rows)]
        ).fetchall()
        if modes != [("stream",)] * len(rows):
            return None
        active, passed = source.execute(_SLOT, [end, list(rows), len(rows)]).fetchone() or (False, False)
        if passed:
            return read_applied(other, rows)
        if not active or time.monotonic() > until:
            return None
        time.sleep(0.2)


def _in_no_pipeline(source: Link, outbox: Outbox, pipelines: Sequence[PipelineSpec]) -> dict[str, int]:
    patterns = [pattern for pipeline in pipelines for pattern in pipeline.events]
    query = sql.SQL(
        "select format('%s', {type}), count(*) from {table} where {type} is not null"  # as a slot prints it
        " group by 1 order by 2 desc limit {limit}"
    ).format(type=outbox.column("type"), table=outbox.name, limit=sql.Literal(_KINDS))
    found = source.execute(query).fetchall()
    return {
        kind: count for kind, count in found if not any(fnmatchcase(kind, pattern) for pattern in patterns)
    }


def _applied_typeless(source: Link, outbox: Outbox, applied: AppliedPosition) -> int:
    query = sql.SQL("select count(*) from {} where {} is null and {}").format(
        outbox.name, outbox.column("type"), _sure(applied.predicate(outbox))
    )
    [count] = source.execute(query).fetchone() or (0,)
    return int(count)
