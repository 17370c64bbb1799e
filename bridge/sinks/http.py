"""The HTTP client of all sinks: one POST, no redirects, no proxies, no cookies, a deadline and a capped answer.

It is httpcore2, the layer below httpx2. Its network backend is a public interface, which is where addresses are
checked (address.py), and it has no redirects, environment or cookies that would have to be switched off. One pool
per guard: connections that one webhook may open are not shared with another.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import httpcore2

from bridge import __version__
from bridge.sinks.model import AddressGuard, Reply, SendError, SendOutcome

LONGEST_ANSWER = 64 * 1024
"""Maximum bytes of a body that are read; then the connection is closed."""
_LONGEST_CONNECT = 5.0
_LONGEST_BODY = 2.0

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Host and port to numeric addresses."""


class AddressRefused(Exception):
    """No address of the host may be reached."""


async def resolve(host: str, port: int) -> list[str]:
    """The system resolver's addresses, in its order."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class GuardedBackend(httpcore2.AsyncNetworkBackend):
    """Resolves once, checks every address, connects to one that passed. TLS and Host keep the name."""

    def __init__(self, guard: AddressGuard | None, resolver: Resolve) -> None:
        self._guard = guard
        self._resolve = resolver
        self._inner = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        try:
            found = await self._resolve(host.strip("[]"), port)
        except (OSError, UnicodeError):
            raise httpcore2.ConnectError("the name cannot be resolved") from None
        permitted = [one for one in found if self._guard is None or self._guard.permits(one)]
        if not permitted:
            raise AddressRefused
        for one in permitted[:-1]:
            try:
                return await self._connect(one, port, timeout, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue  # nothing was sent: the next address may do
        return await self._connect(permitted[-1], port, timeout, socket_options)

    async def _connect(
        self, address: str, port: int, timeout: float | None, socket_options: Iterable[Any] | None
    ) -> httpcore2.AsyncNetworkStream:
        return await self._inner.connect_tcp(address, port, timeout=timeout, socket_options=socket_options)


class HttpClient:
    """One per process; close it in the loop that used it."""

    def __init__(self, resolver: Resolve = resolve) -> None:
        self._resolve = resolver
        self._pools: dict[AddressGuard | None, httpcore2.AsyncConnectionPool] = {}

    async def post(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        content: bytes,
        timeout: float,
        guard: AddressGuard | None,
    ) -> Reply:
        """POST once. timeout: seconds for everything, and at most for each phase. Raises SendError."""
        phases = {
            "connect": min(timeout, _LONGEST_CONNECT),
            "pool": timeout,
            "read": timeout,
            "write": timeout,
        }
        sent = [
            ("user-agent", f"outbox-bridge/{__version__}"),
            ("accept", "application/json, */*;q=0.5"),
            *headers.items(),
        ]
        try:
            async with asyncio.timeout(timeout) as deadline:
                opened = self._pool(guard).stream(
                    "POST", url, headers=sent, content=content, extensions={"timeout": phases}
                )
                async with opened as response:
                    deadline.reschedule(None)  # the status is the answer, however its body comes
                    body = await _body(response, min(timeout, _LONGEST_BODY))
                    return Reply(response.status, _headers(response), body)
        except (TimeoutError, httpcore2.TimeoutException):
            raise _unanswered("timeout", f"no answer within {timeout:g} s") from None
        except AddressRefused:
            cause = (
                "its host has no public address; to reach a private one, add it to the connection's `allow`"
            )
            raise SendError(SendOutcome("dead", "address_refused", cause, blame="destination")) from None
        except httpcore2.ConnectError:
            raise _unanswered("connect", "cannot connect") from None
        except (httpcore2.LocalProtocolError, httpcore2.UnsupportedProtocol, UnicodeError, TypeError):
            cause = "the request would not be valid HTTP"
            raise SendError(SendOutcome("dead", "message", cause, blame="message")) from None
        except (httpcore2.NetworkError, httpcore2.ProtocolError, OSError):
            raise _unanswered("connection_lost", "the connection was lost before the answer") from None

    def _pool(self, guard: AddressGuard | None) -> httpcore2.AsyncConnectionPool:
        if guard not in self._pools:
            self._pools[guard] = httpcore2.AsyncConnectionPool(
                max_connections=200,
                max_keepalive_connections=20,
                keepalive_expiry=15.0,
                network_backend=GuardedBackend(guard, self._resolve),
            )
        return self._pools[guard]

    async def close(self) -> None:
        for pool in self._pools.values():
            await pool.aclose()
        self._pools.clear()


def _unanswered(code: str, cause: str) -> SendError:
    return SendError(SendOutcome("retry", code, cause, blame="destination"))


def _headers(response: httpcore2.Response) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}


async def _body(response: httpcore2.Response, seconds: float) -> bytes:
    """The body that arrives in time, up to the cap."""
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in response.aiter_stream():
                body += chunk
                if len(body) > LONGEST_ANSWER:
                    break
    except (TimeoutError, httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError):
        pass
    return bytes(body[:LONGEST_ANSWER])
