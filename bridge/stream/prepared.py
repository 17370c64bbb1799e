"""A batch that is ready to be sent: its plan, its effects as statements, and what became of each unit."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from bridge.planning.entity import unit_name
from bridge.planning.plan import DeadLetter, Planned, Write, arrange, by_event
from bridge.postgres.entities import RefusedKeep
from bridge.postgres.target import Statement
from bridge.postgres.write import dead_letter_statement, delivery_statement, write_statement
from bridge.protocol.events import Batch
from bridge.stream.guard import WINDOW, Unit


@dataclass(slots=True)
class PlannedBatch:
    """A batch, planned, with its effects encoded in the order they must run."""

    batch: Batch
    planned: Planned
    effects: list[Statement]
    dead: list[DeadLetter] = field(default_factory=list)  # found by bisection

    @property
    def dead_letters(self) -> list[DeadLetter]:
        return [*self.planned.dead_letters, *self.dead]


def encode(stream: str, batch: Batch, planned: Planned, met: Collection[Unit] = ()) -> PlannedBatch:
    """The statements of a plan. Rows whose key is the event are inserted as new ones: the ledger sees to it that each
    event comes once. met: the units whose rows were there all the same, written by somebody else."""
    effects = [
        write_statement(write, new=by_event(write) and write.unit not in met)
        for write in arrange(planned.writes)
    ]
    if planned.deliveries:
        effects.append(delivery_statement(stream, planned.deliveries))
    if planned.dead_letters:
        effects.append(dead_letter_statement(stream, planned.dead_letters))
    return PlannedBatch(batch, planned, effects)


def take_refused(planned: Planned, refused: Sequence[RefusedKeep], entities: Collection[Unit]) -> None:
    """What the source cannot hold of the entities that events keep: dead letters, where they are this stream's."""
    for one in refused:
        pipeline, name = unit = (one.keep.pipeline, unit_name(one.keep.entity))
        if unit in entities:
            planned.dead_letters.append(DeadLetter(pipeline, name, one.keep.event, one.code, one.cause))
            planned.outcomes[pipeline, "applied"] -= 1
            planned.outcomes[pipeline, "dead"] += 1


def lightened(part: PlannedBatch) -> PlannedBatch:
    """What is told of an applied chunk later: counts, causes of death and their order, without the rows: a
    transaction may have more of them than memory holds."""
    events = part.batch.events
    if part.dead_letters:
        thin = {event.id: event._replace(payload=b"", headers=None) for event in events}
    else:
        thin = dict.fromkeys((event.id for event in events), events[-1]) if events else {}
    writes = [replace(w, events=[thin[e.id] for e in w.events], columns=[]) for w in part.planned.writes]
    keeps = [replace(k, event=thin[k.event.id], fields={}) for k in part.planned.keeps]
    batch = replace(part.batch, events=[thin[event.id] for event in events])
    return replace(part, batch=batch, planned=replace(part.planned, writes=writes, keeps=keeps), effects=[])


def places(write: Write) -> Sequence[int]:
    return write.places or range(len(write.events))


def outcomes_of(parts: Sequence[PlannedBatch]) -> dict[Unit, list[str]]:
    """By destination, the cause of death of each unit in the order of events, "" for one that lives. At most
    a window of the living where none died."""
    found: dict[Unit, list[str]] = {}
    for part in parts:
        if part.dead_letters:
            for unit, outcomes in _in_order(part).items():
                found.setdefault(unit, []).extend(outcomes)
            continue
        for write in part.planned.writes:
            found.setdefault(write.unit, []).extend([""] * min(WINDOW, len(write.events)))
        for keep in part.planned.keeps:
            found.setdefault((keep.pipeline, unit_name(keep.entity)), []).append("")
    return found


def _in_order(part: PlannedBatch) -> dict[Unit, list[str]]:
    """The same for a batch with dead letters: grouped by fate, a few among many would look like a storm."""
    place_of = {event.id: place for place, event in enumerate(part.batch.events)}
    found: dict[Unit, dict[int, str]] = {}
    for write in part.planned.writes:
        living = found.setdefault(write.unit, {})
        living.update((place_of[event.id], "") for event in write.events)
    for keep in part.planned.keeps:
        found.setdefault((keep.pipeline, unit_name(keep.entity)), {})[place_of[keep.event.id]] = ""
    for letter in part.dead_letters:
        unit = (letter.pipeline, letter.destination)
        found.setdefault(unit, {})[place_of[letter.event.id]] = f"{letter.code} {letter.cause}"
    return {unit: [outcomes[place] for place in sorted(outcomes)] for unit, outcomes in found.items()}
