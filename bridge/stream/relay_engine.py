"""Performs a relay's requests on real servers: one typed method a request, as engine.py does a stream's.

A batch's way begins here where there is a log: `read` takes it from the slot and divides it into partitions, `publish`
puts each piece into the log. One frame of a partition is on its way at a time, so that frames stay in order; while it
is, the next one fills.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

import orjson

from bridge.attempts import NO_JITTER, Backoff
from bridge.bus.journal import Journal, JournalSpec
from bridge.bus.shared import Buses
from bridge.errors import Halt, Retry
from bridge.failpoints import hit
from bridge.postgres import relay as relay_sql
from bridge.postgres import wire
from bridge.postgres.outbox import Outbox
from bridge.postgres.own_outbox import require_columns
from bridge.postgres.replication import ReplicationStream
from bridge.postgres.slots import SlotMaker, drop_slot
from bridge.postgres.source import Source, require_outbox
from bridge.postgres.versions import refuse_newer
from bridge.protocol import requests as ask
from bridge.protocol.chain import Origin
from bridge.protocol.events import Lsn, Snapshot
from bridge.protocol.facts import SourceFacts
from bridge.stream.frames import BadFrame, decode, encode
from bridge.stream.relation import Layout
from bridge.stream.sockets import QUIET_SECONDS, QUIET_TICK_SECONDS, TICK_SECONDS, Stopped
from bridge.stream.spec import RelaySpec, RelayWatcher
from bridge.stream.split import Splitter

_STUCK_SECONDS = 10.0
"""A frame that the log does not take for so long ends the session: what is wrong is said, and the WAL brake asked."""
_STATUS_SECONDS = 1.0
_SILENCE_SECONDS = 60.0
_SIZE_SECONDS = 5.0
"""Between two looks at how full the log is."""
_AGAIN = Backoff(first=0.1, longest=2.0, jitter=NO_JITTER)


@dataclass(slots=True)
class _Flying:
    """A frame that the log has not confirmed. name: by which it knows one that was sent twice."""

    sent: Future[int]
    data: bytes
    name: str
    end: Lsn


class RelayEngine:
    """One session of a relay (protocol/requests.py, RelayPerformer). Methods raise BridgeError, psycopg.Error or
    Stopped; close() closes all connections."""

    def __init__(
        self,
        spec: RelaySpec,
        buses: Buses,
        watcher: RelayWatcher,
        *,
        waker: wire.Waker,
        stop: Callable[[], bool],
    ) -> None:
        self._spec = spec
        self._watcher = watcher
        self._waker = waker
        self._stop = stop
        self._stream: ReplicationStream | None = None
        self._maker: SlotMaker | None = None
        self._closers: list[Callable[[], None]] = []
        outbox: Outbox = spec.outbox
        self._control = Source(spec.source_dsn, spec.relay, outbox, spec.publication, relay=spec.relay)
        self._closers.append(self._control.close)
        require_outbox(self._control.connection, outbox)
        refuse_newer(self._control.connection, "source")
        require_columns(self._control.connection, outbox, spec.publication)
        self._journal = Journal(buses.get(spec.bus), spec.relay, waker.nudge)
        self._splitter = Splitter(outbox.schema, outbox.table, outbox.columns, spec.partitions)
        self._origin: Origin | None = None
        self._slot = ""
        self._flying: dict[int, _Flying] = {}  # by partition
        self._name = uuid.uuid4().hex
        self._number = 0  # of the frame that was sent last
        self._incarnation = 0
        self._stored: dict[int, deque[tuple[Lsn, int]]] = {}  # by partition: ends and sequences of frames
        self._asked: dict[int, Lsn] = {}
        self._asking = threading.Lock()
        self._next_tick = 0.0
        self._last_rows = time.monotonic()
        self._applied: Mapping[str, Lsn | None] = {}
        self._size: Future[tuple[int, int]] | None = None
        self._size_at = 0.0

    def close(self) -> None:
        if self._maker is not None:
            self._maker.abandon()
        if self._stream is not None:
            self._stream.close()
        for close in self._closers:
            close()

    # --- before the stream --------------------------------------------------------------------------

    def read_source(self, request: ask.ReadSource) -> SourceFacts:
        return self._control.facts(request.slot, None, None)

    def save_relay(self, request: ask.SaveRelay) -> None:
        hit("relay.before_saved")
        relay_sql.save_relay(self._control.connection, self._spec.relay, request.before, request.after)
        self._slot = f"{self._spec.relay}_{request.after.incarnation}"
        hit("relay.saved")

    def drop_slot(self, request: ask.DropSlot) -> None:
        drop_slot(self._control.connection, request.name)
        hit("slot.dropped")

    def begin_slot(self, request: ask.BeginSlot) -> None:
        hit("slot.before")
        spec = self._spec
        drop_slot(self._control.connection, request.name)
        self._watcher.log("creating a slot", slot=request.name)
        self._maker = SlotMaker(
            spec.source_dsn, spec.relay, request.name, self._waker.nudge, failover=spec.failover
        )

    def slot_made(self, request: ask.SlotMade) -> tuple[Lsn, Snapshot] | None:
        if self._maker is None:
            raise RuntimeError("no slot creation was started")
        made = self._maker.made()
        if made is None:
            self._watcher.waiting(self._control.holding_up())
            self._pause(0.5)
            return None
        self._maker = None
        self._watcher.waiting("")
        hit("slot.made")
        return made

    def read_tails(self, request: ask.ReadTails) -> Mapping[int, Lsn]:
        """The log's last frame of each partition, as far as it is of this origin."""
        self._origin = origin = request.origin
        self._incarnation = origin.incarnation
        self._splitter = Splitter(
            self._spec.outbox.schema, self._spec.outbox.table, self._spec.outbox.columns, origin.partitions
        )
        system, _, _ = origin.life.partition("/")
        self._journal.prepare(
            JournalSpec(
                self._spec.relay,
                f"{system}/{self._control.connection.info.dbname}",
                self._spec.max_log_bytes,
                self._spec.bus.replicas,
            )
        )
        self._journal.listen(self._hear)
        tails: dict[int, Lsn] = {}
        for partition in range(1, origin.partitions + 1):
            self._stored[partition] = deque()
            found = self._journal.tail(partition)
            if found is None:
                continue
            try:
                frame, _ = decode(found.data)
            except (BadFrame, Halt):
                continue
            self._stored[partition].append((frame.end or frame.commit, found.sequence))
            if frame.origin == origin:
                tails[partition] = frame.end or frame.prev
        hit("relay.tails")
        return tails

    def open_stream(self, request: ask.OpenStream) -> None:
        hit("stream.opening")
        if self._stream is not None:
            self._stream.close()
        self._splitter.expect(Layout(*self._control.layout()))
        self._splitter.restart(request.start)
        spec = self._spec
        self._stream = ReplicationStream(
            spec.source_dsn,
            spec.relay,
            request.slot,
            spec.publication,
            request.start,
            life=request.origin.life if request.origin else None,
        )
        self._watcher.phase("streaming", slot=request.slot)
        hit("stream.opened")

    # --- a batch's way ------------------------------------------------------------------------------

    def read(self, request: ask.Read) -> ask.Carried:
        splitter = self._splitter
        while True:
            stop = self._stop()
            tick = time.monotonic() >= self._next_tick
            if tick:
                quiet = time.monotonic() - self._last_rows >= QUIET_SECONDS
                self._next_tick = time.monotonic() + (QUIET_TICK_SECONDS if quiet else TICK_SECONDS)
                self._status(reply=True)
            self._pump()
            landed = self._landed()
            pieces = splitter.take(list(self._stored) if stop or tick else landed)
            if pieces:
                self._last_rows = time.monotonic()
                self._next_tick = min(self._next_tick, self._last_rows + TICK_SECONDS)
            again = self._take_asked()
            if pieces or tick or stop or again:
                ends, xids = splitter.transactions()
                position = splitter.reached
                self._watcher.read(position)
                return ask.Carried(pieces, position, ends, xids, again, tick, stop)
            self._wait(self._next_tick - time.monotonic())

    def publish(self, request: ask.Publish) -> None:
        """Send it when the partition's frame before it has arrived."""
        frame = request.frame
        partition = frame.partition
        self._land(partition)
        hit("relay.publish")
        data = encode(frame, request.body)
        self._number += 1
        name = f"{self._name}/{self._number}"
        sent = self._journal.send(partition, data, name)
        self._flying[partition] = _Flying(sent, data, name, frame.end or frame.commit)
        self._watcher.framed(partition, frame.rows, len(data))

    def _landed(self) -> list[int]:
        """Partitions without a frame on its way."""
        for partition, flying in list(self._flying.items()):
            if flying.sent.done() and flying.sent.exception() is None:
                self._arrived(partition)
        return [partition for partition in self._stored if partition not in self._flying]

    def _arrived(self, partition: int) -> None:
        flying = self._flying.pop(partition)
        self._stored[partition].append((flying.end, flying.sent.result()))
        hit("relay.published")

    def _land(self, partition: int) -> None:
        """Wait until the partition's frame is in the log; send it again where that failed."""
        began, tries = time.monotonic(), 0
        while (flying := self._flying.get(partition)) is not None:
            if not flying.sent.done():
                self._pump()
                self._wait(TICK_SECONDS)
                continue
            error = flying.sent.exception()
            if error is None:
                self._arrived(partition)
                continue
            if not isinstance(error, Retry) or time.monotonic() - began > _STUCK_SECONDS:
                raise error
            self._watcher.waiting(str(error.args[0]))
            self._look_what_is_applied(self._incarnation)
            tries += 1
            self._pause(_AGAIN.after(tries))
            flying.sent = self._journal.send(partition, flying.data, flying.name)
        if tries:
            self._watcher.waiting("")

    # --- a look -------------------------------------------------------------------------------------

    def observe(self, request: ask.Observe) -> ask.Observation:
        hit("observe.before")
        return self._control.observe(self._slot, request.position)

    def read_share(self, request: ask.ReadShare) -> ask.Shared:
        session = self._look_what_is_applied(request.incarnation)
        self._look_at_size()
        health = self._control.health
        braked = health is not None and health.retained > self._spec.max_retained_wal
        return ask.Shared(session, self._applied, braked)

    def confirm(self, request: ask.Confirm) -> None:
        hit("confirm.before")
        if self._stream is not None:
            self._stream.confirm(request.lsn)
        self._watcher.observed(self._control.health, request.lsn)
        hit("confirm.sent")

    def _look_what_is_applied(self, incarnation: int) -> str:
        """Have the log forget what every stream of a partition has applied. Returns who holds the relay's row."""
        session, self._applied = relay_sql.applied(self._control.connection, self._spec.relay, incarnation)
        self._watcher.lags(self._applied)
        for partition, stored in self._stored.items():
            lowest = min(self._needed(partition), default=None)
            last = 0
            while lowest is not None and stored and stored[0][0] <= lowest:
                _, last = stored.popleft()
            if last:
                self._journal.drop(partition, last + 1)
        return session

    def _look_at_size(self) -> None:
        """Tell how full the log is, now and then, without waiting for it."""
        if self._size is not None and self._size.done():
            if self._size.exception() is None:
                self._watcher.log_holds(*self._size.result())
            self._size = None
        if self._size is None and time.monotonic() >= self._size_at:
            self._size_at = time.monotonic() + _SIZE_SECONDS
            self._size = self._journal.size()

    def _needed(self, partition: int) -> list[Lsn]:
        of = f".{partition}of"
        return [lsn for stream, lsn in self._applied.items() if of in stream and lsn is not None]

    # --- what workers ask for -----------------------------------------------------------------------

    def _hear(self, data: bytes) -> None:
        """In the bus's thread."""
        try:
            said = orjson.loads(data)
            origin = Origin(said["incarnation"], said["life"], said["partitions"])
            partition, position = int(said["partition"]), Lsn(int(said["position"]))
        except (ValueError, KeyError, TypeError):
            return
        if origin == self._origin:
            with self._asking:
                self._asked[partition] = min(position, self._asked.get(partition, position))
            self._waker.nudge()

    def _take_asked(self) -> dict[int, Lsn]:
        with self._asking:
            asked, self._asked = self._asked, {}
        for partition in asked:
            self._watcher.again(partition)
        return asked

    # --- waiting ------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Read the slot within bounds, and answer it."""
        stream, splitter = self._stream, self._splitter
        if stream is None:
            return
        if not splitter.behind:
            stream.pump(splitter)
        now = time.monotonic()
        if splitter.reply_wanted or now - stream.last_status >= _STATUS_SECONDS:
            self._status()
        if splitter.behind:
            stream.last_heard = now
        if now - stream.last_heard > _SILENCE_SECONDS:
            raise Retry("the source has not answered for a minute: the link is dead")

    def _status(self, *, reply: bool = False) -> None:
        if self._stream is not None:
            self._splitter.reply_wanted = False
            self._stream.status(self._splitter.position, reply=reply)

    def _wait(self, seconds: float) -> None:
        readable = [self._waker.descriptor]
        if self._stream is not None and not self._splitter.behind:
            readable.append(self._stream.descriptor)
        ready = wire.wait(readable, [], min(max(seconds, 0.0), TICK_SECONDS))
        if self._waker.descriptor in ready:
            self._waker.drain()
        if self._stream is not None and self._stream.descriptor in ready:
            self._stream.last_heard = time.monotonic()

    def _pause(self, seconds: float) -> None:
        end = wire.deadline(seconds)
        while (left := end - time.monotonic()) > 0:
            if self._stop():
                raise Stopped
            self._pump()
            self._wait(left)
