"""The frames of a partition, where its rows come over a log: what a stream reads in place of a slot of its own.

Chain judges each frame (protocol/chain.py); what it takes is fed to the decoder, which sees what a slot would have
brought.
"""

from __future__ import annotations

import time

import orjson

from bridge.bus.journal import Journal, Reading
from bridge.bus.shared import Buses
from bridge.errors import Retry
from bridge.failpoints import hit
from bridge.postgres import relay as relay_sql
from bridge.postgres import wire
from bridge.postgres.source import Source
from bridge.protocol import requests as ask
from bridge.protocol.chain import Chain, Frame, Look, Origin, Verdict
from bridge.protocol.events import Lsn
from bridge.stream.decode import Decoder
from bridge.stream.frames import BadFrame, decode, messages_of
from bridge.stream.spec import LogSpec, Watcher

_SILENT_SECONDS = 15.0
"""A relay says something every second, five at night. After this long the stream is not delivering."""
_GAP_SECONDS = 1.0
"""Between two reports of a gap: the relay needs a moment to fill it."""
_LOOK_SECONDS = 10.0
"""A look that came so long ago says that the relay is away."""


class LogSide:
    """One session's log. It has what Sockets expects of a replication stream."""

    def __init__(
        self,
        spec: LogSpec,
        control: Source,
        buses: Buses,
        watcher: Watcher,
        *,
        stream: str,
        waker: wire.Waker,
    ) -> None:
        """waker: nudged when there is something to read."""
        self._spec = spec
        self._stream = stream
        self._control = control
        self._watcher = watcher
        self._waker = waker
        self.descriptor = waker.descriptor
        self.last_heard = self.last_status = time.monotonic()
        self._bus = buses.get(spec.bus)
        self._journal = Journal(self._bus, spec.relay, waker.nudge)
        self._reading: Reading | None = None
        self._chain: Chain | None = None
        self._relation = b""
        self._looking: Origin | None = None
        self._look: tuple[float, Look] | None = None
        self._gap_told = 0.0
        self._in_gap = False
        self._heard = time.monotonic()
        self.confirmed = Lsn(0)
        self.session = ""  # that holds the stream's row at the source

    def close(self) -> None:
        if self._reading is not None:
            self._reading.close()
            self._reading = None

    # --- a place in the chain -----------------------------------------------------------------------

    def find_look(self, request: ask.FindLook) -> ask.Seen:
        """The newest look that came lately, of the incarnation that is asked for."""
        relay, origin = self._control.relay(), request.origin
        if relay is None or not relay.ready or relay.incarnation != origin.incarnation:
            return ask.Seen(relay, None)
        if self._looking != origin:
            self.close()
            self._looking, self._look = origin, None
            self._reading = self._begin(None)
        assert self._reading is not None  # noqa: S101
        while (stored := self._reading.take()) is not None:
            frame = self._decoded(stored.data)
            if frame is not None and frame[0].origin == origin and frame[0].look is not None:
                self._look = (time.monotonic(), frame[0].look)
        if self._look is None or time.monotonic() - self._look[0] >= _LOOK_SECONDS:
            return ask.Seen(relay, None)
        return ask.Seen(relay, self._look[1])

    def _begin(self, reached: Lsn | None) -> Reading:
        spec = self._spec

        def behind(data: bytes) -> bool:
            try:
                frame, _ = decode(data)
            except Exception:
                return False
            return (frame.commit if frame.is_open else frame.end) <= (reached or 0)

        return Reading(
            self._bus,
            spec.relay,
            spec.partition,
            behind=None if reached is None else behind,
            arrived=self._waker.nudge,
            max_bytes=spec.max_bytes,
        )

    # --- a batch's way ------------------------------------------------------------------------------

    def open(self, request: ask.OpenStream) -> None:
        """Read the chain from here on."""
        if request.origin is None:
            raise RuntimeError("a log is read from an origin")
        self.close()
        self._chain = Chain(request.origin, self._spec.partition, request.start)
        self._relation, self._in_gap = b"", False
        self._heard = time.monotonic()
        self._reading = self._begin(request.start)

    def pump(self, decoder: Decoder) -> bool:
        """Feed what has arrived, until nothing is left or the decoder is behind. True: ask again each time, because no
        descriptor of its own says that there is more."""
        chain, reading = self._chain, self._reading
        if chain is None or reading is None:
            return True
        while not decoder.behind and (stored := reading.take()) is not None:
            found = self._decoded(stored.data)
            if found is None:
                continue
            frame, body = found
            verdict = chain.judge(frame)
            if verdict is not Verdict.VOID:
                self._heard = time.monotonic()
            if verdict is Verdict.GAP:
                self._in_gap = True
            if verdict is not Verdict.TAKE:
                continue
            self._in_gap = False
            self._feed(decoder, body)
            chain.took(frame)
            if not chain.inside:
                decoder.wal_end = chain.reached
            hit("log.taken")
        if time.monotonic() - self._heard > _SILENT_SECONDS and not decoder.behind:
            raise self._silent()
        return True

    def _feed(self, decoder: Decoder, body: bytes) -> None:
        relation, messages = messages_of(body)
        if relation and relation != self._relation:
            decoder.feed([relation])
            self._relation = relation
        if messages:
            decoder.feed(messages)

    def _decoded(self, data: bytes) -> tuple[Frame, bytes] | None:
        try:
            return decode(data)
        except BadFrame as error:
            self._watcher.log("bad frame", cause=str(error.args[0]))
            self._watcher.retried("bad_frame")
            return None

    def _silent(self) -> Retry:
        failed = self._reading.failed if self._reading is not None else None
        if failed is not None:
            return Retry(str(failed.args[0]), reason=failed.reason, hint=failed.hint)
        return Retry(
            f"the log has brought no frame of partition {self._spec.partition} for {_SILENT_SECONDS:.0f} s",
            reason="log_silent",
            hint="is the relay running? bridge scale status   (bridge relay starts one)",
        )

    def status(self, received: Lsn, *, reply: bool = False) -> None:
        """Nobody waits for it: who is silent is seen in pump()."""
        self.last_heard = self.last_status = time.monotonic()

    @property
    def gap(self) -> bool:
        """Are rows missing? Told once a second."""
        now = time.monotonic()
        if not self._in_gap or now - self._gap_told < _GAP_SECONDS:
            return False
        self._gap_told = now
        return True

    def ask_again(self, request: ask.AskAgain) -> None:
        chain = self._chain
        if chain is None:
            return
        self._watcher.retried("log_gap")
        origin = chain.origin
        said = {
            "incarnation": origin.incarnation,
            "life": origin.life,
            "partitions": origin.partitions,
            "partition": chain.partition,
            "position": request.position,
        }
        self._journal.ask(orjson.dumps(said))

    def confirm(self, lsn: Lsn) -> None:
        """Write it where the relay reads it."""
        if lsn > self.confirmed or self._chain is None:
            relay_sql.confirm(self._control.connection, self._stream, self.session, lsn)
            self.confirmed = lsn
