"""What a batch turns into (writes, messages, dead letters, entities), and the order in which writes must run.

Postgres refuses to touch a row twice in one upsert (21000), and two statements run one after the other whatever the
order of their events was. So the writes of a table are cut into generations: within one, a key stands at most once in
a write and in writes that run in event order; what comes later takes the next. The result equals applying the events
one by one. Arrange again whatever is split off a batch: the row that a fold left out counts when the row that
replaced it turns out dead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from hashlib import sha1
from typing import Literal, NamedTuple
from uuid import UUID

from bridge.planning.entity import Keep
from bridge.planning.publication import Publication
from bridge.planning.spec import TableSpec
from bridge.protocol.events import Event

_NAMESPACE = UUID("6f0b5e0a-9d0b-5c59-8c0e-6f7574626f78").bytes


class Owner(NamedTuple):
    """Whose a dead letter or a delivery is. ids: of several sources, the name of the stream's, which keeps the ids of
    its units from those of another source's events: their own outboxes may number events alike."""

    stream: str
    ids: str = ""

    def unit_id(self, event_id: str, pipeline: str, destination: str, again: str = "") -> UUID:
        """The stable id of the unit (event, pipeline, destination), of its dead letter and of its delivery. again: the
        name of a replay, whose deliveries have other ids."""
        return UUID(bytes=self.unit_bytes(event_id, pipeline, destination, again))

    def unit_bytes(self, event_id: str, pipeline: str, destination: str, again: str = "") -> bytes:
        """The same as bytes: a UUID of version 5 (RFC 9562), without the objects of the uuid module."""
        named = f"{event_id}/{pipeline}/{destination}" + (f"/{again}" if again else "")
        text = f"{self.ids}:{named}" if self.ids else named
        digest = bytearray(sha1(_NAMESPACE + text.encode(), usedforsecurity=False).digest()[:16])
        digest[6] = digest[6] & 0x0F | 0x50
        digest[8] = digest[8] & 0x3F | 0x80
        return bytes(digest)


ColumnKind = Literal["text", "json", "array", "bytea", "other"]

NUMBERS = b"="
"""Before the text of money that came as numbers: a number is the same under every lc_monetary, a text is not."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a target table, from the catalog.

    A domain counts as the type below all of its domains: what a JSON value becomes depends on that, and the domain
    comes in by the assignment.
    """

    name: str
    type_sql: str  # format_type() without modifier, for people: "numeric", "text", "events.level"
    kind: ColumnKind  # how a JSON value becomes this column's text
    not_null: bool = False
    has_default: bool = False  # default, identity or generated
    writable: bool = True  # False: generated always
    declared: str = ""  # with its modifier: "numeric(10,2)"
    base: str = ""  # pg_type.typname below the domains: "int4", "_varchar"; "": as type_sql says
    cast: str = ""  # the same with its schema, quoted, without modifier; "": type_sql
    element: str = ""  # of an array: typname of its elements below their domains
    delimiter: str = ","  # between an array's elements; a semicolon in box[]
    read_by_cast: bool = False  # a cast from text is a function of its own, and not the type's input

    @property
    def type_name(self) -> str:
        """typname, without the array's underscore."""
        return self.element or self.base or self.type_sql


@dataclass(frozen=True, slots=True)
class TableShape:
    """A target table, from the catalog; columns by name, in catalog order. identity: changes with every ALTER of the
    table; "": not known."""

    schema: str
    table: str
    columns: Mapping[str, Column]
    identity: str = ""


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
    """A unit that cannot be applied, and the cause without row values."""

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
    """Everything that one batch does to a target, with its writes in the order in which they must run."""

    writes: list[Write] = field(default_factory=list)
    deliveries: list[Deliver] = field(default_factory=list)
    publications: list[Publication] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    keeps: list[Keep] = field(default_factory=list)  # to be in the source before the rest is in the target
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)  # (pipeline, outcome) -> events
    unmatched: Counter[bytes] = field(default_factory=Counter)  # type -> events that no pipeline takes


Key = tuple[bytes | None, ...]
_ANY: Key = (b"",)
"""Matches every key, if the keys of two writes cannot be compared."""


def arrange(writes: list[Write]) -> list[Write]:
    """The writes in the order in which they must run, each key at most once per write."""
    tables: dict[tuple[str, str], list[int]] = {}
    for number, write in enumerate(writes):
        tables.setdefault((write.shape.schema, write.shape.table), []).append(number)
    cut: dict[int, list[Write]] = {}
    for numbers in tables.values():
        plans = [writes[number] for number in numbers]
        if _settled(plans):
            continue
        cut.update(zip(numbers, _generations(plans), strict=True))
    if not cut:
        return writes
    depth = max(len(parts) for parts in cut.values())
    arranged: list[Write] = []
    for generation in range(depth):
        for number, write in enumerate(writes):
            parts = cut.get(number, [write])
            if generation < len(parts) and parts[generation].events:
                arranged.append(parts[generation])
    return arranged


def _settled(plans: list[Write]) -> bool:
    """True if order and keys do not matter: plain inserts, or one write whose keys all differ."""
    if all(plan.spec.mode == "insert" for plan in plans):
        return len(plans) == 1 or not any(plan.spec.key for plan in plans)  # with a key the first one stays
    if len(plans) > 1:
        return False
    (plan,) = plans
    if by_event(plan):
        return True
    if len(plan.spec.key) == 1:
        column = plan.columns[plan.names.index(plan.spec.key[0])]
        return len(set(column)) == len(column)
    keys = _keys(plan, plan.spec.key)
    return keys is not None and len(set(keys)) == len(keys)


def by_event(plan: Write) -> bool:
    """True if the key is the event's id, which occurs once in a write and once in a table."""
    return keyed_by_event(plan.spec)


def keyed_by_event(spec: TableSpec) -> bool:
    """Is its key the event's id?"""
    if len(spec.key) != 1:
        return False
    if spec.columns is None:
        return spec.key == ("event_id",)
    return spec.columns.get(spec.key[0]) == "$meta.id"


def _keys(plan: Write, names: tuple[str, ...]) -> list[Key] | None:
    """Each row's key; None where the plan does not write all of its columns."""
    if not set(names) <= set(plan.names):
        return None
    columns = [plan.columns[plan.names.index(name)] for name in names]
    return list(zip(*columns, strict=True))


@dataclass(slots=True)
class _Generation:
    """The rows of each write that run together, and where each key is."""

    rows: list[dict[int, None]]  # by plan, in order
    last: dict[Key, int] = field(default_factory=dict)  # key -> the last plan that writes it
    row_of: dict[tuple[int, Key], int] = field(default_factory=dict)


def _generations(plans: list[Write]) -> list[list[Write]]:
    """For each write its parts, one per generation (some are empty)."""
    named = {plan.spec.key for plan in plans if plan.spec.key}
    names = next(iter(named)) if len(named) == 1 else ()
    keys = [_keys(plan, names) if names else None for plan in plans]
    entries = sorted(
        (place, number, row)
        for number, plan in enumerate(plans)
        for row, place in enumerate(plan.places or range(len(plan.events)))
    )
    generations = [_Generation([{} for _ in plans])]
    for _, number, row in entries:
        known = keys[number]
        if known is not None and None in known[row]:
            generations[-1].rows[number][row] = None  # null never conflicts
            continue
        if known is None and plans[number].spec.mode == "insert" and (names or not plans[number].spec.key):
            generations[-1].rows[number][row] = None  # its key is made by the server
            continue
        key = known[row] if known is not None else _ANY
        if not _admit(generations[-1], plans[number], number, row, key):
            generations.append(_Generation([{} for _ in plans]))
            _admit(generations[-1], plans[number], number, row, key)
    return [
        [plan.pick(list(generation.rows[number])) for generation in generations]
        for number, plan in enumerate(plans)
    ]


def _admit(generation: _Generation, plan: Write, number: int, row: int, key: Key) -> bool:
    """Add a row to this generation; False if it must wait for the next."""
    if generation.last.get(key, -1) > number:
        return False
    before = generation.row_of.get((number, key))
    if before is not None and plan.spec.mode == "upsert" and key is not _ANY:
        newer = _newer(plan, before, row)
        if newer is None:
            return False
        if newer:
            del generation.rows[number][before]
        else:
            return True
    elif before is not None and plan.spec.mode == "upsert":
        return False
    generation.rows[number][row] = None
    generation.row_of[number, key] = row
    generation.last[key] = number
    return True


def _newer(plan: Write, before: int, row: int) -> bool | None:
    """True if `row` replaces `before`: always, or because of its version; None if only the server can decide."""
    name = plan.spec.version_column
    if name is None:
        return True
    versions = plan.columns[plan.names.index(name)]
    old, new = versions[before], versions[row]
    if old is None or new is None:
        return None
    try:
        return Decimal(old.decode()) < Decimal(new.decode())
    except (InvalidOperation, UnicodeDecodeError):
        return None
