"""The network path to a server, step by step: addresses of its name, port, TLS, and our own address.

For `bridge doctor --network`, for databases and sinks. Sends nothing to the server except a TLS handshake, if the
connection begins with one.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from bridge.doctor.check import Check, ok
from bridge.sinks.reachable import AddressGuard

SECONDS = 5.0
"""Seconds that an address may take to answer, and a TLS handshake may take."""


@dataclass(frozen=True, slots=True)
class Place:
    """A host (name or address) and a TCP port. guard: which addresses may be reached; None: all."""

    host: str
    port: int
    guard: AddressGuard | None = None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def walk(where: str, place: Place) -> Generator[Check, None, socket.socket | None]:
    """Resolve the name and connect. Returns the connected socket, or None after an error."""
    addresses = yield from _addresses(where, place)
    failures: list[tuple[str, OSError]] = []
    for address in addresses:
        began = time.monotonic()
        try:
            link = socket.create_connection((address, place.port), timeout=SECONDS)
        except OSError as error:
            failures.append((address, error))
            continue
        taken = (time.monotonic() - began) * 1000
        yield from _passed_over(where, failures)
        yield ok(where, "port", f"{place} answers, {taken:.0f} ms")
        return link
    if failures:
        yield _unreached(where, place, failures)
    return None


def tls(where: str, place: Place, link: socket.socket, *, ca_file: str | None = None) -> Check:
    """Make a TLS handshake over `link` and close it. The server's certificate must be valid for its name."""
    began = time.monotonic()
    try:
        context = ssl.create_default_context(cafile=ca_file)
        with context.wrap_socket(link, server_hostname=place.host) as secured:
            version = secured.version()
    except TimeoutError:
        said = f"{place} accepts the connection but does not answer the TLS handshake within {SECONDS:.0f} s"
        fix = "something in between accepts connections for it, or it does not use TLS on that port"
        return Check("error", where, "reach_tls", said, fix, "advice", unreachable=True)
    except (OSError, ValueError) as error:
        why = getattr(error, "verify_message", "") or getattr(error, "reason", "") or _word(error)
        fix = f"to see its certificate: openssl s_client -connect {place} -servername {place.host} </dev/null"
        said = f"no TLS with {place}: {why}"
        return Check("error", where, "reach_tls", said, fix, "advice", unreachable=True)
    return ok(where, "tls", f"{version} with {place}, {(time.monotonic() - began) * 1000:.0f} ms")


def egress(where: str, local: str, seen: str | None = None) -> Check:
    """The address that the other side must allow. local: the socket's own; seen: the server's view, if it can be
    asked."""
    if seen is None:
        said = f"{local} on this machine"
        if not ip_address(local).is_loopback:
            said += (
                "; behind address translation (NAT) the receiver sees another address: allow that one there"
            )
        return ok(where, "egress", said)
    if ip_address(seen) == ip_address(local):
        return ok(where, "egress", f"{local}, also as the server sees us: the address to allow there")
    return ok(
        where,
        "egress",
        f"{seen} as the server sees us: the address to allow there; {local} on this machine, so "
        "something in between translates addresses or proxies the connection (NAT, a proxy, a "
        "pooler)",
    )


def local_address(link: socket.socket) -> str:
    """The numeric address of this end of a connected socket."""
    return plain(str(link.getsockname()[0]))


def plain(address: str) -> str:
    """Without the interface name, and with mapped IPv4 as IPv4."""
    found = ip_address(address.partition("%")[0])
    return str(getattr(found, "ipv4_mapped", None) or found)


def _addresses(where: str, place: Place) -> Generator[Check, None, list[str]]:
    began = time.monotonic()
    try:
        found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        said = f"{place.host} has no address: {_word(error)} ({time.monotonic() - began:.1f} s)"
        fix = f"correct the host, or check the DNS: getent ahosts {place.host}"
        yield Check("error", where, "reach_name", said, fix, "config", unreachable=True)
        return []
    every = list(dict.fromkeys(str(address[0]) for *_, address in found))
    taken = (time.monotonic() - began) * 1000
    yield ok(where, "addresses", f"{place.host} is {', '.join(every)}, {taken:.0f} ms")
    permitted = [each for each in every if place.guard is None or place.guard.permits(each)]
    if not permitted:
        said = f"{place.host} has no public address: nothing is sent there"
        fix = f"if it is yours, allow it in the connection: allow: [{plain(every[0])}]"
        yield Check("error", where, "address_refused", said, fix, "config")
    return permitted


def _passed_over(where: str, failures: list[tuple[str, OSError]]) -> Iterator[Check]:
    for address, error in failures:
        said = (
            f"{address} does not answer ({_word(error)}), but another address of that name "
            "does: connections may wait"
        )
        fix = "remove that address from the DNS, or fix the path to it"
        yield Check("warn", where, "port", said, fix, "advice")


def _unreached(where: str, place: Place, failures: list[tuple[str, OSError]]) -> Check:
    said = "; ".join(f"{address}: {_word(error)}" for address, error in failures)
    message = f"{place} cannot be reached: {said}"
    if any(isinstance(error, ConnectionRefusedError) for _, error in failures):
        fix = "nothing listens there: correct host and port, or start the server and check what it listens on"
        return Check("error", where, "reach_port", message, fix, "advice", unreachable=True)
    ours = _source_address(failures[0][0], place.port)
    fix = (
        f"a firewall drops the packets, or the address is wrong: allow {ours or 'this machine'} "
        f"(or its translated address) to port {place.port}; try: nc -vz {place.host} {place.port}"
    )
    return Check("error", where, "reach_timeout", message, fix, "advice", unreachable=True)


def _source_address(address: str, port: int) -> str:
    """The source address of packets to there, from the routing table; empty: there is no route."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, port))  # of a datagram socket: nothing is sent
        except OSError:
            return ""
        return local_address(probe)


def _word(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {SECONDS:.0f} s"
    return str(getattr(error, "strerror", "") or error or type(error).__name__)
