"""Entities: lookups that several pipelines share, and those that events keep.

Of the latter: what one event says of one, and how what several say becomes one row. The row stands in the source
and so outside the target's transaction. That is sound only since the outcome does not depend on how often, in which
order or by how many streams it is written: the last writer wins, field by field, by the event's seq, and an equal or
older one changes nothing. postgres/entities.py says the same in SQL.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from bridge.expressions.document import parse_exact
from bridge.protocol.events import Event
from bridge.quantity import Duration
from bridge.section import Section


def takes_keys(sql: str) -> str:
    """The same text, if it takes keys."""
    if "%(keys)s" not in sql:
        raise ValueError("must take its keys as %(keys)s, such as: where customer_id = any(%(keys)s)")
    return sql


class Entity(Section):
    """What enrich.entity looks up under this name: either with `sql`, or what upsert.entity has stored."""

    kept_by: Literal["events"] | None = None
    """events: upsert.entity maintains it, in outbox.entity of the source. Use instead of `sql`."""
    source: Annotated[str, Field(alias="from")] = "source"
    """With `sql`: `source`, or the name of a postgres connection."""
    sql: Annotated[str, AfterValidator(takes_keys)] | None = None
    """One query that takes %(keys)s and whose first column is the key."""
    cache: Duration = timedelta(0)
    """How long a row may be reused. Values that this stream writes itself are visible immediately."""

    @model_validator(mode="after")
    def _one_origin(self) -> Entity:
        if (self.sql is None) == (self.kept_by is None):
            raise ValueError("must have either `kept_by: events` or `sql`")
        if self.kept_by is not None and "source" in self.model_fields_set:
            raise ValueError("is stored in the source: use `from` only with `sql`")
        return self


def kept_sql(entity: str) -> str:
    """The lookup of an entity that events maintain. The name is a RootName, so it needs no quoting."""
    return (
        "select key, fields::text as fields, seqs::text as seqs from outbox.entity"
        f" where entity = '{entity}' and key = any(%(keys)s::text[])"
    )


Name = tuple[str, str]
"""(entity, key)."""


def unit_name(entity: str) -> str:
    """The entity's name in place of a destination, in units and dead letters. No destination's name has a colon."""
    return f"entity:{entity}"


@dataclass(frozen=True, slots=True)
class Keep:
    """One event's fields for one entity, with exact values. place: the event's index in its batch."""

    pipeline: str
    entity: str
    key: str
    event: Event
    place: int
    fields: Mapping[str, Any]

    @property
    def seq(self) -> int:
        return int(self.event.seq)


@dataclass(frozen=True, slots=True)
class EntityRow:
    """An entity: its fields, and for each the seq of the event that set it (0: none did)."""

    fields: dict[str, Any] = field(default_factory=dict)
    seqs: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> EntityRow:
        """From a lookup's answer: `fields` and `seqs`, the texts of two JSON objects."""
        return cls(parse_exact(row["fields"].encode()), parse_exact(row["seqs"].encode()))

    def with_(self, keep: Keep) -> EntityRow:
        """Merge one level deep: set each field that no newer event has set."""
        newer = {name: value for name, value in keep.fields.items() if keep.seq > self.seqs.get(name, 0)}
        return EntityRow({**self.fields, **newer}, {**self.seqs, **dict.fromkeys(newer, keep.seq)})


def folded(keeps: Iterable[Keep]) -> list[tuple[Name, EntityRow]]:
    """One row per entity, ordered by name, so that concurrent writers lock rows in the same order."""
    rows: dict[Name, EntityRow] = {}
    for keep in keeps:
        name = (keep.entity, keep.key)
        rows[name] = rows.get(name, EntityRow()).with_(keep)
    return sorted(rows.items(), key=lambda item: item[0])


class Kept:
    """The entities that a batch's events write, for steps of the same batch that read them."""

    def __init__(self) -> None:
        self.keeps: list[Keep] = []
        self._of: dict[Name, list[Keep]] = {}

    def add(self, keeps: Sequence[Keep]) -> None:
        self.keeps += keeps
        names = {(keep.entity, keep.key) for keep in keeps}
        for keep in keeps:
            self._of.setdefault((keep.entity, keep.key), []).append(keep)
        for name in names:  # another pipeline may have added later ones
            self._of[name].sort(key=lambda keep: keep.place)

    def rows(
        self, entity: str, places: Sequence[int], keys: Sequence[str | None], stored: Sequence[Any]
    ) -> list[dict[str, Any] | None]:
        """The fields that each event sees: the stored row (None: no row) merged with the events of the batch up to
        this one. places ascend."""
        states: dict[str, tuple[EntityRow | None, Sequence[Keep], int]] = {}
        found: list[dict[str, Any] | None] = []
        for place, key, row in zip(places, keys, stored, strict=True):
            if key is None:
                found.append(None)
                continue
            if key not in states:
                states[key] = (row and EntityRow.read(row), self._of.get((entity, key), ()), 0)
            now, keeps, at = states[key]
            while at < len(keeps) and keeps[at].place <= place:
                now = (now or EntityRow()).with_(keeps[at])
                at += 1
            states[key] = (now, keeps, at)
            found.append(None if now is None else now.fields)
        return found
