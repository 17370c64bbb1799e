"""What should be there: events of the outbox through the planner, without lookups, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import psycopg
from psycopg import sql

from bridge.core.event import Event
from bridge.core.pipeline import Planner, answered
from bridge.core.spec import ContractSpec
from bridge.postgres.outbox import Outbox
from bridge.prove.digest import Connection, Window, bucket
from bridge.prove.position import Applied
from bridge.prove.subject import Subject, Unit

_BATCH = 5000
DELIVERIES_KEPT = 7 * 86400 - 3600
"""Seconds for which a settled delivery is there for certain: the dispatcher keeps them for seven days."""
EMPTIED = b'{"outbox.pruned": true}'


@dataclass(slots=True)
class Wanted:
    """Rows that a batch makes here: ids, seqs and column texts in step; `dead`: units the planner itself refuses."""

    ids: list[bytes] = field(default_factory=list)
    units: list[Unit] = field(default_factory=list)
    seqs: list[int] = field(default_factory=list)
    columns: list[list[bytes | None]] = field(default_factory=list)
    dead: list[tuple[bytes, Unit]] = field(default_factory=list)

    def without(self, places: set[int]) -> Wanted:
        """The same without the rows at these places."""
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


class Expectation:
    """The applied events of one subject's window, planned."""

    def __init__(
        self,
        subject: Subject,
        contracts: Mapping[str, ContractSpec],
        outbox: Outbox,
        *,
        applied: Applied,
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
        )

    def events(self, source: Connection, buckets: Sequence[str] | None = None) -> Iterator[list[Event]]:
        """Applied events of the window; of chosen buckets by id, else in any order."""
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
            self._outbox.select_list(), self._outbox.name, sql.SQL(" and ").join(where)
        )
        source.execute(query + order)
        try:
            while events := _fetch(source):
                yield [event for event in events if event.headers != EMPTIED]
        finally:
            if source.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS:
                source.execute("close outbox_events")

    def _types(self) -> sql.Composed:
        """Where the patterns are plain names, read no other events."""
        patterns = [pattern for spec in self._subject.pipelines for pattern in spec.events]
        if any(character in pattern for pattern in patterns for character in "*?["):
            return sql.SQL("true") + sql.SQL("")
        return sql.SQL("{} = any({})").format(self._outbox.column("type"), sql.Literal(patterns))

    def wanted(self, events: Sequence[Event]) -> Wanted:
        """What these events should have made here, in their order."""
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


def _fetch(source: Connection) -> list[Event]:
    result = source.execute(f"fetch forward {_BATCH} from outbox_events".encode()).pgresult
    if result is None:
        return []
    get, width = result.get_value, range(len(Event._fields))
    return [Event._make(get(row, n) for n in width) for row in range(result.ntuples)]
