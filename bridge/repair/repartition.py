"""Divide the streams of a configuration into as many partitions as it says: to a log, to another number, back from it.

The old partitions of a target are brought to one snapshot (protocol/barrier.py), then one transaction in the target
puts the new ones in their place. Each step leaves a state that bridges can go on from, and whatever is interrupted is
finished by running it again. A new partition reads the table until the relay has begun with the new number.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any, cast

import psycopg

from bridge.errors import Retry
from bridge.failpoints import hit
from bridge.postgres import partitions as sql
from bridge.postgres import wire
from bridge.postgres.slots import drop_slot
from bridge.postgres.source import Source
from bridge.protocol.barrier import to_barrier
from bridge.protocol.facts import Goal
from bridge.protocol.preflight import StreamSettings
from bridge.protocol.requests import drive
from bridge.stream.engine import Engine, open_link, open_source
from bridge.stream.pace import Pace
from bridge.stream.planned import FailureGuard
from bridge.stream.published import Publications
from bridge.stream.spec import LogSpec, StreamSpec, Watcher
from bridge.stream.target_tables import connect_catalog, examine_target

_TRIES = 5


@dataclass(frozen=True, slots=True)
class Division:
    """A target's stream, as the ledger divides it and as the configuration wants it. Counts of partitions; 0: none, it
    reads a slot of its own."""

    group: str
    now: int
    wanted: int

    def names(self, count: int) -> list[str]:
        if not count:
            return [self.group]
        return [f"{self.group}.{number}of{count}" for number in range(1, count + 1)]

    @property
    def old(self) -> list[str]:
        return self.names(self.now)

    @property
    def new(self) -> list[str]:
        return self.names(self.wanted)


def division(target: psycopg.Connection, plan: StreamSpec, wanted: int) -> Division | None:
    """plan: of the target, not of a partition. None: its ledger has no rows, and there is nothing to divide."""
    now = sql.layout(sql.ledger_rows(target, plan.stream))
    return None if now is None else Division(plan.stream, now, wanted)


class Repartition:
    """One source's streams, divided anew while it is open: bridges stand by meanwhile. told: what is being done."""

    def __init__(self, source: psycopg.Connection, told: Callable[[str], None]) -> None:
        """source: a session of its own, in autocommit."""
        self._source = source
        self._told = told

    def divide(self, target: psycopg.Connection, plan: StreamSpec, what: Division) -> None:
        """plan: of the target, not of a partition. Raises BridgeError; what was done until then holds."""
        if what.now != what.wanted:
            for left in reversed(range(_TRIES)):
                try:
                    self._once(target, plan, what)
                    break
                except Retry as passed:
                    if not left or passed.reason != "barrier_passed":
                        raise
        self._forget(plan, what)

    def _once(self, target: psycopg.Connection, plan: StreamSpec, what: Division) -> None:
        sql.fence_all(target, what.old)
        hit("repartition.fenced")
        barrier = self._barrier(plan)
        for number, name in enumerate(what.old, 1):
            self._told(f"{name}: up to the barrier")
            self._bring(replace(plan, stream=name, group=plan.stream, log=_log(number, what.now)), barrier)
            hit("repartition.brought")
        sql.register_all(self._source, what.old, what.new, barrier)
        hit("repartition.registered")
        sql.divide(target, what.old, what.new, barrier)
        hit("repartition.divided")
        self._told(f"{plan.stream}: {_words(what.now)} -> {_words(what.wanted)}")

    def _barrier(self, plan: StreamSpec) -> Goal:
        """A snapshot that is newer than every floor: whoever raised them is fenced."""
        with closing(Source(plan.source_dsn, plan.stream, plan.outbox, plan.publication)) as control:
            return Goal(*control.take_snapshot())

    def _bring(self, plan: StreamSpec, barrier: Goal) -> None:
        """Apply what the barrier shows of one old partition, or of the undivided stream."""
        if plan.log is not None and not plan.log.partitions:
            plan = replace(plan, log=None)
        with connect_catalog(plan) as target:
            planner, _ = examine_target(plan, target)
        watcher = cast(Watcher, _Unwatched())
        waker = wire.Waker()
        settings = StreamSettings(
            stream=plan.stream,
            slot=plan.stream,
            session=sql.mover_session(),
            capture="poll",
            partitions=plan.log.partitions if plan.log is not None else None,
        )
        with ExitStack() as ends:
            ends.callback(waker.close)
            published = Publications(plan.owner, plan.pipelines, plan.buses, done=waker.nudge)
            ends.callback(published.close)
            control = ends.enter_context(closing(open_source(plan)))
            link = ends.enter_context(closing(open_link(plan)))
            engine = Engine(
                plan,
                planner,
                FailureGuard(),
                Pace(plan.max_events),
                watcher,
                control=control,
                link=link,
                published=published,
                waker=waker,
                stop=bool,
            )
            ends.callback(engine.close)
            drive(to_barrier(settings, barrier), engine)

    def _forget(self, plan: StreamSpec, what: Division) -> None:
        """What the source still has of other divisions."""
        others = set(sql.registered_rows(self._source, plan.stream)) - set(what.new)
        for slot in sql.forget(self._source, sorted(others)):
            drop_slot(self._source, slot)
        hit("repartition.forgotten")

    def relay(self, name: str, partitions: int) -> None:
        """Tell it the new number."""
        if sql.begin_again(self._source, name, partitions):
            self._told(f"{name}: begins again with {_words(partitions)}")

    def end_relays(self, publication: str) -> None:
        """End those that serve nobody any more."""
        for slot in sql.end_relays(self._source, publication):
            drop_slot(self._source, slot)
            self._told(f"{slot}: dropped")


def _log(partition: int, partitions: int) -> LogSpec:
    """Which rows a partition has; nothing is read from a log."""
    return LogSpec("", cast(Any, None), partition, partitions)


def _words(count: int) -> str:
    return f"{count} partitions" if count else "a slot of its own"


class _Unwatched:
    """A Watcher that nobody looks at: the command says itself what it does."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None
