"""One comparison's ground (both snapshots, a second session to cast and hash, the dead letters), and what it found.

Findings name events, never their values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg import sql

from bridge.attempts import bisect
from bridge.planning.spec import Unit
from bridge.postgres.outbox import Outbox
from bridge.prove.census import NAMED, Census, Named
from bridge.prove.digest import Link, Window
from bridge.prove.expected import AppliedPosition, ExpectedEffects, Wanted
from bridge.prove.subject import EMPTIED, Subject

Answer = TypeVar("Answer")

KINDS = ("lost", "doubled", "differing", "unexpected", "both")


@dataclass(slots=True)
class Comparison:
    """One table or sink. expected = in the target, or lost, or an open or discarded dead letter."""

    name: str
    units: list[str]
    by: str
    expected: int = 0
    present: int = 0
    dead_open: int = 0
    dead_discarded: list[str] = field(default_factory=list)
    undecided: int = 0  # absent, and only a lookup could tell whether it should be there
    pruned: int = 0  # in the target, no longer in the outbox
    elsewhere: int = 0  # in the target, and perhaps another source's
    buckets: int = 0
    buckets_differing: int = 0
    lost: Named = field(default_factory=Named)  # in neither the target nor the dead letters
    doubled: Named = field(default_factory=Named)
    differing: Named = field(default_factory=Named)
    unexpected: Named = field(default_factory=Named)  # there, and no applied event says so
    both: Named = field(default_factory=Named)  # in the target and an open dead letter
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def differences(self) -> int:
        return sum(getattr(self, kind).count for kind in KINDS)


@dataclass(slots=True)
class Report:
    comparisons: list[Comparison] = field(default_factory=list)
    outboxes: list[Census] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def differences(self) -> int:
        return sum(one.differences for one in self.comparisons) + sum(
            one.differences for one in self.outboxes
        )

    def as_json(self) -> dict[str, Any]:
        return {"differences": self.differences, **asdict(self)}

    def as_text(self) -> str:
        lines: list[str] = []
        for one in self.comparisons:
            counts = "  ".join(f"{kind} {getattr(one, kind).count}" for kind in KINDS)
            lines.append(f"{one.name}  ({', '.join(one.units)}; {one.seconds:.1f} s)")
            lines.append(
                f"  expected {one.expected}  present {one.present}  dead letters {one.dead_open} open, "
                f"{len(one.dead_discarded)} discarded"
            )
            lines.append(f"  {counts}")
            for kind in KINDS:
                named: Named = getattr(one, kind)
                lines += [f"    {kind}: {what}" for what in named.first]
                if named.count > len(named.first):
                    lines.append(f"    {kind}: and {named.count - len(named.first)} more")
            lines += [f"    discarded: {what}" for what in one.dead_discarded[:NAMED]]
            if one.pruned:
                lines.append(f"  {one.pruned} rows whose events are no longer in the outbox")
            if one.undecided:
                lines.append(
                    f"  {one.undecided} events undecided: an enrichment says whether they belong here"
                )
            if one.left_out:
                lines.append(f"  not compared, from an enrichment: {', '.join(one.left_out)}")
            lines += [f"  note: {note}" for note in one.notes]
        for census in self.outboxes:
            lines += census.lines()
        lines += [f"note: {note}" for note in self.notes]
        verdict = "no difference" if not self.differences else f"{self.differences} differences"
        return "\n".join([*lines, verdict])


_DEAD: LiteralString = """
    select event_id, pipeline, destination, state from bridge.dead_letter
    where stream = %(stream)s and state in ('open', 'discarded') and (pipeline, destination) in
        (select p, d from unnest(%(pipelines)s::text[], %(destinations)s::text[]) as units(p, d))"""

# A person has discarded what waited. Where a replay has sent the event again, or a move was the second of its name,
# its other message counts.
_DISCARDED: LiteralString = """
    union all
    select d.event_id, d.pipeline, d.destination, 'discarded' from bridge.delivery d
    where d.stream = %(stream)s and d.state = 'discarded' and (d.pipeline, d.destination) in
        (select p, d from unnest(%(pipelines)s::text[], %(destinations)s::text[]) as units(p, d))
        and not exists (select from bridge.dead_letter l where l.id = d.id and l.state <> 'resolved')
        and not exists (select from bridge.delivery other where other.event_id = d.event_id
            and other.stream = d.stream and other.state in ('pending', 'sent') and (other.pipeline, other.destination)
                in (select p, d from unnest(%(pipelines)s::text[], %(destinations)s::text[]) as units(p, d)))"""


@dataclass(slots=True)
class Dead:
    """(event id, unit) -> "open" or "discarded"; of a sink, also messages that were discarded before they were sent."""

    states: dict[tuple[str, Unit], str]
    opened: Counter[str]  # by event
    discarded: Counter[str]

    def has(self, event_id: bytes, unit: Unit) -> bool:
        return bool(self.states) and (event_id.decode(), unit) in self.states


def read_dead(target: Link, subject: Subject, window: Window) -> Dead:
    """The open and discarded dead letters of the subject's units and the period's events."""
    pipelines, destinations = zip(*subject.units, *subject.former, strict=True)
    query = sql.SQL(_DEAD) + sql.SQL(" and ") + window.predicate(sql.SQL("event_id"))
    if subject.sink:
        query += sql.SQL(_DISCARDED) + sql.SQL(" and ") + window.predicate(sql.SQL("d.event_id"))
    units = {"pipelines": list(pipelines), "destinations": list(destinations), "stream": subject.stream}
    rows = [
        (event, subject.units[0] if (pipeline, name) in subject.former else (pipeline, name), state)
        for event, pipeline, name, state in target.execute(query, units)
    ]
    states = {(event, unit): state for event, unit, state in rows}
    return Dead(
        states,
        Counter(event for event, _, state in rows if state == "open"),
        Counter(event for event, _, state in rows if state == "discarded"),
    )


@dataclass(slots=True)
class Sides:
    """source and target are in their snapshots; cast is not, so that a refused value does not abort one."""

    source: Link
    target: Link
    cast: Link
    outbox: Outbox
    applied: AppliedPosition
    subject: Subject
    window: Window
    expectation: ExpectedEffects
    dead: Dead
    may_be_pruned: bool

    def alive(self, wanted: Wanted) -> Wanted:
        """Without dead letters, open or discarded."""
        if not self.dead.states:
            return wanted
        places = {
            n
            for n, (name, unit) in enumerate(zip(wanted.ids, wanted.units, strict=True))
            if self.dead.has(name, unit)
        }
        return wanted.without(places) if places else wanted

    def undead(self, wanted: Wanted) -> list[str]:
        """Events that the planner refuses and that are not dead letters."""
        return [name.decode() for name, unit in wanted.dead if not self.dead.has(name, unit)]

    def known(self, ids: Sequence[str]) -> dict[str, tuple[bool, bool]]:
        """event id -> (is it applied, has prune emptied it), for events in the outbox."""
        identity = sql.SQL("{}::text").format(self.outbox.column("id"))
        query = sql.SQL(
            "select {id}, {applied}, coalesce({headers}::text = {emptied}, false) from {table}"
            " where {raw} = any({ids}::{type}[])"
        ).format(
            id=identity,
            applied=self.applied.predicate(self.outbox),
            table=self.outbox.name,
            headers=self.outbox.column("headers"),
            emptied=sql.Literal(EMPTIED.decode()),
            raw=self.outbox.column("id") if self._by_uuid else identity,
            ids=sql.Placeholder(),
            type=sql.SQL("uuid" if self._by_uuid else "text"),
        )
        asked = [name for name in ids if not self._by_uuid or _is_uuid(name)]
        rows: list[tuple[Any, ...]] = self.source.execute(query, [asked]).fetchall()
        return {name: (bool(applied), bool(emptied)) for name, applied, emptied in rows}

    @property
    def _by_uuid(self) -> bool:
        return (self.outbox.schema, self.outbox.table) == ("outbox", "event")


def _is_uuid(text: str) -> bool:
    return len(text) == 36 and all(c in "0123456789abcdef-" for c in text)


def _for_data(error: psycopg.Error) -> bool:
    return (error.sqlstate or "")[:2] in ("22", "23")


def accepted(
    wanted: Wanted, question: Callable[[Wanted], Answer]
) -> tuple[list[tuple[Wanted, Answer]], list[bytes]]:
    """Put a question about these rows to the target, which casts their values: the parts whose values the table's
    types accept, each with its answer, in order; and the ids of the other rows."""
    answers: list[tuple[Wanted, Answer]] = []

    def attempt(places: Sequence[int]) -> psycopg.Error | None:
        part = wanted if len(places) == len(wanted.ids) else wanted.pick(places)
        try:
            answers.append((part, question(part)))
        except psycopg.Error as error:
            if not _for_data(error):
                raise
            return error
        return None

    refused = bisect(range(len(wanted.ids)), attempt)
    return answers, [wanted.ids[place] for place, _ in refused]
