"""Perform the protocol's requests on real servers. One session, one thread, which owns every socket.

What concerns one server stands in target_side.py and source_side.py, how to wait for both in sockets.py;
here the stream itself is read, and each request finds its handler.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from bridge.failpoints import hit
from bridge.postgres import wire
from bridge.postgres.replication import ReplicationStream
from bridge.postgres.source import Source, require_outbox
from bridge.postgres.target import TargetLink
from bridge.protocol import requests as ask
from bridge.protocol.events import Batch
from bridge.stream.decode import Decoder
from bridge.stream.guard import FailureGuard
from bridge.stream.sockets import TICK_SECONDS, Sockets
from bridge.stream.source_side import SourceSide
from bridge.stream.spec import StreamSpec, Watcher
from bridge.stream.target_side import Plans, TargetSide

_WORTHWHILE = 500  # events worth planning while the commit before is in flight


class _Closing(Protocol):
    def close(self) -> None: ...


Closes = TypeVar("Closes", bound=_Closing)


class Engine:
    """One session's servers. perform() answers a request; close() lets everything go."""

    def __init__(
        self,
        plan: StreamSpec,
        planner: Plans,
        storm: FailureGuard,
        watcher: Watcher,
        *,
        waker: wire.Waker,
        stop: Callable[[], bool],
    ) -> None:
        self._plan = plan
        self._watcher = watcher
        self._closers: list[Callable[[], None]] = []
        control = self._opened(Source(plan.source_dsn, plan.stream, plan.outbox, plan.publication))
        require_outbox(control.connection, plan.outbox)
        link = self._opened(TargetLink(plan.target_dsn, f"bridge-start/{plan.stream}"))
        outbox = plan.outbox
        self._decoder = Decoder(
            outbox.schema, outbox.table, outbox.columns, max_events=plan.max_events, max_bytes=plan.max_bytes
        )
        self._link = link
        self._sockets = Sockets(link, self._decoder, waker, stop)
        self._target = self._opened(
            TargetSide(plan, planner, control, self._sockets, storm=storm, watcher=watcher)
        )
        self._source = self._opened(SourceSide(plan, control, self._sockets, watcher))
        self._next_tick = 0.0
        self._handlers = self._table(control)

    def _opened(self, thing: Closes) -> Closes:
        self._closers.append(thing.close)
        return thing

    def _table(self, control: Source) -> dict[type, Callable[[Any], Any]]:
        target, source = self._target, self._source
        return {
            ask.ReadTarget: target.read_target,
            ask.Fence: target.fence,
            ask.Save: target.save,
            ask.Prepare: target.prepare,
            ask.Apply: target.apply,
            ask.Settle: target.settle,
            ask.ReadApplied: target.read_applied,
            ask.ReadRegistration: lambda _: control.registration(),
            ask.Register: source.register,
            ask.ReadPruned: lambda _: control.pruned(),
            ask.ReadSource: lambda r: control.facts(r.slot, r.witness_id, r.witness_xid),
            ask.BeginSlot: source.begin_slot,
            ask.SlotMade: source.slot_made,
            ask.DropSlot: source.drop_slot,
            ask.TakeSnapshot: lambda _: control.take_snapshot(),
            ask.StillRunning: source.still_running,
            ask.ReadMissing: source.read_missing,
            ask.OpenStream: self._open_stream,
            ask.Receive: self._receive,
            ask.Observe: source.observe,
            ask.Confirm: self._confirm,
            ask.Wait: source.wait_to_poll,
        }

    def perform(self, request: ask.Request[Any]) -> Any:
        """Do one thing. Raises BridgeError, psycopg.Error, or Stopped."""
        return self._handlers[type(request)](request)

    def close(self) -> None:
        for close in reversed(self._closers):
            try:
                close()
            except Exception as error:
                self._watcher.log("close", error=type(error).__name__)

    def _open_stream(self, request: ask.OpenStream) -> None:
        hit("stream.opening")
        plan = self._plan
        self._source.slot = request.slot
        stream = ReplicationStream(
            plan.source_dsn, plan.stream, request.slot, plan.publication, request.start
        )
        self._sockets.stream = self._opened(stream)
        self._sockets.position = request.start
        self._watcher.phase("streaming", slot=request.slot)
        hit("stream.opened")

    def _receive(self, _: ask.Receive) -> ask.Received:
        sockets, decoder = self._sockets, self._decoder
        while True:
            if sockets.asked_to_stop():
                return ask.Received(None, sockets.position, stop=True)
            tick = time.monotonic() >= self._next_tick
            if tick:
                self._next_tick = time.monotonic() + TICK_SECONDS
            sockets.pump()
            settled = self._target.arrived
            batch = self._next_batch()
            if batch is not None:
                hit("stream.received")
                if batch.whole:
                    sockets.position = batch.end_lsn
                return ask.Received(batch, sockets.position, settled, tick)
            if decoder.drained:
                sockets.position = max(sockets.position, decoder.wal_end)
            if tick and sockets.stream is not None:
                sockets.stream.status(sockets.position, reply=True)
            if tick or settled:
                return ask.Received(None, sockets.position, settled, tick)
            sockets.wait(self._next_tick - time.monotonic())

    def _next_batch(self) -> Batch | None:
        """The next batch: at once when the target is idle; while it is busy, only what is worth planning."""
        decoder = self._decoder
        if decoder.ready or not self._link.busy or decoder.collected >= _WORTHWHILE:
            return decoder.take()
        return None

    def _confirm(self, request: ask.Confirm) -> None:
        hit("confirm.before")
        if self._sockets.stream is not None:
            self._sockets.stream.confirm(request.lsn)
        self._watcher.observed(self._source.control.health, request.lsn)
        hit("confirm.sent")
