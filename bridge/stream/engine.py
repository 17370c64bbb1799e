"""Performs the protocol's requests on real servers: one typed method per request. One session, one thread.

This module shows a batch's way from top to bottom: `receive` reads it from the slot, `prepare` plans it (with its
lookups) while the previous commit is in flight, `apply` sends it, `settle` waits until it is durable, `confirm` tells
the slot. Requests that occur once per session are in checkpoint.py (the target) and source_side.py.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, TypeVar

from bridge.failpoints import hit
from bridge.planning.lookup import Answer, Lookup
from bridge.planning.plan import Planned
from bridge.planning.planner import answered
from bridge.planning.spec import Unit
from bridge.postgres import wire
from bridge.postgres.connect import connect
from bridge.postgres.entities import Enricher
from bridge.postgres.outbox import decoded
from bridge.postgres.own_outbox import require_columns
from bridge.postgres.parts import group_of
from bridge.postgres.profiles import CATALOG
from bridge.postgres.progress import former
from bridge.postgres.replication import ReplicationStream
from bridge.postgres.source import Source, require_outbox
from bridge.postgres.target import TargetLink
from bridge.postgres.versions import refuse_newer
from bridge.protocol import requests as ask
from bridge.protocol.events import Batch, Event, Listed, Lsn, SeqOrder, Snapshot
from bridge.protocol.facts import Ledger, Pruned, Registration, SourceFacts, TargetFacts
from bridge.protocol.preflight import check_layout
from bridge.stream.checkpoint import Checkpoint
from bridge.stream.decode import Decoder
from bridge.stream.pace import Pace
from bridge.stream.planned import FailureGuard, PlannedBatch, encode, take_refused
from bridge.stream.published import Publications
from bridge.stream.relation import Layout
from bridge.stream.renumber import bounds, drawn_ahead, numbered, read_again, renumber
from bridge.stream.sockets import QUIET_SECONDS, QUIET_TICK_SECONDS, TICK_SECONDS, Sockets
from bridge.stream.source_side import SourceSide
from bridge.stream.spec import StreamSpec, Watcher
from bridge.stream.transaction import Transactions

# Plan ahead only batches of at least this many events. A batch has a fixed cost; a smaller one had better wait for the
# events that arrive while the previous one commits.
_WORTHWHILE = 500

# Seconds that a session waits for the columns of its lookups, asked since it began. A server that does not answer by
# then is no reason to keep the others waiting: what it says later still counts.
_PATIENCE = 0.5

# Seconds between two questions whether the log has a look of the relay; meanwhile the table is polled.
_LOOKING_SECONDS = 0.3


if TYPE_CHECKING:
    from bridge.bus.shared import Buses
    from bridge.stream.log_side import LogSide


class Plans(Protocol):
    """The planner: a generator that asks for lookups."""

    def plan(self, events: Sequence[Event]) -> Generator[Lookup, Answer, Planned]: ...

    def lookups(self) -> Sequence[Lookup]: ...


def open_source(spec: StreamSpec) -> Source:
    """Connect, and check what a stream needs there. Raises Halt and CannotConnect."""
    relay = spec.log.relay if spec.log is not None else None
    control = Source(spec.source_dsn, spec.stream, spec.outbox, spec.publication, relay=relay)
    try:
        require_outbox(control.connection, spec.outbox)
        refuse_newer(control.connection, "source")
        publication = None if spec.capture == "poll" else spec.publication
        require_columns(control.connection, spec.outbox, publication)
    except BaseException:
        control.close()
        raise
    return control


def open_link(spec: StreamSpec) -> TargetLink:
    """The connection that writes. Raises Halt and CannotConnect."""
    return TargetLink(spec.target_dsn, f"bridge-start/{spec.stream}")


class _Closing(Protocol):
    def close(self) -> None: ...


Closes = TypeVar("Closes", bound=_Closing)


class Engine:
    """One session's servers (protocol/requests.py, Performer). Methods raise BridgeError, psycopg.Error, or Stopped;
    close() closes all connections. control and link: of open_source() and open_link(), and from then on the
    engine's."""

    def __init__(
        self,
        spec: StreamSpec,
        planner: Plans,
        guard: FailureGuard,
        pace: Pace,
        watcher: Watcher,
        *,
        control: Source,
        link: TargetLink,
        published: Publications,
        waker: wire.Waker,
        stop: Callable[[], bool],
        buses: Buses | None = None,
    ) -> None:
        """buses: of the process; not where there is no log."""
        self._spec = spec
        self._owner = spec.owner
        self._planner = planner
        self._pace = pace
        self._watcher = watcher
        self._published = published
        self._closers: list[Callable[[], None]] = []
        outbox = spec.outbox
        self._control = self._opened(control)
        self._link = self._opened(link)
        self._decoder = Decoder(
            outbox.schema, outbox.table, outbox.columns, max_events=pace.batch.now, max_bytes=spec.max_bytes
        )
        self._sockets = Sockets(self._link, self._decoder, waker, stop)
        self._transactions = Transactions(
            spec.stream,
            self._owner,
            self._link,
            guard,
            pace,
            wait=self._sockets.wait_for_target,
            pause=self._sockets.pause,
            retried=watcher.retried,
            troubled=watcher.troubled,
        )
        self._checkpoint = Checkpoint(
            spec, self._link, self._transactions, watcher, wait=self._sockets.wait_for_target
        )
        self._source = self._opened(SourceSide(spec, self._control, self._sockets, watcher, pace))
        self._enricher = self._opened(
            Enricher(
                spec.dsns,
                spec.stream,
                watcher.enriched,
                waits=self._sockets.waits,
                result_of=self._sockets.result_of,
                done=waker.nudge,
            )
        )
        self._enricher.begin_check(planner.lookups())
        self._log: LogSide | None = None
        if spec.log is not None and buses is not None and spec.capture != "poll":
            from bridge.stream.log_side import LogSide  # noqa: PLC0415  only where there is a log

            self._log = self._opened(
                LogSide(spec.log, self._control, buses, watcher, stream=spec.stream, waker=waker)
            )
        self._foreign = outbox.is_foreign
        self._order = SeqOrder() if numbered(self._control.connection, outbox) else None
        self._prepared: PlannedBatch | None = None
        self._sent: deque[tuple[float, Ledger]] = deque()  # when, and what the ledger becomes
        self._next_tick = 0.0
        self._last_batch = time.monotonic()
        self._suppressed: set[Unit] = set()

    def _opened(self, thing: Closes) -> Closes:
        self._closers.append(thing.close)
        return thing

    def close(self) -> None:
        for close in reversed(self._closers):
            try:
                close()
            except Exception as error:
                self._watcher.log("close", error=type(error).__name__)

    # --- a batch's way ------------------------------------------------------------------------------

    def open_stream(self, request: ask.OpenStream) -> None:
        hit("stream.opening")
        spec = self._spec
        self._source.end_reading()
        self._source.slot = request.slot
        self._decoder.expect(Layout(*self._control.layout()))
        if self._log is not None:
            self._log.open(request)
            self._sockets.stream = self._log
        else:
            stream = ReplicationStream(
                spec.source_dsn, spec.stream, request.slot, spec.publication, request.start
            )
            self._sockets.stream = self._opened(stream)
        self._sockets.position = request.start
        self._watcher.phase("streaming", slot=request.slot)
        hit("stream.opened")

    def receive(self, request: ask.Receive) -> ask.Received:
        sockets, decoder = self._sockets, self._decoder
        if not request.wait:
            sockets.wait(0.0)  # what has come goes first, and the end of the stream
        while True:
            if sockets.asked_to_stop():
                return ask.Received(None, sockets.position, stop=True)
            tick = time.monotonic() >= self._next_tick
            if tick:
                quiet = time.monotonic() - self._last_batch >= QUIET_SECONDS
                self._next_tick = time.monotonic() + (QUIET_TICK_SECONDS if quiet else TICK_SECONDS)
                self._enricher.checked()
            sockets.pump()
            settled = self._transactions.arrived
            batch = self._next_batch()
            if batch is not None:
                if self._order is not None:
                    batch = self._in_order(batch, self._order)
                hit("stream.received")
                self._last_batch = time.monotonic()
                self._next_tick = min(self._next_tick, self._last_batch + TICK_SECONDS)
                if batch.whole:
                    sockets.position = batch.end_lsn
                return ask.Received(batch, sockets.position, settled, tick)
            if decoder.drained:
                sockets.position = max(sockets.position, decoder.wal_end)
            if tick and sockets.stream is not None:
                sockets.stream.status(sockets.position, reply=True)
            gap = self._log is not None and self._log.gap
            if tick or settled or gap or not request.wait:
                return ask.Received(None, sockets.position, settled, tick, gap=gap)
            sockets.wait(self._next_tick - time.monotonic())

    def _next_batch(self) -> Batch | None:
        """The next batch: at once if the target is idle; while it is busy, only a batch that is large enough to
        plan."""
        decoder = self._decoder
        if decoder.ready or not self._link.busy or decoder.collected >= _WORTHWHILE:
            return decoder.take()
        return None

    def _in_order(self, batch: Batch, order: SeqOrder) -> Batch:
        """The batch with the seqs that count: the table's, where the sequence went back."""
        if behind := order.behind(batch):
            seqs = renumber(self._control.connection, self._spec.outbox, behind, order.greatest)
            self._watcher.log("seq looked up", rows=len(behind), least=behind[0].bound.seq)
            events = [event._replace(seq=seqs.get(event.id, event.seq)) for event in batch.events]
            batch = replace(batch, events=events)
        order.learn(batch)
        return batch

    def prepare(self, request: ask.Prepare) -> None:
        hit("plan.before")
        batch = request.batch
        planning = self._planner.plan(decoded(batch.events) if self._foreign else batch.events)
        planned = answered(planning, lambda lookup: self._look_up(lookup, batch.xids))
        if planned.keeps:
            self._keep(planned)
        if planned.publications:
            self._published.begin(planned, self._sockets.result_of)
        self._prepared = encode(self._owner, batch, planned, self._transactions.met)
        hit("plan.done")

    def _keep(self, planned: Planned) -> None:
        """Write entities to the source before the target gets the batch: after a crash in between, the batch is
        planned again, and values that are already written do not change."""
        refused = self._enricher.keep(planned.keeps)
        take_refused(planned, refused, self._spec.entities)
        hit("entity.written")

    def _look_up(self, lookup: Lookup, xids: list[int]) -> Answer:
        """The rows that exist. A missing row is looked up again while a transaction of the batch is not visible yet:
        the stream can run ahead of visibility."""
        hit("plan.lookup")
        return self._enricher.answer(lookup, lambda: self._visible(xids))

    def _visible(self, xids: list[int]) -> bool:
        """Whether the source shows these transactions; a moment later where it does not."""
        if self._control.visible(xids):
            return True
        self._sockets.pause(0.002)
        return False

    def apply(self, request: ask.Apply) -> None:
        prepared = self._prepared
        if prepared is None or prepared.batch is not request.batch:
            raise RuntimeError("the protocol applies the batch that it planned last")
        self._prepared = None
        if prepared.planned.publications and self._published.settled(
            prepared.planned, self._sockets.result_of
        ):
            prepared = encode(self._owner, prepared.batch, prepared.planned, self._transactions.met)
        self._sent.append((time.monotonic(), request.after))
        if request.batch.commit_times:
            self._watcher.pending(request.batch.commit_times[0] / 1_000_000)
        self._transactions.send(prepared, request.before, request.after, request.list_as, request.thin)

    def settle(self, request: ask.Settle) -> None:
        done = self._transactions.settle()
        self._decoder.at_most(self._pace.batch.now)
        now = time.monotonic()
        began, ledger = self._sent[0][0], self._sent[-1][1]
        self._sent.clear()
        for prepared in done:
            planned = prepared.planned
            outcomes = defaultdict(int, planned.outcomes)
            for letter in prepared.dead:
                outcomes[letter.pipeline, "applied"] -= 1
                outcomes[letter.pipeline, "dead"] += 1
            for unit, rows in prepared.suppressed.items():
                outcomes[unit[0], "applied"] -= rows
                outcomes[unit[0], "suppressed"] += rows
                self._tell_suppressed(unit)
            if not self._spec.counts_unmatched:
                for left in ("unmatched", "ignored"):
                    outcomes.pop(("", left), None)
            elif planned.unmatched:
                self._watcher.unmatched(planned.unmatched)
            self._watcher.applied(ledger, outcomes, prepared.batch, now - began)
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

    def _tell_suppressed(self, unit: Unit) -> None:
        """Once a session."""
        if unit not in self._suppressed:
            self._suppressed.add(unit)
            self._watcher.log(
                "rows are not stored where they were written: a BEFORE trigger of the table returns NULL for them",
                pipeline=unit[0],
                destination=unit[1],
            )

    def observe(self, request: ask.Observe) -> ask.Observation:
        in_order = self._in_order_now()
        seen = self._source.observe(request)
        if in_order is not None:
            in_order.seen(seen.snapshot)
        return seen

    def _in_order_now(self) -> SeqOrder | None:
        """Where a snapshot that is taken next says what was there before; otherwise the next one will. What is learned
        was drawn before now, and nobody else who has drawn by now is without an xid."""
        order = self._order
        if order is None or not order.waits or drawn_ahead(self._control.connection, self._spec.outbox):
            return None
        return order

    def confirm(self, request: ask.Confirm) -> None:
        hit("confirm.before")
        if self._log is not None:
            self._log.confirm(request.lsn)
        elif self._sockets.stream is not None:
            self._sockets.stream.confirm(request.lsn)
        self._watcher.observed(self._control.health, request.lsn)
        hit("confirm.sent")

    # --- the target, once a session -----------------------------------------------------------------

    def read_target(self, request: ask.ReadTarget) -> TargetFacts:
        return self._checkpoint.facts()

    def fence(self, request: ask.Fence) -> Ledger | None:
        self._enricher.checked(_PATIENCE)
        ledger = self._checkpoint.fence(request)
        if ledger is not None and self._order is not None:
            self._order.begin(bounds(self._control.connection, self._spec.outbox, ledger))
        return ledger

    def save(self, request: ask.Save) -> None:
        self._checkpoint.save(request)

    def read_applied(self, request: ask.ReadApplied) -> Listed:
        return self._checkpoint.applied(request)

    # --- the source, beside the stream --------------------------------------------------------------

    def read_registration(self, request: ask.ReadRegistration) -> Registration | None:
        return self._control.registration()

    def read_former(self, request: ask.ReadFormer) -> tuple[str, ...]:
        spec = self._spec
        with connect(spec.target_dsn, CATALOG, f"bridge-check/{spec.stream}") as target:
            found = former(self._control.connection, target, {spec.stream, *spec.family})
        check_layout(spec.stream, [name for name in found if group_of(name) == spec.name])
        return tuple(dict.fromkeys(map(group_of, found)))

    def register(self, request: ask.Register) -> None:
        self._source.register(request)
        if self._log is not None:
            self._log.session = request.registration.session

    def find_look(self, request: ask.FindLook) -> ask.Seen:
        log = self._with_log()
        self._sockets.stop_if_asked()
        seen = log.find_look(request)
        if seen.look is None:
            self._sockets.pause(_LOOKING_SECONDS)
        return seen

    def ask_again(self, request: ask.AskAgain) -> None:
        self._with_log().ask_again(request)

    def _with_log(self) -> LogSide:
        if self._log is None:
            raise RuntimeError("this stream reads a slot of its own")
        return self._log

    def read_pruned(self, request: ask.ReadPruned) -> Pruned | None:
        return self._control.pruned()

    def read_source(self, request: ask.ReadSource) -> SourceFacts:
        return self._control.facts(request.slot, request.witness_id, request.witness_xid)

    def begin_slot(self, request: ask.BeginSlot) -> None:
        self._source.begin_slot(request)

    def slot_made(self, request: ask.SlotMade) -> tuple[Lsn, Snapshot] | None:
        return self._source.slot_made()

    def drop_slot(self, request: ask.DropSlot) -> None:
        self._source.drop_slot(request)

    def take_snapshot(self, request: ask.TakeSnapshot) -> tuple[Snapshot, Lsn]:
        in_order = self._in_order_now()
        taken = self._control.take_snapshot()
        if in_order is not None:
            in_order.seen(taken[0])
        return taken

    def still_running(self, request: ask.StillRunning) -> bool:
        return self._source.still_running(request)

    def read_missing(self, request: ask.ReadMissing) -> ask.MissingRows:
        missing = self._source.read_missing(request)
        if (order := self._order) is not None:
            behind = [one for one in order.behind(missing.batch) if one.bound.exact]
            if behind:
                renumber(self._control.connection, self._spec.outbox, behind, order.greatest)
                raise read_again()
            order.learn(missing.batch)
        return missing

    def wait(self, request: ask.Wait) -> bool:
        self._enricher.checked()
        self._watcher.waiting("")  # everything that is visible is applied
        return self._source.wait_to_poll()
