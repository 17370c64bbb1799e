"""Serve an ASGI application inside the caller's event loop.

uvicorn alone takes over the process's signals, and waits forever for a client that never finishes its request's header.
Here the daemon keeps its signals, and every connection has a deadline. The admin server and the ingress use it; the
socket is listen.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from collections.abc import Iterable, Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from bridge.observe.connection import HeardProtocol
from bridge.observe.listen import INSTANCE_HEADER

HEADER_BYTES = 16 * 1024  # a request's line and headers together
HEADER_SECONDS = 5.0  # from connecting, or from a request's first byte, to the end of its header
KEEP_ALIVE_SECONDS = 15  # between two requests; longer than a common scrape interval is of no use
CONNECTIONS = 100  # more are answered 503 at once
CONNECTIONS_OVER = 100  # more that may wait for a place, and are then answered 503; beyond them closed unread
SLOW_SECONDS = 1.0  # a body without a key that takes longer, or a longer pause, keeps no place that is wanted
DRAIN_SECONDS = 3  # for answers under way when the bridge stops


class DeadlineProtocol(HeardProtocol):
    """A protocol with a deadline for the header, which uvicorn lacks, and whose connections give up their place.

    An idle client occupies a connection. Once there are too many, whoever sends a request gets the place of one that
    waits: first of those that have shown no key (`bridge.trusted` in the scope of the last request). So nobody can shut
    others out by connecting.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
        super().connection_made(transport)
        self.limit_concurrency = None  # uvicorn's own answer is not ours
        self.since = self.loop.time()
        # asyncio does so for sockets that name their protocol, which accepted ones do not: header and body go
        # out as two packets, and the second would wait 40 ms for the client's delayed acknowledgement
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        limit = self.config.limit_concurrency
        too_many = limit is not None and len(self.connections) > limit + CONNECTIONS_OVER
        if too_many and not self._take_places(self._others(), 1):
            transport.abort()  # the process' descriptors are the streams' too
            return
        self._start_deadline()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._waiting_for_header() and not self.lingers:
            self._start_deadline()
        else:
            self._end_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_deadline()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self.since = self.loop.time()
        super().on_response_complete()

    def has_place(self) -> bool:
        limit = self.config.limit_concurrency
        if (
            limit is None or len(self.connections) < limit
        ):  # this one included: as uvicorn counts, the last is too many
            return True
        others = [one for one in self._others() if not one.waits]
        over = len(others) + 2 - limit
        return over <= 0 or self._take_places(others, over) == over

    def _others(self) -> list[DeadlineProtocol]:
        return [one for one in self.connections if isinstance(one, DeadlineProtocol) and one is not self]

    def _take_places(self, others: Iterable[DeadlineProtocol], most: int) -> int:
        """Close the connections that are worth least. Returns how many."""
        ranked = [(rank, one.since, id(one), one) for one in others if (rank := one.rank()) is not None]
        taken = 0
        for _, _, _, one in sorted(ranked):
            if taken == most:
                break
            if one.lingers or not _is_readable(one):
                self.connections.discard(one)  # now, not when the loop comes to it
                one.transport.abort()
                taken += 1
        return taken

    def rank(self) -> int | None:
        """How little this connection is worth, 0 the least; None: it keeps its place."""
        slow = self.loop.time() - self.since > SLOW_SECONDS
        if self.lingers:
            return 0
        if self.cycle is not None and self.cycle.scope.get("bridge.trusted"):
            return 3 if slow and self.cycle.response_complete else None
        if self._waiting_for_header():
            return 1
        return 2 if slow and (self.waits or self.cycle.more_body) else None

    def _waiting_for_header(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _start_deadline(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_SECONDS, self._too_late)

    def _end_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            self.transport.abort()


def _is_readable(connection: DeadlineProtocol) -> bool:
    """Has something come that the loop has not read yet?"""
    number = connection.transport.get_extra_info("socket").fileno()
    if number < 0:
        return False
    poll = select.poll()
    poll.register(number, select.POLLIN)
    return bool(poll.poll(0))


class _QuietServer(uvicorn.Server):
    """Leaves the process' signals to the daemon."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(
    app: ASGIApp, listening: socket.socket, stop: asyncio.Event, *, instance: str, **limits: Any
) -> None:
    """Serve until `stop` is set or this task is cancelled; then answers under way get DRAIN_SECONDS.

    `instance`: for INSTANCE_HEADER. `limits` override uvicorn's settings. Closes `listening`.
    """
    settings: dict[str, Any] = {
        "h11_max_incomplete_event_size": HEADER_BYTES,
        "timeout_keep_alive": KEEP_ALIVE_SECONDS,
        "limit_concurrency": CONNECTIONS,
        "timeout_graceful_shutdown": DRAIN_SECONDS,
    }
    config = uvicorn.Config(
        app,
        http=DeadlineProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        headers=[(INSTANCE_HEADER, instance)],
        proxy_headers=False,
        **{**settings, **limits},
    )
    server = _QuietServer(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]), name="http")
    stopping = asyncio.create_task(stop.wait(), name="http-stop")
    try:
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        server.should_exit = True
        with contextlib.closing(listening):
            await asyncio.shield(serving)
