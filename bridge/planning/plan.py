"""What a batch turns into: writes, deliveries and dead letters, ready for one target transaction, and entities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID, uuid5

from bridge.planning.entity import Keep
from bridge.planning.spec import TableSpec
from bridge.protocol.batch import Event

_NAMESPACE = UUID("6f0b5e0a-9d0b-5c59-8c0e-6f7574626f78")


def unit_id(event_id: str, pipeline: str, destination: str, again: str = "") -> UUID:
    """The stable id of (event, pipeline, destination), the unit of effect, dead letter and delivery. again:
    the name of a replay, whose deliveries are others than the first ones."""
    return uuid5(_NAMESPACE, f"{event_id}/{pipeline}/{destination}" + (f"/{again}" if again else ""))


ColumnKind = Literal["text", "json", "array", "bytea", "other"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a target table as the catalog tells it."""

    name: str
    type_sql: str  # format_type() without modifier: "numeric", "text", "events.level"; goes behind ::
    kind: ColumnKind  # how a JSON value becomes this column's text
    not_null: bool = False
    has_default: bool = False  # default, identity or generated
    writable: bool = True  # False: generated always
    declared: str = ""  # with its modifier, for naming a column that a value does not fit


@dataclass(frozen=True, slots=True)
class TableShape:
    """A target table as the catalog tells it, columns by name in catalog order."""

    schema: str
    table: str
    columns: Mapping[str, Column]


@dataclass(slots=True)
class Write:
    """Rows for one table, in event order. columns[i][j] is the text of column names[i] for events[j]."""

    pipeline: str
    spec: TableSpec
    shape: TableShape
    names: tuple[str, ...]
    events: list[Event]
    columns: list[list[bytes | None]]
    places: list[int] = field(default_factory=list)  # of the events in the batch: the order across writes

    @property
    def unit(self) -> tuple[str, str]:
        """(pipeline, destination)."""
        return self.pipeline, self.spec.name

    def pick(self, rows: list[int]) -> Write:
        """The same write with these rows only."""
        events = [self.events[row] for row in rows]
        columns = [[column[row] for row in rows] for column in self.columns]
        places = [self.places[row] for row in rows] if self.places else []
        return Write(self.pipeline, self.spec, self.shape, self.names, events, columns, places)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A unit that cannot be applied, and why, in words without row values."""

    pipeline: str
    destination: str
    event: Event
    code: str  # "contract", "missing_entity", "expression", or a SQLSTATE
    cause: str
    retry_for_seconds: float | None = None  # parked: retries itself for so long


@dataclass(frozen=True, slots=True)
class Deliver:
    """A row of the delivery table: `body` is the rendered message as JSON text."""

    pipeline: str
    destination: str
    event: Event
    body: bytes


@dataclass(slots=True)
class Planned:
    """Everything one batch does to a target, writes in the order they must run."""

    writes: list[Write] = field(default_factory=list)
    deliveries: list[Deliver] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    keeps: list[Keep] = field(default_factory=list)  # to be in the source before the rest is in the target
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)  # (pipeline, outcome) -> events
