"""Entities that events keep: what one event says of one, and how what several say becomes one row.

The row stands in the source and so outside the target's transaction. That is sound only since the outcome does not
depend on how often, in which order or by how many streams it is written: the last writer wins, field by field, by
the event's seq, and an equal or older one changes nothing. postgres/entities.py says the same in SQL.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bridge.expressions.document import parse_exact
from bridge.protocol.events import Event

Name = tuple[str, str]
"""(entity, key)."""


def unit_name(entity: str) -> str:
    """What an entity is called where a destination would be: in units and dead letters. No destination has a colon."""
    return f"entity:{entity}"


@dataclass(frozen=True, slots=True)
class Keep:
    """Fields that one event says of one entity, values exact. place: of the event in its batch."""

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
    """An entity: its fields, and the seq of the event that each came with (0: of none)."""

    fields: dict[str, Any] = field(default_factory=dict)
    seqs: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> EntityRow:
        """From what a lookup answers: `fields` and `seqs`, the texts of two JSON objects."""
        return cls(parse_exact(row["fields"].encode()), parse_exact(row["seqs"].encode()))

    def with_(self, keep: Keep) -> EntityRow:
        """Merged one level deep: each field that no newer event has said."""
        newer = {name: value for name, value in keep.fields.items() if keep.seq > self.seqs.get(name, 0)}
        return EntityRow({**self.fields, **newer}, {**self.seqs, **dict.fromkeys(newer, keep.seq)})


def folded(keeps: Iterable[Keep]) -> list[tuple[Name, EntityRow]]:
    """One row an entity, in the order of their names: whoever writes several locks them in the same order."""
    rows: dict[Name, EntityRow] = {}
    for keep in keeps:
        name = (keep.entity, keep.key)
        rows[name] = rows.get(name, EntityRow()).with_(keep)
    return sorted(rows.items(), key=lambda item: item[0])


class Kept:
    """What the events of one batch keep, for those steps of the batch that read it."""

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
        """The fields that each event sees: the stored row (None: there is none) and what events of the batch up to
        this one keep. places ascend."""
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
