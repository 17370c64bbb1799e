"""Every socket of a session in one poll: the stream's, the target's, and a pipe that other threads nudge.

Whatever is waited for (an answer of the target, a lookup, a slot being made), the stream is read on within
bounds and its keepalives are answered: a slow target must not cost the replication connection.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from bridge.errors import Retry
from bridge.postgres import wire
from bridge.postgres.replication import ReplicationStream
from bridge.postgres.target import TargetLink
from bridge.protocol.events import Lsn
from bridge.stream.decode import Decoder

TICK_SECONDS = 1.0
_STATUS_SECONDS = 1.0  # while `behind`, questions are not read: be heard within any wal_sender_timeout
_SILENCE_SECONDS = 60.0  # a stream that says nothing, though asked every second, is a half-open link


class Stopped(Exception):
    """Asked to end at a point where nothing is in flight."""


class Sockets:
    """One session's connections that are waited for. `stream` is None before it is opened."""

    def __init__(
        self, link: TargetLink, decoder: Decoder, waker: wire.Waker, asked_to_stop: Callable[[], bool]
    ) -> None:
        self.link = link
        self.decoder = decoder
        self.waker = waker
        self.asked_to_stop = asked_to_stop
        self.stream: ReplicationStream | None = None
        self.position = Lsn(0)  # everything up to here was received and handed out

    def pump(self) -> None:
        """Read what the stream has sent, within bounds, and answer it."""
        if self.stream is not None and not self.decoder.behind:
            self.stream.pump(self.decoder)
        self.answer()

    def answer(self) -> None:
        """Keep the walsender content, and notice when it is gone without a word."""
        stream = self.stream
        if stream is None:
            return
        if self.decoder.reply_wanted or time.monotonic() - stream.last_status >= _STATUS_SECONDS:
            self.decoder.reply_wanted = False
            stream.status(self.position)
        if self.decoder.behind:  # we do not read now: silence says nothing
            stream.last_heard = time.monotonic()
        if time.monotonic() - stream.last_heard > _SILENCE_SECONDS:
            raise Retry("the source has been silent for a minute though asked: the link is dead")

    def wait(self, seconds: float) -> None:
        """Until a socket has something, somebody nudges, or `seconds` have passed."""
        readable = [self.waker.descriptor]
        writable = []
        if self.stream is not None and not self.decoder.behind:
            readable.append(self.stream.descriptor)
        if self.link.busy:
            readable.append(self.link.descriptor)
            if self.link.wants_write:
                writable.append(self.link.descriptor)
        ready = wire.wait(readable, writable, min(seconds, TICK_SECONDS))
        if self.waker.descriptor in ready:
            self.waker.drain()
        if self.link.busy and self.link.descriptor in ready:
            self.link.pump()

    def wait_for_target(self) -> None:
        """While the target works: go on reading the stream, within bounds, and answer its keepalives."""
        self.pump()
        self.link.check_heard()
        self.wait(TICK_SECONDS)

    def pause(self, seconds: float) -> None:
        end = wire.deadline(seconds)
        while (left := end - time.monotonic()) > 0:
            self.stop_if_asked()
            self.pump()
            self.wait(left)

    def result_of(self, future: Future[Any]) -> Any:
        """The result of something in another thread, which nudges when it is done."""
        while not future.done():
            self.pump()  # unread, the stream would end every wait at once, and its questions stay unseen
            self.wait(TICK_SECONDS)
        return future.result()

    def stop_if_asked(self) -> None:
        if self.asked_to_stop():
            raise Stopped
