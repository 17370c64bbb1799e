"""Perform the protocol's requests on real servers. One session, one thread, which owns every socket.

What waits, waits here: for the stream, the target's answer, an enrichment or a slot being made, all in one
poll, so that keepalives are answered whatever is slow.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

import psycopg

from bridge.apply.stream_plan import StreamPlan, Watcher
from bridge.apply.transaction import Prepared, Transactions, encode
from bridge.core import requests as ask
from bridge.core.ledger import Ledger, Mode, Registration, TargetFacts
from bridge.core.lsn import Lsn
from bridge.core.pgoutput import Decoder
from bridge.core.plan import Lookup
from bridge.core.protocol import POLLED
from bridge.core.snapshot import Snapshot
from bridge.core.storm import Storm
from bridge.errors import Retry
from bridge.failpoints import hit
from bridge.postgres import ledger as ledger_sql
from bridge.postgres import wire
from bridge.postgres.enrich import Enricher
from bridge.postgres.listen import Listener
from bridge.postgres.outbox import MissingReader, decoded
from bridge.postgres.replication import ReplicationStream
from bridge.postgres.slots import SlotMaker, drop_slot
from bridge.postgres.source import Source, connect_source, require_outbox
from bridge.postgres.target import BEGIN, COMMIT, ROLLBACK, Refused, Statement, TargetLink

TICK_SECONDS = 1.0
_STATUS_SECONDS = 5.0
_SILENCE_SECONDS = 60.0  # a stream that says nothing, though asked every second, is a half-open link
_TARGET_SECONDS = 90.0  # beyond the target's statement_timeout: nobody is there
_LATELY_SECONDS = 3.0
_WORTHWHILE = 500  # events worth planning while the commit before is in flight


class Stopped(Exception):
    """Asked to end at a point where nothing is in flight."""


class Plans(Protocol):
    """The planner: a generator that asks for lookups."""

    def plan(self, events: Any) -> Generator[Lookup, Mapping[Any, Mapping[str, Any]], Any]: ...


class _Closing(Protocol):
    def close(self) -> None: ...


Closes = TypeVar("Closes", bound=_Closing)


class Engine:
    """One session's servers. perform() answers a request; close() lets everything go."""

    def __init__(
        self,
        plan: StreamPlan,
        planner: Plans,
        storm: Storm,
        watcher: Watcher,
        *,
        waker: wire.Waker,
        stop: Callable[[], bool],
    ) -> None:
        self._plan = plan
        self._planner = planner
        self._watcher = watcher
        self._waker = waker
        self._stop = stop
        self._storm = storm
        self._closers: list[Callable[[], None]] = []
        self._source = self._opened(Source(plan.source_dsn, plan.stream, plan.outbox, plan.publication))
        require_outbox(self._source.connection, plan.outbox)
        self._link = self._opened(TargetLink(plan.target_dsn, f"bridge-start/{plan.stream}"))
        self._enricher = self._opened(Enricher(plan.dsns, plan.stream, watcher.enriched))
        self._transactions = self._transactions_of()
        self._reader: MissingReader | None = None
        self._maker: SlotMaker | None = None
        self._listener: Listener | None = None
        self._stream: ReplicationStream | None = None
        self._slot: str | None = None
        self._decoder = self._new_decoder()
        self._position = Lsn(0)
        self._judged = False
        self._next_tick = 0.0
        self._prepared: Prepared | None = None
        self._sent: deque[tuple[float, Ledger]] = deque()  # when, and what the ledger becomes
        self._handlers = self._table()

    def _opened(self, thing: Closes) -> Closes:
        self._closers.append(thing.close)
        return thing

    def _new_decoder(self) -> Decoder:
        plan = self._plan
        return Decoder(
            plan.outbox.schema,
            plan.outbox.table,
            plan.outbox.columns,
            max_events=plan.max_events,
            max_bytes=plan.max_bytes,
        )

    def _transactions_of(self) -> Transactions:
        return Transactions(
            self._plan.stream,
            self._link,
            self._storm,
            wait=self._wait_for_target,
            pause=self._pause,
            retried=self._watcher.retried,
            allow_storm=self._plan.allow_storm,
        )

    def _table(self) -> dict[type, Callable[[Any], Any]]:
        return {
            ask.ReadTarget: self._read_target,
            ask.Fence: self._fence,
            ask.Save: self._save,
            ask.Prepare: self._prepare,
            ask.Apply: self._apply,
            ask.Settle: self._settle,
            ask.ReadApplied: self._read_applied,
            ask.ReadRegistration: lambda _: self._source.registration(),
            ask.Register: self._register,
            ask.ReadPruned: lambda _: self._source.pruned(),
            ask.ReadSource: lambda r: self._source.facts(r.slot, r.witness_id, r.witness_xid),
            ask.BeginSlot: self._begin_slot,
            ask.SlotMade: self._slot_made,
            ask.DropSlot: self._drop_slot,
            ask.TakeSnapshot: lambda _: self._source.take_snapshot(),
            ask.StillRunning: self._still_running,
            ask.ReadMissing: self._read_missing,
            ask.OpenStream: self._open_stream,
            ask.Receive: self._receive,
            ask.Observe: self._observe,
            ask.Confirm: self._confirm,
            ask.Wait: self._wait_to_poll,
        }

    def perform(self, request: ask.Request[Any]) -> Any:
        """Do one thing. Raises BridgeError, psycopg.Error, or Stopped."""
        return self._handlers[type(request)](request)

    def close(self) -> None:
        if self._maker is not None:
            self._maker.abandon()
        for close in reversed(self._closers):
            try:
                close()
            except Exception as error:
                self._watcher.log("close", error=type(error).__name__)

    # --- the target -------------------------------------------------------------------------------

    def _prefix(self) -> bytes:
        """What the application_name of a working session of this stream starts with (Postgres keeps 63 bytes)."""
        return f"bridge/{self._plan.stream}/".encode()[:63]

    def _lately(self) -> float:
        """Seconds within which a bridge that works on this stream says something to the target."""
        return _LATELY_SECONDS + (0 if self._plan.capture == "slot" else 3 * self._plan.poll_interval)

    def _run(self, *statements: Statement) -> list[list[tuple[bytes | None, ...]]]:
        try:
            return self._link.run(statements, self._wait_for_target)
        except Refused as refused:
            if self._link.in_transaction:
                self._link.run([ROLLBACK], self._wait_for_target)
            raise refused.error from None

    def _read_target(self, _: ask.ReadTarget) -> TargetFacts:
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

    def _fence(self, request: ask.Fence) -> Ledger | None:
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

    def _save(self, request: ask.Save) -> None:
        stream = self._plan.stream
        more = [ledger_sql.thin(stream, request.thin)] if request.thin is not None else []
        if request.polled:
            xids = sorted(request.polled)
            lsns = [request.after.floor_lsn] * len(xids)
            more.append(ledger_sql.list_applied(stream, POLLED, xids, lsns))
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

    def _prepare(self, request: ask.Prepare) -> None:
        hit("plan.before")
        events = request.batch.events
        planning = self._planner.plan(decoded(events) if self._plan.outbox.is_foreign else events)
        xids = request.batch.xids
        try:
            lookup = next(planning)
            while True:
                hit("plan.lookup")
                lookup = planning.send(self._look_up(lookup, xids))
        except StopIteration as finished:
            planned = finished.value
        self._prepared = encode(self._plan.stream, request.batch, planned)
        hit("plan.done")

    def _look_up(self, lookup: Lookup, xids: list[int]) -> dict[Any, Mapping[str, Any]]:
        """The rows that exist. A row that is not there while a transaction of the batch is not visible yet
        is asked for again: the stream can run ahead of visibility."""
        found, wanted = self._enricher.cached(lookup)
        while wanted:
            rows = self._await(self._enricher.fetch(lookup, wanted, self._waker.nudge))
            found.update((key, rows[str(key)]) for key in wanted if str(key) in rows)
            wanted = [key for key in wanted if str(key) not in rows]
            if not wanted or lookup.entity.source != "source":
                break
            if self._source.visible(xids):
                rows = self._await(self._enricher.fetch(lookup, wanted, self._waker.nudge))
                found.update((key, rows[str(key)]) for key in wanted if str(key) in rows)
                break
            self._pause(0.002)
        return found

    def _apply(self, request: ask.Apply) -> None:
        prepared = self._prepared
        if prepared is None or prepared.batch is not request.batch:
            raise RuntimeError("the protocol applies what it prepared last")
        self._prepared = None
        self._sent.append((time.monotonic(), request.after))
        if request.batch.commit_times:
            self._watcher.pending(request.batch.commit_times[0][0] / 1_000_000)
        self._transactions.send(prepared, request.before, request.after, request.list_as, request.thin)

    def _settle(self, _: ask.Settle) -> None:
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
            self._watcher.applied(ledger, outcomes, batch.commit_times, len(batch.events), now - began)
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

    def _read_applied(self, request: ask.ReadApplied) -> frozenset[int]:
        incarnation = None if request.except_incarnation is None else b"%d" % request.except_incarnation
        rows = self._run(Statement(ledger_sql.LISTED, [self._plan.stream.encode(), incarnation]))[0]
        return frozenset(int(row[0] or 0) for row in rows)

    # --- the source -------------------------------------------------------------------------------

    def _register(self, request: ask.Register) -> None:
        hit("registry.before")
        registration: Registration = request.registration
        self._source.register(registration)
        hit("registry.written")

    def _begin_slot(self, request: ask.BeginSlot) -> None:
        hit("slot.before")
        drop_slot(self._source.connection, request.name)
        self._watcher.log("making a slot", slot=request.name)
        self._maker = SlotMaker(self._plan.source_dsn, self._plan.stream, request.name, self._waker.nudge)
        self._maker_asked = 0

    def _slot_made(self, _: ask.SlotMade) -> tuple[Lsn, Snapshot] | None:
        if self._maker is None:
            raise RuntimeError("no slot was begun")
        made = self._maker.made()
        if made is None:
            self._pause(0.05 if self._maker_asked == 0 else 0.5)
            self._maker_asked += 1
            made = self._maker.made()
        if made is None:
            if self._maker_asked > 1:
                self._watcher.waiting(self._source.holding_up())
            return None
        self._maker = None
        self._watcher.waiting("")
        hit("slot.made")
        return made

    def _drop_slot(self, request: ask.DropSlot) -> None:
        drop_slot(self._source.connection, request.name)
        hit("slot.dropped")

    def _still_running(self, request: ask.StillRunning) -> bool:
        running = self._source.still_running(request.snapshot)
        if running:
            self._pause(0.05)
        return running

    def _read_missing(self, request: ask.ReadMissing) -> ask.Missing:
        self._stop_if_asked()
        if self._reader is None:
            connection = connect_source(self._plan.source_dsn, self._plan.stream, timeout="0")
            self._closers.append(connection.close)
            self._reader = MissingReader(connection, self._plan.outbox, self._plan.max_events)
        missing = self._reader.read(request)
        hit("missing.read")
        if missing.batch.events:
            self._watcher.pending(None)
        return missing

    def _wait_to_poll(self, _: ask.Wait) -> bool:
        hit("poll.wait")
        self._watcher.pending(None)
        self._watcher.phase("polling")
        if self._listener is None:
            self._listener = self._opened(Listener(self._plan.source_dsn, self._plan.stream))
            self._watcher.log("polling", wakes_by="notify" if self._listener.descriptor else "timer")
        if not self._stop():
            readable = [self._waker.descriptor]
            if self._listener.descriptor is not None:
                readable.append(self._listener.descriptor)
            ready = wire.wait(readable, [], self._plan.poll_interval)
            self._waker.drain()
            if len(ready) > 1 or self._waker.descriptor not in ready:
                self._listener.drain()
        return self._stop()

    # --- the stream -------------------------------------------------------------------------------

    def _open_stream(self, request: ask.OpenStream) -> None:
        hit("stream.opening")
        plan = self._plan
        self._slot = request.slot
        self._stream = ReplicationStream(
            plan.source_dsn, plan.stream, request.slot, plan.publication, request.start
        )
        self._closers.append(self._stream.close)
        self._position = request.start
        self._watcher.phase("streaming", slot=request.slot)
        hit("stream.opened")

    def _receive(self, _: ask.Receive) -> ask.Received:
        stream, decoder = self._stream, self._decoder
        if stream is None:
            raise RuntimeError("the stream is not open")
        while True:
            if self._stop():
                return ask.Received(None, self._position, stop=True)
            tick = time.monotonic() >= self._next_tick
            if tick:
                self._next_tick = time.monotonic() + TICK_SECONDS
            if not decoder.behind:
                stream.pump(decoder.feed, self._full)
            self._answer(stream)
            settled = self._transactions.arrived
            batch = self._next_batch()
            if batch is not None:
                hit("stream.received")
                if batch.whole:
                    self._position = batch.end_lsn
                return ask.Received(batch, self._position, settled, tick)
            if decoder.drained:
                self._position = max(self._position, decoder.wal_end)
            if tick:
                stream.status(self._position, reply=True)
            if tick or settled:
                return ask.Received(None, self._position, settled, tick)
            self._wait(self._next_tick - time.monotonic())

    def _next_batch(self) -> Any:
        """The next batch: at once when the target is idle; while it is busy, only what is worth planning."""
        decoder = self._decoder
        if decoder.ready or not self._link.busy or decoder.collected >= _WORTHWHILE:
            return decoder.take()
        return None

    def _full(self) -> bool:
        return self._decoder.behind

    def _answer(self, stream: ReplicationStream) -> None:
        """Keep the walsender content, and notice when it is gone without a word."""
        if self._decoder.reply_wanted or stream.status_due(_STATUS_SECONDS):
            self._decoder.reply_wanted = False
            stream.status(self._position)
        if self._decoder.behind:  # we do not read now: silence says nothing
            stream.last_heard = time.monotonic()
        if time.monotonic() - stream.last_heard > _SILENCE_SECONDS:
            raise Retry("the source has been silent for a minute though asked: the link is dead")

    def _observe(self, request: ask.Observe) -> ask.Observation:
        hit("observe.before")
        seen = self._source.observe(self._slot or "", request.position)
        health = self._source.health
        if health is not None and health.retained > self._plan.max_retained_wal and self._plan.outbox.has_xid:
            raise Retry(
                f"slot {self._slot} holds back {health.retained} bytes of WAL, more than source.max_retained_wal",
                reason="wal_brake",
            )
        hit("observe.done")
        return seen

    def _confirm(self, request: ask.Confirm) -> None:
        hit("confirm.before")
        if self._stream is not None:
            self._stream.confirm(request.lsn)
        self._watcher.observed(self._source.health, request.lsn)
        hit("confirm.sent")

    # --- waiting ----------------------------------------------------------------------------------

    def _wait(self, seconds: float) -> None:
        """Until a socket has something, somebody nudges, or `seconds` have passed."""
        readable = [self._waker.descriptor]
        writable = []
        if self._stream is not None and not self._decoder.behind:
            readable.append(self._stream.descriptor)
        if self._link.busy:
            readable.append(self._link.descriptor)
            if self._link.wants_write:
                writable.append(self._link.descriptor)
        ready = wire.wait(readable, writable, min(seconds, TICK_SECONDS))
        if self._waker.descriptor in ready:
            self._waker.drain()
        if self._link.busy and self._link.descriptor in ready:
            self._link.pump()

    def _wait_for_target(self) -> None:
        """While the target works: go on reading the stream, within bounds, and answer its keepalives."""
        stream = self._stream
        if stream is not None:
            if not self._decoder.behind:
                stream.pump(self._decoder.feed, self._full)
            self._answer(stream)
        if self._link.silent_for > _TARGET_SECONDS:
            raise Retry("the target has not answered for 90 s: the link is dead", reason="target_lost")
        self._wait(TICK_SECONDS)

    def _pause(self, seconds: float) -> None:
        end = wire.deadline(seconds)
        while (left := end - time.monotonic()) > 0:
            self._stop_if_asked()
            if self._stream is not None:
                self._answer(self._stream)
            self._wait(left)

    def _await(self, future: Future[Any]) -> Any:
        """The result of something in another thread, which nudges when it is done."""
        while not future.done():
            if self._stream is not None:
                self._answer(self._stream)
            self._wait(TICK_SECONDS)
        return future.result()

    def _stop_if_asked(self) -> None:
        if self._stop():
            raise Stopped
