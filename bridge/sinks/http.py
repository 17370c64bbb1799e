"""The HTTP client of all sinks: one POST, no redirects, no proxies, no cookies, a deadline and a capped answer.

It is aiohttp's, whose parser is written in C: a delivery costs a fifth of what it costs with one in Python
(docs/performance.md). Every socket is made by _Sockets, which is where addresses are checked (model.py, AddressGuard).
One session per guard: connections that one webhook may open are not shared with another.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from bridge import __version__
from bridge.sinks.model import ADDRESS_REFUSED, Reply, SendError, SendOutcome, no_answer
from bridge.sinks.reachable import AddressGuard

LONGEST_ANSWER = 64 * 1024
"""Maximum bytes of a body that are read; then the connection is closed."""
_LONGEST_CONNECT = 5.0
_LONGEST_BODY = 2.0
_CONNECTIONS = 200

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Host and port to numeric addresses."""


class AddressRefused(Exception):
    """No address of the host may be reached."""


async def resolve(host: str, port: int) -> list[str]:
    """The system resolver's addresses, in its order."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class _Resolver(AbstractResolver):
    """Resolves once for a connection and gives only addresses that may be reached. TLS and Host keep the name."""

    def __init__(self, guard: AddressGuard | None, resolver: Resolve) -> None:
        self._guard = guard
        self._resolve = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        try:
            found = await self._resolve(host, port)
        except UnicodeError:
            raise OSError("the name cannot be resolved") from None
        permitted = [one for one in found if self._guard is None or self._guard.permits(one)]
        if not permitted:
            raise AddressRefused
        return [
            {
                "hostname": host,
                "host": one,
                "port": port,
                "family": socket.AF_INET6 if ":" in one else socket.AF_INET,
                "proto": socket.IPPROTO_TCP,
                "flags": socket.AI_NUMERICHOST,
            }
            for one in permitted
        ]

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Sockets:
    """Makes the socket of a connection, to an address that may be reached: also to one that a URL has itself."""

    guard: AddressGuard | None

    def __call__(self, address: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, place = address
        if self.guard is not None and not self.guard.permits(str(place[0])):
            raise AddressRefused
        return socket.socket(family, kind, protocol)


class HttpClient:
    """One per process; close it in the loop that used it."""

    def __init__(self, resolver: Resolve = resolve) -> None:
        self._resolve = resolver
        self._sessions: dict[AddressGuard | None, aiohttp.ClientSession] = {}

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
        try:
            async with asyncio.timeout(timeout) as deadline:
                async with self._session(guard).post(
                    URL(url, encoded=True), data=content, headers=headers, allow_redirects=False
                ) as response:
                    deadline.reschedule(None)  # the status is the answer, however its body comes
                    body = await _body(response, min(timeout, _LONGEST_BODY))
                    return Reply(response.status, _headers(response), body)
        except TimeoutError:
            raise SendError(no_answer(timeout)) from None
        except AddressRefused:
            raise SendError(ADDRESS_REFUSED) from None
        except aiohttp.ClientConnectorDNSError:
            raise _unanswered("connect", "cannot connect: its name cannot be resolved") from None
        except (aiohttp.ClientSSLError, aiohttp.ClientConnectorCertificateError):
            raise _unanswered("connect", "cannot connect: its TLS certificate is not accepted") from None
        except aiohttp.ClientConnectorError:
            raise _unanswered("connect", "cannot connect") from None
        except (aiohttp.InvalidURL, UnicodeError, TypeError, ValueError):
            cause = "the request would not be valid HTTP"
            raise SendError(SendOutcome("dead", "message", cause, blame="message")) from None
        except (aiohttp.ClientError, OSError):
            raise _unanswered("connection_lost", "the connection was lost before the answer") from None

    def _session(self, guard: AddressGuard | None) -> aiohttp.ClientSession:
        if guard not in self._sessions:
            connector = aiohttp.TCPConnector(
                resolver=_Resolver(guard, self._resolve),
                socket_factory=_Sockets(guard),
                use_dns_cache=False,
                limit=_CONNECTIONS,
                keepalive_timeout=15.0,
            )
            self._sessions[guard] = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_LONGEST_CONNECT),
                headers={
                    "user-agent": f"outbox-bridge/{__version__}",
                    "accept": "application/json, */*;q=0.5",
                },
                skip_auto_headers=("accept-encoding", "content-type"),
                auto_decompress=False,
                max_line_size=LONGEST_ANSWER,
                max_field_size=LONGEST_ANSWER,
            )
        return self._sessions[guard]

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()


def _unanswered(code: str, cause: str) -> SendError:
    return SendError(SendOutcome("retry", code, cause, blame="destination"))


def _headers(response: aiohttp.ClientResponse) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.raw_headers}


async def _body(response: aiohttp.ClientResponse, seconds: float) -> bytes:
    """The body that arrives in time, up to the cap."""
    if response.content.at_eof():
        return b""
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > LONGEST_ANSWER:
                    response.close()
                    break
    except (TimeoutError, aiohttp.ClientError, OSError):
        response.close()
    return bytes(body[:LONGEST_ANSWER])
