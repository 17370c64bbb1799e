"""One connection of an HTTP server: what its client is told when a request cannot be taken, and that it is heard.

uvicorn closes a connection as soon as it has answered. If the client is still sending, the system then resets the
connection and throws the answer away that the client has not read (RFC 9112, 9.6). So here the answer's side is
closed, and what still comes is read and dropped for a while. Refusals are problem+json, those of the parser too.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import h11
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

LINGER_SECONDS = 30.0  # after an answer that came before the end of the body; as nginx has it by default
LINGER_IDLE_SECONDS = 5.0  # of these, without a byte
LINGER_BYTES = 64 * 2**20

PATIENCE_SECONDS, PATIENCE = (
    1.5,
    30,
)  # how long a request waits for a place before its 503, and how often it asks

_PROBLEMS: Mapping[int, tuple[str, str, str]] = {  # status: (type, title, detail)
    400: ("malformed", "The request cannot be read", "this is not HTTP/1.1 (RFC 9112)"),
    431: ("malformed", "The request cannot be read", "the request line and the headers are too long"),
    501: ("malformed", "The request cannot be read", "transfer-encoding may only be chunked"),
    503: ("unavailable", "The event may not be stored; try again", "too many connections"),
}
_BOTH_LENGTHS = "transfer-encoding and content-length (RFC 9112, 6.1), or transfer-encoding in HTTP/1.0"


def refusal(status: int, detail: str | None = None) -> ASGIApp:
    """An application that answers every request so, and closes the connection."""
    body, headers = _problem(status, detail)

    async def refuse(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return refuse


def _problem(status: int, detail: str | None = None) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """RFC 9457: the body and the headers."""
    kind, title, usual = _PROBLEMS[status]
    members = {
        "type": f"urn:problem-type:outbox-bridge:{kind}",
        "title": title,
        "status": status,
        "detail": detail or usual,
    }
    body = json.dumps(members, separators=(",", ":")).encode()
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        (b"connection", b"close"),
    ]
    return body, [*headers, (b"retry-after", b"1")] if status == 503 else headers


class _Transport:
    """The transport as uvicorn sees it: it closes by the protocol's `close`."""

    def __init__(self, transport: asyncio.Transport, protocol: HeardProtocol) -> None:
        self._transport = transport
        self._protocol = protocol

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._protocol.lingers or self._transport.is_closing()

    def close(self) -> None:
        self._protocol.close()


class HeardProtocol(H11Protocol):
    """uvicorn's protocol, whose refusals are heard."""

    lingers = False
    """The answer is sent, and what the client still sends is dropped."""
    waits = False
    """A request is here and has no place yet."""
    since = 0.0
    """When it last began or ended something, by the loop's clock."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
        super().connection_made(transport)
        self._socket, self._left = transport, LINGER_BYTES
        self._timers: list[asyncio.TimerHandle] = []
        self.transport = _Transport(transport, self)  # type: ignore[assignment]

    def close(self) -> None:
        """Close, but not before the client can have read the answer."""
        sends = self.conn.their_state in (h11.SEND_BODY, h11.ERROR) or self.conn.trailing_data[0]
        if self._socket.is_closing() or not sends:
            self._socket.close()
        elif not self.lingers:
            self.lingers = True
            self._unset_keepalive_if_required()
            self._socket.write_eof()
            self._socket.resume_reading()
            self._timers = [
                self.loop.call_later(LINGER_SECONDS, self._socket.abort),
                self.loop.call_later(LINGER_IDLE_SECONDS, self._socket.abort),
            ]

    def data_received(self, data: bytes) -> None:
        if not self.lingers:
            super().data_received(data)
            return
        self._left -= len(data)
        self._timers.pop().cancel()
        self._timers.append(self.loop.call_later(LINGER_IDLE_SECONDS, self._socket.abort))
        if self._left < 0:
            self._socket.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in self._timers:
            timer.cancel()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        if self.lingers:
            self._socket.abort()
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """uvicorn calls it while it handles the parser's error, which knows the status."""
        cycle = self.cycle
        if (
            cycle is not None and not cycle.response_complete
        ):  # in the body: whoever reads it learns that it ended
            cycle.disconnected = True
            cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            status = getattr(sys.exc_info()[1], "error_status_hint", 400)
            body, headers = _problem(status := status if status in _PROBLEMS else 400)
            given, reason = [*self.server_state.default_headers, *headers], HTTPStatus(status).phrase
            for event in (
                h11.Response(status_code=status, headers=given, reason=reason.encode()),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    @property
    def app(self) -> ASGIApp:
        """What uvicorn gives the request to whose header it has just read."""
        self.since = self.loop.time()
        if self._is_ambiguous():
            return refusal(400, _BOTH_LENGTHS)
        return self._app if self.has_place() else self._wait_for_a_place

    @app.setter
    def app(self, app: ASGIApp) -> None:
        self._app = app

    def has_place(self) -> bool:
        """May this request be served?"""
        return True

    async def _wait_for_a_place(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Others may give theirs up soon, or only seem to be about to send something."""
        self.waits = True
        try:
            for _ in range(PATIENCE):
                await asyncio.sleep(PATIENCE_SECONDS / PATIENCE)
                if self.has_place():
                    break
            else:
                await refusal(503)(scope, receive, send)
                return
        finally:
            self.waits = False
        await self._app(scope, receive, send)

    def _is_ambiguous(self) -> bool:
        """Two readers could disagree where its body ends, and a second request could be smuggled past one."""
        names = {name for name, _ in self.headers}
        return b"transfer-encoding" in names and (
            b"content-length" in names or self.scope["http_version"] == "1.0"
        )
