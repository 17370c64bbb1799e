"""Does anybody answer where sinks send to: for `--network`. No message is sent, and addresses, which hold secrets,
are told as host and port alone.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

from bridge.config.model import Config
from bridge.doctor import path
from bridge.doctor.check import Check, ok
from bridge.sinks.apprise import AppriseConnection
from bridge.sinks.model import SinkConnection


def libraries(config: Config) -> Iterator[Check]:
    """What a connection of type apprise is to the library: what it could not read is an error of bridge.yaml."""
    for name, connection in config.connections.items():
        if isinstance(connection, AppriseConnection):
            from bridge.sinks import apprise_thread  # noqa: PLC0415  # an extra

            service = apprise_thread.service(connection.url)
            yield ok(name, "apprise", f"{service}, by apprise {apprise_thread.version()}")


def reach(config: Config) -> Iterator[Check]:
    """The way to each sink connection that names its server. Where an apprise one ends, only the library knows."""
    for name, connection in config.connections.items():
        if not isinstance(connection, SinkConnection):
            continue
        ca_file = getattr(connection, "ca_file", None)
        for place, tls in _servers(connection):
            yield from _way(name, place, tls=tls, greeting=hasattr(connection, "sender"), ca_file=ca_file)


def _way(where: str, place: path.Place, *, tls: bool, greeting: bool, ca_file: str | None) -> Iterator[Check]:
    link = yield from path.walk(where, place)
    if link is None:
        return
    with link:
        local = path.local_address(link)
        if tls:
            yield path.tls(where, place, link, ca_file=ca_file)
        elif greeting:
            yield _greeted(where, place, link)
        yield path.egress(where, local)


def _greeted(where: str, place: path.Place, link: socket.socket) -> Check:
    """A mail server speaks first (RFC 5321, 3.1)."""
    try:
        said = link.recv(100)
    except OSError:
        said = b""
    if said.startswith(b"220"):
        return ok(where, "greeting", f"{place} greets as a mail server does")
    problem = (
        f"{place} takes the connection and does not greet as a mail server does within {path.SECONDS:.0f} s"
    )
    fix = "correct host, port and security: with `tls` the server expects TLS first (465), else it greets (587, 25)"
    return Check("error", where, "reach_greeting", problem, fix, "config", unreachable=True)


def _servers(connection: SinkConnection) -> list[tuple[path.Place, bool]]:
    """Where, and whether TLS comes first."""
    values = dict(connection)
    if isinstance(values.get("host"), str):  # a mail server
        security = str(values.get("security"))
        port = values.get("port") or {"tls": 465, "starttls": 587}.get(security, 25)
        return [(path.Place(str(values["host"]), int(port)), security == "tls")]
    url = next((values[key] for key in ("webhook_url", "url", "api_url") if values.get(key)), None)
    if url is None:
        return []
    parts = urlsplit(str(url))
    if parts.scheme not in ("http", "https"):
        return []
    tls = parts.scheme == "https"
    guard = getattr(connection, "guard", None)
    return [(path.Place(parts.hostname or "", parts.port or (443 if tls else 80), guard), tls)]
