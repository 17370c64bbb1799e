"""A batch that is planned and ready to be sent, the outcome of each of its units, and the failure guard.

The failure guard detects that most units of a destination fail with one cause, so that the table or the mapping is
wrong, not the events: then the stream halts (dead_letter_storm) instead of filling the dead letters.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bridge.errors import Halt
from bridge.planning.entity import unit_name
from bridge.planning.plan import DeadLetter, Owner, Planned, Write, arrange, by_event
from bridge.planning.spec import Unit
from bridge.postgres.entities import RefusedKeep
from bridge.postgres.target import ROLE_PATH, Statement
from bridge.postgres.write import dead_letter_statement, delivery_statement, write_statement
from bridge.protocol.events import Batch, Seqs, numbers, seq_of


@dataclass(slots=True)
class PlannedBatch:
    """A batch, planned, with its effects encoded in the order they must run."""

    batch: Batch
    planned: Planned
    effects: list[Statement]
    written: list[tuple[Unit, int | None]] = field(default_factory=list)
    """Of the last effects, one a write: its unit, and how many rows it must store; None: the table decides."""
    dead: list[DeadLetter] = field(default_factory=list)  # found by bisection
    suppressed: dict[Unit, int] = field(default_factory=dict)
    """Rows that triggers of a destination's table kept out."""

    @property
    def dead_letters(self) -> list[DeadLetter]:
        """Those that the plan has and those that the target's refusals have shown."""
        return [*self.planned.dead_letters, *self.dead]

    def seqs(self) -> Seqs:
        """Of its rows, for bridge.applied."""
        return Seqs.of(numbers(map(seq_of, self.batch.events)))

    def lightened(self, *, may_die: bool = False) -> PlannedBatch:
        """What is told of an applied chunk later: counts, causes of death and their order, without the rows. A
        transaction may have more of them than memory holds. may_die: more of its units may turn out to be dead."""
        events, planned = self.batch.events, self.planned
        if self.dead_letters or may_die:
            thin = {event.id: event._replace(payload=b"", headers=None) for event in events}
        else:
            thin = dict.fromkeys((event.id for event in events), events[-1]) if events else {}
        writes = [replace(w, events=[thin[e.id] for e in w.events], columns=[]) for w in planned.writes]
        keeps = [replace(k, event=thin[k.event.id], fields={}) for k in planned.keeps]
        publications = [
            replace(p, event=thin[p.event.id], headers=b"", payload=b"") for p in planned.publications
        ]
        batch = replace(self.batch, events=[thin[event.id] for event in events])
        light = replace(planned, writes=writes, publications=publications, keeps=keeps)
        return replace(self, batch=batch, planned=light, effects=[])


def encode(owner: Owner, batch: Batch, planned: Planned, met: Collection[Unit] = ()) -> PlannedBatch:
    """The statements of a plan.

    Rows whose key is the event are inserted as new, because the ledger ensures that each event is applied once. met:
    units whose rows existed nevertheless, written by someone else.
    """
    effects, written = [], []
    if planned.deliveries:
        effects.append(delivery_statement(owner, planned.deliveries))
    if planned.dead_letters:
        effects.append(dead_letter_statement(owner, planned.dead_letters))
    if planned.writes:
        effects.append(ROLE_PATH)
        for write in arrange(planned.writes):
            new = by_event(write) and write.unit not in met
            effects.append(write_statement(write, new=new))
            written.append((write.unit, len(write.events) if new or _stores_all(write) else None))
    return PlannedBatch(batch, planned, effects, written)


def _stores_all(write: Write) -> bool:
    """Neither a row that is there nor a newer version keeps one out."""
    spec = write.spec
    if not spec.key:
        return True
    return spec.mode == "upsert" and spec.version is None and bool(set(write.names) - set(spec.key))


def take_refused(planned: Planned, refused: Sequence[RefusedKeep], entities: Collection[Unit]) -> None:
    """Entity values that the source refused: dead letters, if they belong to this stream."""
    for one in refused:
        pipeline, name = unit = (one.keep.pipeline, unit_name(one.keep.entity))
        if unit in entities:
            planned.dead_letters.append(DeadLetter(pipeline, name, one.keep.event, one.code, one.cause))
            planned.outcomes[pipeline, "applied"] -= 1
            planned.outcomes[pipeline, "dead"] += 1


# --- the failure guard ----------------------------------------------------------------------------

WINDOW = 200
"""Units of a destination that are looked back on. More than half of them dead of one cause is a halt: a table that
lost a column kills every unit, while bad events seldom come a hundred in a row (faults.md, "Error classes decide")."""


_DOUBTS = 3


class FailureGuard:
    """The last WINDOW outcomes of each destination, across sessions. Only durable outcomes are recorded."""

    def __init__(self, *, on: bool = True) -> None:
        """on: False judges nothing (`bridge run --allow-storm`)."""
        self._on = on
        self._seen: dict[Unit, deque[str]] = {}
        self._doubts: Counter[Unit] = Counter()

    def check(self, parts: Sequence[PlannedBatch]) -> None:
        """Raises Halt when, with these included, a destination's units die of one cause."""
        if not self._on:
            return
        for unit, outcomes in outcomes_of(parts).items():
            cause = self.judge(unit, outcomes)
            if cause is not None:
                raise Halt(
                    f"pipeline {unit[0]}, destination {unit[1]}: more than half of the last {WINDOW} events cannot "
                    f"be applied for one reason: {cause}",
                    reason="dead_letter_storm",
                    hint="fix the table, the contract or the mapping, and delivery goes on by itself; to dead-letter "
                    "them all the same: bridge run --allow-storm",
                )

    def judge(self, unit: Unit, outcomes: Collection[str]) -> str | None:
        """The cause that more than half of the last WINDOW units died of, with these included; "" is a
        unit that was applied. None: there is none."""
        seen = self._seen.get(unit, ())
        if not any(seen) and not any(outcomes):  # nearly always, and what follows costs a batch of one more
            return None
        window = deque(seen, WINDOW)
        window.extend(outcomes)
        causes = Counter(cause for cause in window if cause)
        cause, count = causes.most_common(1)[0] if causes else ("", 0)
        return cause if count > WINDOW // 2 else None

    def failures_before(self, unit: Unit) -> int | None:
        """How many of its last outcomes, one after the other, were failures. None: none of the last WINDOW passed, so
        whether its table is at fault is not known. That is said a few times only: what is read from the table comes in
        the same batches again, and an event may never get the neighbours that would show it."""
        outcomes = self._seen.get(unit, ())
        if "" in outcomes:
            return next(n for n, cause in enumerate(reversed(outcomes)) if not cause)
        self._doubts[unit] += 1
        return None if self._doubts[unit] <= _DOUBTS else len(outcomes)

    def remember(self, parts: Sequence[PlannedBatch]) -> None:
        """These are durable."""
        for unit, outcomes in outcomes_of(parts).items():
            self.note(unit, outcomes)

    def note(self, unit: Unit, outcomes: Iterable[str]) -> None:
        """Outcomes of one unit, as judge() takes them, that are durable."""
        self._seen.setdefault(unit, deque(maxlen=WINDOW)).extend(outcomes)
        if "" in self._seen[unit]:
            self._doubts.pop(unit, None)


def outcomes_of(parts: Sequence[PlannedBatch]) -> Mapping[Unit, list[str]]:
    """By destination, the cause of each dead unit in the order of events, "" for an applied one. If none is dead, at
    most one window of applied units."""
    found: dict[Unit, list[str]] = {}
    for part in parts:
        if part.dead or part.planned.dead_letters:
            for unit, outcomes in _in_order(part).items():
                found.setdefault(unit, []).extend(outcomes)
            continue
        for write in part.planned.writes:
            found.setdefault(write.unit, []).extend([""] * min(WINDOW, len(write.events)))
        for one in part.planned.publications:
            found.setdefault((one.pipeline, one.destination), []).append("")
        for keep in part.planned.keeps:
            found.setdefault((keep.pipeline, unit_name(keep.entity)), []).append("")
    return found


def _in_order(part: PlannedBatch) -> dict[Unit, list[str]]:
    """The same for a batch with dead letters: grouped by fate, a few among many would look like a halt's cause."""
    place_of = {event.id: place for place, event in enumerate(part.batch.events)}
    found: dict[Unit, dict[int, str]] = {}
    for write in part.planned.writes:
        living = found.setdefault(write.unit, {})
        living.update((place_of[event.id], "") for event in write.events)
    for keep in part.planned.keeps:
        found.setdefault((keep.pipeline, unit_name(keep.entity)), {})[place_of[keep.event.id]] = ""
    for one in part.planned.publications:
        found.setdefault((one.pipeline, one.destination), {})[place_of[one.event.id]] = ""
    for letter in part.dead_letters:
        unit = (letter.pipeline, letter.destination)
        found.setdefault(unit, {})[place_of[letter.event.id]] = f"{letter.code} {letter.cause}"
    return {unit: [outcomes[place] for place in sorted(outcomes)] for unit, outcomes in found.items()}


def places(write: Write) -> Sequence[int]:
    """Where its events stand in the batch."""
    return write.places or range(len(write.events))
