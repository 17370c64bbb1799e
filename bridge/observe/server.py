"""Serve an ASGI application inside the caller's event loop.

uvicorn alone takes over the process's signals, and waits forever for a client that never finishes its request's header.
Here the daemon keeps its signals, and every connection has a deadline. The admin server and the ingress use it; the
socket is listen.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from bridge.observe.listen import INSTANCE_HEADER

HEADER_BYTES = 16 * 1024  # a request's line and headers together
HEADER_SECONDS = 5.0  # from connecting, or from a request's first byte, to the end of its header
KEEP_ALIVE_SECONDS = 15  # between two requests; longer than a common scrape interval is of no use
CONNECTIONS = 100  # more are answered 503 at once
CONNECTIONS_OVER = 50  # this many more are answered 503; beyond them connections are closed unread
DRAIN_SECONDS = 3  # for answers under way when the bridge stops


class DeadlineProtocol(H11Protocol):
    """uvicorn's protocol with a deadline for the header, which uvicorn lacks (an idle client occupies a connection)."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
        super().connection_made(transport)
        # asyncio does so for sockets that name their protocol, which accepted ones do not: header and body go
        # out as two packets, and the second would wait 40 ms for the client's delayed acknowledgement
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        limit = self.config.limit_concurrency
        if limit is not None and len(self.connections) > limit + CONNECTIONS_OVER:
            transport.abort()  # the process' descriptors are the streams' too
            return
        self._start_deadline()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._waiting_for_header():
            self._start_deadline()
        else:
            self._end_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_deadline()
        super().connection_lost(exc)

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
