"""One stream's thread: session after session (sessions.py), and what is done between two of them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import psycopg

from bridge.errors import BridgeError, Retry
from bridge.planning.plan import TableShape
from bridge.planning.planner import Planner
from bridge.planning.spec import Unit
from bridge.postgres.connect import connect
from bridge.postgres.outbox import foreign_rows
from bridge.postgres.profiles import SOURCE
from bridge.postgres.progress import registered
from bridge.postgres.slots import give_up_renamed_slot, give_up_slot
from bridge.postgres.target import TargetLink
from bridge.postgres.target_rules import Finding
from bridge.protocol.events import NOTHING, parse_snapshot
from bridge.protocol.evidence import foreign_xids
from bridge.protocol.preflight import StreamSettings
from bridge.protocol.requests import drive
from bridge.protocol.session import session
from bridge.stream.beside import Beside
from bridge.stream.doubts import refuse_powers, tell_later
from bridge.stream.engine import Engine, open_link, open_source
from bridge.stream.pace import Pace
from bridge.stream.planned import FailureGuard
from bridge.stream.predecessor import await_end
from bridge.stream.published import Publications
from bridge.stream.sessions import Sessions
from bridge.stream.spec import StreamSpec, Watcher
from bridge.stream.target_tables import connect_catalog, differences, examine_target

if TYPE_CHECKING:
    from bridge.bus.shared import Buses


class Worker(Sessions[StreamSpec]):
    """Runs one stream until it is stopped or fenced."""

    def __init__(
        self,
        plan: StreamSpec,
        watcher: Watcher,
        guard: FailureGuard,
        ended: Callable[[], None],
        buses: Buses | None,
        *,
        outlives: Callable[[], bool] = bool,
    ) -> None:
        super().__init__(f"stream {plan.stream}", plan, watcher, ended, outlives)
        self.watcher = watcher
        self._guard = guard
        self._buses = buses
        self._pace = Pace(plan.max_events)
        self._doubted: StreamSpec | None = None
        self._shaped: StreamSpec | None = None  # the plan for which _shapes were read
        self._shapes: Mapping[Unit, TableShape] = {}
        self._published: Publications | None = None  # of one plan, across its sessions
        self._publishes: StreamSpec | None = None  # that plan

    def close(self) -> None:
        if self._published is not None:
            self._published.close()

    def session(self) -> None:
        plan = self.plan
        engine: Engine | None = None
        source = Beside(partial(open_source, plan), f"source {plan.stream}")
        link: Beside[TargetLink] | None = None
        try:
            with connect_catalog(plan) as target:  # a password that is refused is not tried twice at once
                link = Beside(partial(open_link, plan), f"target {plan.stream}")
                planner, doubts = examine_target(plan, target)
            self._tell_altered(planner)
            self._doubt(doubts)
            self._pace.at_most(plan.max_events)
            engine = Engine(
                plan,
                planner,
                self._guard,
                self._pace,
                self.watcher,
                control=source.result(),
                link=link.result(),
                published=self._publications(),
                waker=self._waker,
                stop=self._session_over.is_set,
                buses=self._buses,
            )
            drive(session(self._settings()), engine)
        finally:
            if engine is not None:
                engine.close()
            else:
                source.abandon()
                if link is not None:
                    link.abandon()

    def stand_by(self, seconds: float) -> None:
        standing_by = partial(self.watcher.phase, "standby")
        await_end(self.plan, seconds, self._slept, standing_by)

    def failed_with(self, error: BridgeError) -> BridgeError:
        self._brake()
        if error.reason == "outbox_changed":
            return self._given_up_renamed() or error
        return error

    def _publications(self) -> Publications:
        plan, found = self.plan, self._published
        if found is None or self._publishes is not plan:
            if found is not None:
                found.close()
            told, done = self.watcher.published, self._waker.nudge
            found = Publications(plan.owner, plan.pipelines, plan.buses, told=told, done=done)
            self._published, self._publishes = found, plan
        return found

    def _tell_altered(self, planner: Planner) -> None:
        """What is different in the target's tables since the last session of this plan."""
        shapes = planner.shapes()
        if self._shaped is self.plan:
            for table, what in differences(self._shapes, shapes):
                self.watcher.altered(table, what)
        self._shaped, self._shapes = self.plan, shapes

    def _doubt(self, of_target: Sequence[Finding]) -> None:
        """Once per plan."""
        plan = self.plan
        if self._doubted is plan:
            return
        if plan.strict:
            refuse_powers(plan)
        tell_later(plan, self.watcher, self._stopping)
        for found in of_target:
            self.watcher.log("the target's table may cost events", what=found.message, fix=found.fix)
        self._doubted = plan

    def _brake(self) -> None:
        """The WAL brake: a stream that cannot continue must not fill the source's disk. Drop its slot; the events
        stay in the outbox, and catch-up delivers them."""
        if not self.plan.outbox.has_xid:
            return
        try:
            given_up = give_up_slot(self.plan.source_dsn, self.plan.stream, self.plan.max_retained_wal)
        except (psycopg.Error, BridgeError):
            return  # the source is away too: next time
        if given_up:
            self.watcher.retried("wal_brake")
            self.watcher.log("wal brake: slot dropped", slot=given_up, limit=self.plan.max_retained_wal)

    def _given_up_renamed(self) -> BridgeError | None:
        """A column of the outbox had another name for a time, and keeps it in the slot's WAL. Drop the slot;
        catch-up reads the table, where the column has its name. Not where the table cannot bring what the slot
        would."""
        plan = self.plan
        if not plan.outbox.has_xid:
            return None
        try:
            with connect(plan.source_dsn, SOURCE, f"check/{plan.stream}") as source:
                known = registered(source, plan.stream)
                floor = NOTHING if known is None else parse_snapshot(known["floor"])
                foreign = foreign_rows(source, plan.outbox, floor)
            if floor == NOTHING:
                return None  # the table cannot say what the slot would bring
            if foreign is not None:
                return foreign_xids(foreign)
            slot = give_up_renamed_slot(plan.source_dsn, plan.stream, plan.outbox)
        except (psycopg.Error, BridgeError):
            return None  # the halt stays; it is checked again
        if slot is None:
            return None
        return Retry(
            f"the outbox or a column was renamed and is back: slot {slot} was dropped; "
            "catching up from the table",
            reason="outbox_changed",
        )

    def _settings(self) -> StreamSettings:
        plan = self.plan
        return StreamSettings(
            stream=plan.stream,
            slot=plan.log.relay if plan.log is not None else plan.stream,
            session=str(uuid.uuid4()),
            capture=plan.capture,
            since=plan.since,
            has_xid=plan.outbox.has_xid,
            partitions=plan.log.partitions if plan.log is not None else None,
        )
