"""The protocol's requests to the target: fence, ledger, batches. What a batch turns into is planned here,
with its lookups, because planning overlaps with the commit in flight.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Mapping
from typing import Any, Protocol

import psycopg

from bridge.failpoints import hit
from bridge.planning.lookup import Lookup
from bridge.planning.plan import Planned
from bridge.planning.planner import answered
from bridge.postgres import ledger as ledger_sql
from bridge.postgres.entities import Enricher
from bridge.postgres.outbox import decoded
from bridge.postgres.source import Source
from bridge.postgres.target import BEGIN, COMMIT, ROLLBACK, Refused, Statement
from bridge.protocol import requests as ask
from bridge.protocol.batch import Listed, listed
from bridge.protocol.facts import Ledger, Mode, TargetFacts
from bridge.stream.guard import FailureGuard
from bridge.stream.prepared import PlannedBatch, encode, take_refused
from bridge.stream.sockets import Sockets
from bridge.stream.spec import StreamSpec, Watcher
from bridge.stream.transaction import Transactions

_LATELY_SECONDS = 3.0


class Plans(Protocol):
    """The planner: a generator that asks for lookups."""

    def plan(self, events: Any) -> Generator[Lookup, Mapping[Any, Mapping[str, Any]], Any]: ...


class TargetSide:
    """One session's target. Handlers of requests bear the request's name."""

    def __init__(
        self,
        plan: StreamSpec,
        planner: Plans,
        source: Source,
        sockets: Sockets,
        *,
        storm: FailureGuard,
        watcher: Watcher,
    ) -> None:
        self._plan = plan
        self._planner = planner
        self._source = source  # asked whether a transaction is visible yet
        self._link = sockets.link
        self._sockets = sockets
        self._watcher = watcher
        self._enricher = Enricher(plan.dsns, plan.stream, watcher.enriched)
        self._transactions = Transactions(
            plan.stream,
            sockets.link,
            storm,
            wait=sockets.wait_for_target,
            pause=sockets.pause,
            retried=watcher.retried,
            allow_storm=plan.allow_storm,
        )
        self._prepared: PlannedBatch | None = None
        self._sent: deque[tuple[float, Ledger]] = deque()  # when, and what the ledger becomes
        self._judged = False

    @property
    def arrived(self) -> bool:
        """The answer to what was sent last is complete."""
        return self._transactions.arrived

    def close(self) -> None:
        self._enricher.close()

    def _prefix(self) -> bytes:
        """What the application_name of a working session of this stream starts with (Postgres keeps 63 bytes)."""
        return f"bridge/{self._plan.stream}/".encode()[:63]

    def _lately(self) -> float:
        """Seconds within which a bridge that works on this stream says something to the target."""
        return _LATELY_SECONDS + (0 if self._plan.capture == "slot" else 3 * self._plan.poll_interval)

    def _run(self, *statements: Statement) -> list[list[tuple[bytes | None, ...]]]:
        try:
            return self._link.run(statements, self._sockets.wait_for_target)
        except Refused as refused:
            if self._link.in_transaction:
                self._link.run([ROLLBACK], self._sockets.wait_for_target)
            raise refused.error from None

    def read_target(self, _: ask.ReadTarget) -> TargetFacts:
        stream = self._plan.stream.encode()
        identity, rows, busy = self._run(
            Statement(ledger_sql.IDENTITY),
            Statement(ledger_sql.READ, [stream]),
            Statement(ledger_sql.BUSY, [self._prefix(), b"%f" % self._lately()]),
        )
        system, database = identity[0]
        return TargetFacts(
            (system or b"").decode(),
            (database or b"").decode(),
            ledger_sql.read_row(rows[0]) if rows else None,
            busy[0][0] == b"t",
        )

    def fence(self, request: ask.Fence) -> Ledger | None:
        hit("session.start")
        stream, session = self._plan.stream.encode(), request.session.encode()
        since = request.since.encode() if request.since else None
        create = [Statement(ledger_sql.CREATE, [stream, session, since])] if request.create else []
        fence = [BEGIN, *create, Statement(ledger_sql.FENCE, [stream, session]), COMMIT]
        try:
            answer = self._run(*fence)
        except psycopg.errors.LockNotAvailable:  # a session of ours that is stuck holds the row
            self._run(Statement(ledger_sql.EVICT, [self._prefix()]))
            answer = self._run(*fence)
        if not answer[-2]:
            return None
        ledger = ledger_sql.read_row(answer[-2][0])
        name = f"bridge/{self._plan.stream}/{ledger.epoch}"
        self._run(Statement(b"select set_config('application_name', $1, false)", [name.encode()]))
        self._watcher.phase("starting", ledger)
        hit("session.fenced")
        return ledger

    def save(self, request: ask.Save) -> None:
        stream = self._plan.stream
        more = [ledger_sql.thin(stream, request.thin)] if request.thin is not None else []
        if request.forget_above is not None:
            more.append(ledger_sql.forget_above(stream, request.forget_above))
        if request.after.mode is Mode.CATCHUP:
            self._watcher.phase("catchup", request.after)
        self._transactions.save(request.before, request.after, more)
        self._watcher.saved(request.after)
        if not self._judged:
            self._judged = True
            hit("session.judged")
        if request.before.mode is not request.after.mode:
            self._watcher.log("mode", mode=request.after.mode.value, before=request.before.mode.value)

    def prepare(self, request: ask.Prepare) -> None:
        hit("plan.before")
        events = request.batch.events
        planning = self._planner.plan(decoded(events) if self._plan.outbox.is_foreign else events)
        xids = request.batch.xids
        planned = answered(planning, lambda lookup: self._look_up(lookup, xids))
        if planned.keeps:
            self._keep(planned)
        self._prepared = encode(self._plan.stream, request.batch, planned, self._transactions.met)
        hit("plan.done")

    def _keep(self, planned: Planned) -> None:
        """Write entities to the source before the target hears of the batch: after a crash in between, the batch is
        planned again, and what is written already stays as it is."""
        refused = self._sockets.result_of(self._enricher.keep(planned.keeps, self._sockets.waker.nudge))
        take_refused(planned, refused, self._plan.entities)
        hit("entity.written")

    def _look_up(self, lookup: Lookup, xids: list[int]) -> dict[Any, Mapping[str, Any]]:
        """The rows that exist. A row that is not there while a transaction of the batch is not visible yet
        is asked for again: the stream can run ahead of visibility."""
        hit("plan.lookup")
        found, wanted = self._enricher.cached(lookup)
        while wanted:
            rows = self._sockets.result_of(self._enricher.fetch(lookup, wanted, self._sockets.waker.nudge))
            found.update((key, rows[str(key)]) for key in wanted if str(key) in rows)
            wanted = [key for key in wanted if str(key) not in rows]
            if not wanted or lookup.entity.source != "source":
                break
            if self._source.visible(xids):
                rows = self._sockets.result_of(
                    self._enricher.fetch(lookup, wanted, self._sockets.waker.nudge)
                )
                found.update((key, rows[str(key)]) for key in wanted if str(key) in rows)
                break
            self._sockets.pause(0.002)
        return found

    def apply(self, request: ask.Apply) -> None:
        prepared = self._prepared
        if prepared is None or prepared.batch is not request.batch:
            raise RuntimeError("the protocol applies what it prepared last")
        self._prepared = None
        self._sent.append((time.monotonic(), request.after))
        if request.batch.commit_times:
            self._watcher.pending(request.batch.commit_times[0] / 1_000_000)
        self._transactions.send(prepared, request.before, request.after, request.list_as, request.thin)

    def settle(self, _: ask.Settle) -> None:
        done = self._transactions.settle()
        now = time.monotonic()
        began, ledger = self._sent[0][0], self._sent[-1][1]
        self._sent.clear()
        for prepared in done:
            planned = prepared.planned
            outcomes = planned.outcomes.copy()
            for letter in prepared.dead:
                outcomes[letter.pipeline, "applied"] -= 1
                outcomes[letter.pipeline, "dead"] += 1
            batch = prepared.batch
            self._watcher.applied(ledger, outcomes, batch, now - began)
            if planned.deliveries:
                self._watcher.deliveries(len(planned.deliveries))
            for letter in prepared.dead_letters:
                self._watcher.log(
                    "dead letter",
                    pipeline=letter.pipeline,
                    destination=letter.destination,
                    event_id=letter.event.id.decode(errors="replace"),
                    code=letter.code,
                    cause=letter.cause,
                )
        self._watcher.pending(None)

    def read_applied(self, request: ask.ReadApplied) -> Listed:
        incarnation = None if request.except_incarnation is None else b"%d" % request.except_incarnation
        rows = self._run(Statement(ledger_sql.LISTED, [self._plan.stream.encode(), incarnation]))[0]
        return listed(map(ledger_sql.read_listed, rows))
