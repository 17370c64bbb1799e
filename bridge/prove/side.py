"""One comparison's ground: both snapshots, a second session on the target to cast and hash, the dead letters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from bridge.postgres.outbox import Outbox
from bridge.prove.digest import Connection, Window
from bridge.prove.expected import EMPTIED, Expectation, Wanted
from bridge.prove.position import Applied
from bridge.prove.subject import Subject, Unit

_DEAD: LiteralString = """
    select event_id, pipeline, destination, state from bridge.dead_letter
    where state in ('open', 'discarded') and (pipeline, destination) in
        (select p, d from unnest(%s::text[], %s::text[]) as units(p, d))"""


@dataclass(slots=True)
class Dead:
    """(event id, unit) -> "open" or "discarded"."""

    states: dict[tuple[str, Unit], str]
    opened: Counter[str]  # by event
    discarded: Counter[str]

    def has(self, event_id: bytes, unit: Unit) -> bool:
        return bool(self.states) and (event_id.decode(), unit) in self.states


def read_dead(target: Connection, subject: Subject, window: Window) -> Dead:
    """The open and discarded dead letters of the subject's units and the window's events."""
    pipelines, destinations = zip(*subject.units, strict=True)
    query = sql.SQL(_DEAD) + sql.SQL(" and ") + window.predicate(sql.SQL("event_id"))
    rows = target.execute(query, [list(pipelines), list(destinations)]).fetchall()
    states = {(event, (pipeline, name)): state for event, pipeline, name, state in rows}
    return Dead(
        states,
        Counter(event for event, _, _, state in rows if state == "open"),
        Counter(event for event, _, _, state in rows if state == "discarded"),
    )


@dataclass(slots=True)
class Sides:
    """source and target are in their snapshots; cast is not, so that a refused value costs nothing."""

    source: Connection
    target: Connection
    cast: Connection
    outbox: Outbox
    applied: Applied
    subject: Subject
    window: Window
    expectation: Expectation
    dead: Dead
    may_be_pruned: bool

    def alive(self, wanted: Wanted) -> Wanted:
        """Less what is a dead letter, open or discarded."""
        if not self.dead.states:
            return wanted
        places = {
            n
            for n, (name, unit) in enumerate(zip(wanted.ids, wanted.units, strict=True))
            if self.dead.has(name, unit)
        }
        return wanted.without(places) if places else wanted

    def undead(self, wanted: Wanted) -> list[str]:
        """Events that the planner refuses, and that are no dead letter."""
        return [name.decode() for name, unit in wanted.dead if not self.dead.has(name, unit)]

    def known(self, ids: Sequence[str]) -> dict[str, tuple[bool, bool]]:
        """event id -> (is it applied, has prune emptied it); for those that the outbox has."""
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


def refused_for_data(error: psycopg.Error) -> bool:
    return (error.sqlstate or "")[:2] in ("22", "23")
