"""What the protocol asks of the source beside the stream: registry, slots, rows of the table, looks at it."""

from __future__ import annotations

import time
from collections.abc import Callable

from bridge.errors import Retry
from bridge.failpoints import hit
from bridge.postgres import wire
from bridge.postgres.connect import connect
from bridge.postgres.missing import MissingReader
from bridge.postgres.outbox import Listener
from bridge.postgres.profiled import ProfiledConnection
from bridge.postgres.profiles import SOURCE_ROWS
from bridge.postgres.slots import SlotMaker, drop_slot
from bridge.postgres.source import Source
from bridge.postgres.versions import refuse_newer
from bridge.protocol import requests as ask
from bridge.protocol.events import Lsn, Snapshot
from bridge.stream.pace import Pace
from bridge.stream.sockets import Sockets
from bridge.stream.spec import StreamSpec, Watcher

_VERSION_SECONDS = 5.0
"""Between two looks whether a newer release has migrated the outbox while this one runs."""


class SourceSide:
    """One session's source, without the stream. A handler has the name of its request."""

    def __init__(
        self, plan: StreamSpec, control: Source, sockets: Sockets, watcher: Watcher, pace: Pace
    ) -> None:
        self._plan = plan
        self._pace = pace
        self.control = control
        self._sockets = sockets
        self._watcher = watcher
        self.slot: str | None = None  # the one that is streamed from
        self._reader: tuple[MissingReader, ProfiledConnection] | None = None
        self._maker: SlotMaker | None = None
        self._maker_asked = 0
        self._listener: Listener | None = None
        self._closers: list[Callable[[], None]] = []
        self._look_again = time.monotonic() + _VERSION_SECONDS

    def close(self) -> None:
        if self._maker is not None:
            self._maker.abandon()
        self.end_reading()
        for close in self._closers:
            close()

    def end_reading(self) -> None:
        """The table is read; another read connects again. A stream that works needs no connection for it."""
        if self._reader is not None:
            _, connection = self._reader
            self._reader = None
            connection.close()

    def register(self, request: ask.Register) -> None:
        hit("registry.before")
        self.control.register(request.registration, request.holder)
        hit("registry.written")

    def begin_slot(self, request: ask.BeginSlot) -> None:
        hit("slot.before")
        drop_slot(self.control.connection, request.name)
        self._watcher.log("creating a slot", slot=request.name)
        plan = self._plan
        self._maker = SlotMaker(
            plan.source_dsn, plan.stream, request.name, self._sockets.waker.nudge, failover=plan.failover
        )
        self._maker_asked = 0

    def slot_made(self) -> tuple[Lsn, Snapshot] | None:
        if self._maker is None:
            raise RuntimeError("no slot creation was started")
        made = self._maker.made()
        if made is None:
            self._sockets.pause(0.05 if self._maker_asked == 0 else 0.5)
            self._maker_asked += 1
            made = self._maker.made()
        if made is None:
            if self._maker_asked > 1:
                self._watcher.waiting(self.control.holding_up())
            return None
        self._maker = None
        self._watcher.waiting("")
        hit("slot.made")
        return made

    def drop_slot(self, request: ask.DropSlot) -> None:
        drop_slot(self.control.connection, request.name)
        hit("slot.dropped")

    def still_running(self, request: ask.StillRunning) -> bool:
        running = self.control.still_running(request.snapshot)
        if running:
            self._sockets.pause(0.05)
        return running

    def read_missing(self, request: ask.ReadMissing) -> ask.MissingRows:
        self._sockets.stop_if_asked()
        if self._reader is None:
            connection = connect(self._plan.source_dsn, SOURCE_ROWS, self._plan.stream)
            log = self._plan.log
            part = (log.partition, log.partitions) if log is not None else None
            reader = MissingReader(connection, self._plan.outbox, self._pace.batch.now, part)
            self._reader = reader, connection
        reader, _ = self._reader
        reader.max_events = self._pace.batch.now
        missing = reader.read(request)
        hit("missing.read")
        if missing.batch.events:
            self._watcher.pending(None)
        return missing

    def wait_to_poll(self) -> bool:
        hit("poll.wait")
        self._watcher.pending(None)
        self._watcher.phase("polling")
        first = self._listener is None
        if self._listener is None:
            self._listener = Listener(self._plan.source_dsn, self._plan.stream)
            self._closers.append(self._listener.close)
        listens = self._listener.listen()
        if first or listens:
            self._watcher.log("polling", wakes_by="notify" if self._listener.descriptor else "timer")
        if listens and not first:
            return self._sockets.asked_to_stop()  # what came while nobody listened is read first
        if not self._sockets.asked_to_stop():
            readable = [self._sockets.waker.descriptor]
            if self._listener.descriptor is not None:
                readable.append(self._listener.descriptor)
            ready = wire.wait(readable, [], self._plan.poll_interval)
            self._sockets.waker.drain()
            if len(ready) > 1 or self._sockets.waker.descriptor not in ready:
                self._listener.drain()
        return self._sockets.asked_to_stop()

    def observe(self, request: ask.Observe) -> ask.Observation:
        hit("observe.before")
        if time.monotonic() >= self._look_again:
            self._look_again = time.monotonic() + _VERSION_SECONDS
            refuse_newer(self.control.connection, "source")
        seen = self.control.observe(self.slot or "", request.position)
        health = self.control.health
        if health is not None and health.retained > self._plan.max_retained_wal and self._plan.outbox.has_xid:
            raise Retry(
                f"slot {self.slot} retains {health.retained} bytes of WAL, more than source.max_retained_wal",
                reason="wal_brake",
            )
        hit("observe.done")
        return seen
