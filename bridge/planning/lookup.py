"""What planning asks of the world: rows of an entity by key. A step yields a Lookup and is sent the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class LookupSpec:
    """Where an entity's rows are and how they are asked for. The first column of `sql` is the key."""

    as_name: str
    key: str  # a value source
    source: str  # "source" or the name of a postgres connection
    sql: str  # takes %(keys)s
    cache_seconds: float = 0.0
    kept: str | None = None  # the entity, where events keep it and `sql` is the bridge's own


@dataclass(frozen=True, slots=True)
class Lookup:
    """A request of the planner: rows of this entity for these keys. reads: the columns that the pipeline takes from
    them, which the query must have."""

    entity: LookupSpec
    keys: list[Any]  # distinct JSON scalars, all str or all int
    reads: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row that is there and cannot be read; why: without values."""

    why: str


Answer = Mapping[Any, Mapping[str, Any] | Unreadable]
"""To a Lookup: key (or its text) -> row, column -> value: a boolean, a number, JSON or the server's text. A key without
a row is not in it."""
