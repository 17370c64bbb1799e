"""A minute of each stream at a time, for the console's charts: kept in the ledger (bridge.sample), so that a restart
does not forget, and in memory, where the ledger is older.

A minute in which nothing happened is not written: an idle bridge writes no row.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, LiteralString, Protocol

import psycopg

from bridge.observe.metrics import Metrics
from bridge.observe.state import StreamSnapshot

MINUTE = 60.0
KEPT_MINUTES = 24 * 60

Counts = dict[str, dict[str, int]]
"""Pipeline or destination -> outcome -> how many."""


class Plan(Protocol):
    """What it needs to know about a stream."""

    @property
    def stream(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def max_retained_wal(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Sample:
    """at: unix seconds, of the end of the minute. The units are those of the table (sql/target/004_audit.sql)."""

    stream: str
    at: float
    events: int
    p50: float | None = None
    p99: float | None = None
    lag: float | None = None
    retained: int | None = None
    headroom: int | None = None
    pipelines: Counts = field(default_factory=dict)
    destinations: Counts = field(default_factory=dict)

    @property
    def tells(self) -> bool:
        """Did anything happen?"""
        return bool(self.events or self.pipelines or self.destinations or self.lag)


def headroom(stream: StreamSnapshot, brake: int) -> int | None:
    """Bytes of WAL until Postgres invalidates the slot or the WAL brake drops it."""
    if stream.slot_retained_bytes is None:
        return None
    left = brake - stream.slot_retained_bytes
    return max(0, left if stream.slot_safe_bytes is None else min(left, stream.slot_safe_bytes))


class Sampler:
    """Takes a sample of each stream that this bridge runs, once a minute."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._next = 0.0
        self._events: dict[str, int] = {}
        self._latency: dict[str, list[int]] = {}  # by source
        self._counted: tuple[Totals, Totals] = ({}, {})
        self._plans: Sequence[Plan] = ()
        self.kept: deque[Sample] = deque()

    def take(self, plans: Sequence[Plan], *, early: bool = False) -> list[Sample]:
        """Empty until a minute has passed. early: now, because the bridge stops."""
        now = self._metrics.health.clock()
        if now < self._next and not early:
            return []
        self._next, self._plans = now + MINUTE, plans
        seen: set[str] = set()
        taken = []
        for plan in plans:
            state = self._metrics.health.streams.get(plan.stream)
            if state is None or state.snapshot.phase in (("standby",) if early else ("standby", "stopped")):
                continue
            taken.append(self._sample(plan, state.snapshot, now, counts=plan.source not in seen))
            self._events[plan.stream] = state.snapshot.events
            seen.add(plan.source)
        self._counted = (totals(self._metrics, "events"), totals(self._metrics, "deliveries"))
        for source in seen:
            self._latency[source] = self._latency_of(source)
        while self.kept and self.kept[0].at < now - KEPT_MINUTES * MINUTE:
            self.kept.popleft()
        told = [one for one in taken if one.tells]
        self.kept += told
        return told

    def present(self) -> list[Sample]:
        """The minute that has begun, as far as it is."""
        now = self._metrics.health.clock()
        told = []
        for plan in self._plans:
            state = self._metrics.health.streams.get(plan.stream)
            if state is not None and state.snapshot.phase not in ("standby", "stopped"):
                told.append(self._sample(plan, state.snapshot, now, counts=False))
        return told

    def since(self, source: str) -> tuple[Counts, Counts]:
        """What was counted after the last sample: of pipelines, of destinations."""
        return (
            _more(totals(self._metrics, "events"), self._counted[0], source),
            _more(totals(self._metrics, "deliveries"), self._counted[1], source),
        )

    def _latency_of(self, source: str) -> list[int]:
        label = self._metrics.label(source)
        return self._metrics.latency.counts(lambda _, of: of == label)

    def _sample(self, plan: Plan, stream: StreamSnapshot, now: float, *, counts: bool) -> Sample:
        before = self._events.get(plan.stream, 0)
        events = stream.events - before if stream.events >= before else stream.events  # a reload began anew
        latency, known = self._latency_of(plan.source), self._latency.get(plan.source, [])
        minute = [count - old for count, old in zip(latency, known or [0] * len(latency), strict=True)]
        pipelines, destinations = self.since(plan.source) if counts else ({}, {})
        return Sample(
            plan.stream,
            now,
            events,
            self._metrics.latency.quantile_in(minute, 0.5),
            self._metrics.latency.quantile_in(minute, 0.99),
            round(stream.pending_age(now), 3) if stream.pending_known else None,
            stream.slot_retained_bytes,
            headroom(stream, plan.max_retained_wal),
            pipelines,
            destinations,
        )


Totals = dict[tuple[str, str, str], int]
"""(source's label, pipeline or destination, outcome) -> how many since the process started."""


def totals(metrics: Metrics, what: str) -> Totals:
    """what: events or deliveries."""
    counter, label = (metrics.events, "pipeline") if what == "events" else (metrics.deliveries, "destination")
    return {
        (at.labels["source"], at.labels[label], at.labels["outcome"]): int(at.value)
        for at in next(iter(counter.collect())).samples
        if at.name.endswith("_total")
    }


def _more(now: Totals, before: Totals, source: str) -> Counts:
    found: Counts = {}
    for (of, name, outcome), count in now.items():
        more = count - before.get((of, name, outcome), 0)
        if more and of in ("", source):
            found.setdefault(name, {})[outcome] = more
    return found


def added(counts: Collection[Counts]) -> Counts:
    """The sum."""
    found: dict[str, Counter[str]] = {}
    for one in counts:
        for name, outcomes in one.items():
            found.setdefault(name, Counter()).update(outcomes)
    return {name: dict(outcomes) for name, outcomes in found.items()}


_KEEPS: LiteralString = (
    "select coalesce(bool_or(has_table_privilege(c.oid, 'insert') and has_table_privilege(c.oid, 'delete')), false)"
    " from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace"
    " where n.nspname = 'bridge' and c.relname = 'sample'"
)
_INSERT: LiteralString = (
    "insert into bridge.sample (stream, at, events, p50, p99, lag, retained, headroom, counts)"
    " values (%s, to_timestamp(%s), %s, %s, %s, %s, %s, %s, %s) on conflict do nothing"
)
_FORGET: LiteralString = "delete from bridge.sample where stream = %s and at < now() - interval '25 hours'"
_READ: LiteralString = (
    "select stream, extract(epoch from at)::float8, events, p50, p99, lag, retained, headroom,"
    " coalesce(counts -> 'pipelines', '{}'), coalesce(counts -> 'destinations', '{}') from bridge.sample"
    " where stream = any(%s) and at > now() - %s * interval '1 second' order by at"
)


async def write(connection: psycopg.AsyncConnection, sample: Sample) -> None:
    """Where the ledger has the table."""
    from psycopg.types.json import Jsonb  # noqa: PLC0415

    row = await (await connection.execute(_KEEPS)).fetchone()
    if row is None or not row[0]:
        return
    counts = Jsonb({"pipelines": sample.pipelines, "destinations": sample.destinations})
    values = [
        *(sample.stream, sample.at, sample.events, sample.p50, sample.p99),
        *(sample.lag, sample.retained, sample.headroom, counts),
    ]
    async with connection.transaction():
        await connection.execute("set transaction read write")  # the backlog's sessions only read otherwise
        await connection.execute(_INSERT, values)
        await connection.execute(_FORGET, [sample.stream])


def read(connection: psycopg.Connection[Any], streams: Sequence[str], seconds: float) -> list[Sample] | None:
    """The last `seconds`, oldest first. None: the ledger is older than the table, or its grants are."""
    row = connection.execute(_KEEPS).fetchone()
    if row is None or not row[0]:
        return None
    return [Sample(*row) for row in connection.execute(_READ, [list(streams), seconds])]
