"""Every socket of a session in one poll: the stream's, the target's, and a pipe that other threads write to.

While the session waits (for the target's answer, a lookup, or the creation of a slot), it keeps reading the stream
within bounds and answers its keepalives, so that a slow target does not cost the replication connection.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from select import POLLIN, POLLOUT
from typing import TYPE_CHECKING, Any

from psycopg.waiting import READY_R, READY_W

from bridge.errors import Retry
from bridge.postgres import wire
from bridge.postgres.replication import ReplicationStream
from bridge.postgres.target import TargetLink
from bridge.protocol.events import Lsn
from bridge.stream.decode import Decoder

if TYPE_CHECKING:
    from bridge.stream.log_side import LogSide

TICK_SECONDS = 1.0
"""Between two looks at the source, and the longest wait."""
QUIET_SECONDS = 10.0
QUIET_TICK_SECONDS = 5.0
"""Between two looks of a stream that has got no event for QUIET_SECONDS: many such streams would ask the source much
for nothing. No position is confirmed without a look, so a later one is as safe."""
# while `behind` is true, keepalives are not read: send a status update within any wal_sender_timeout
_STATUS_SECONDS = 1.0
_SILENCE_SECONDS = 60.0  # a stream that does not answer, although asked every second, is a half-open link


class Stopped(Exception):
    """Asked to stop, at a point where no batch is in flight."""


class Sockets:
    """The connections of one session. `stream` is None before it is opened."""

    def __init__(
        self, link: TargetLink, decoder: Decoder, waker: wire.Waker, asked_to_stop: Callable[[], bool]
    ) -> None:
        self.link = link
        self.decoder = decoder
        self.waker = waker
        self.asked_to_stop = asked_to_stop
        self.stream: ReplicationStream | LogSide | None = None
        self.position = Lsn(0)  # everything up to here was received and handed out
        self._poller = wire.Poller()
        self._unread = True  # the stream may have something to read

    def pump(self) -> None:
        """Read the stream within bounds, and answer it."""
        if self._unread and self.stream is not None and not self.decoder.behind:
            self._unread = self.stream.pump(self.decoder)
        self.answer()

    def answer(self) -> None:
        """Send status updates to the walsender, and detect a dead link."""
        stream = self.stream
        if stream is None:
            return
        if self.decoder.reply_wanted or time.monotonic() - stream.last_status >= _STATUS_SECONDS:
            self.decoder.reply_wanted = False
            stream.status(self.position)
        if self.decoder.behind:  # we do not read now: silence says nothing
            stream.last_heard = time.monotonic()
        if time.monotonic() - stream.last_heard > _SILENCE_SECONDS:
            raise Retry("the source has not answered for a minute: the link is dead")

    def wait(self, seconds: float, also: int = -1, events: int = 0) -> int:
        """Wait until a socket is ready, another thread wakes us, or `seconds` have passed. also: one more descriptor,
        for these events; returns which of it have come."""
        link, stream = self.link, self.stream
        masks = {self.waker.descriptor: POLLIN}
        if stream is not None and not self.decoder.behind:
            masks[stream.descriptor] = POLLIN
        if link.busy:
            masks[link.descriptor] = POLLIN | POLLOUT if link.wants_write else POLLIN
        if also >= 0:
            masks[also] = events
        came = 0
        for descriptor, now in self._poller.wait(masks, min(seconds, TICK_SECONDS)):
            if descriptor == also:
                came = now
            elif descriptor == link.descriptor:
                link.pump()
            elif descriptor == self.waker.descriptor:
                self.waker.drain()
            elif stream is not None:
                self._unread = True
                stream.last_heard = time.monotonic()
        return came

    def wait_for_target(self) -> None:
        """While the target works: keep reading the stream within bounds, and answer its keepalives."""
        self.pump()
        self.link.check_heard()
        self.wait(TICK_SECONDS)

    def pause(self, seconds: float) -> None:
        end = wire.deadline(seconds)
        while (left := end - time.monotonic()) > 0:
            self.stop_if_asked()
            self.pump()
            self.wait(left)

    def waits(self, descriptor: int, wanted: int, seconds: float) -> int:
        """For a lookup's connection (profiled.py, Waits): whoever waits for its answer keeps serving the others."""
        self.pump()
        events = (POLLIN if wanted & READY_R else 0) | (POLLOUT if wanted & READY_W else 0)
        came = self.wait(seconds, descriptor, events)
        if came & ~(POLLIN | POLLOUT):
            return wanted  # an error: the next read tells
        return (READY_R if came & POLLIN else 0) | (READY_W if came & POLLOUT else 0)

    def result_of(self, future: Future[Any]) -> Any:
        """Wait for the result of another thread, which wakes us when it is done."""
        while not future.done():
            self.pump()  # an unread stream would end every wait at once, and its keepalives would not be seen
            self.wait(TICK_SECONDS)
        return future.result()

    def stop_if_asked(self) -> None:
        if self.asked_to_stop():
            raise Stopped
