"""Does anybody answer where sinks send to: for `--network`. Nothing is sent, and addresses, which hold secrets,
are told as host and port alone.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from bridge.config.model import Config
from bridge.doctor.check import Check, ok
from bridge.sinks.model import SinkConnection

_SECONDS = 5.0


def reach(config: Config) -> Iterator[Check]:
    """One check a sink connection that names its server."""
    for name, connection in config.connections.items():
        if not isinstance(connection, SinkConnection):
            continue
        for host, port, tls in _servers(connection):
            yield _connect(name, host, port, tls=tls)


def _servers(connection: SinkConnection) -> list[tuple[str, int, bool]]:
    """(host, port, whether TLS comes first)."""
    values = dict(connection)
    if isinstance(values.get("host"), str):  # a mail server
        security = str(values.get("security"))
        port = values.get("port") or {"tls": 465, "starttls": 587}.get(security, 25)
        return [(str(values["host"]), int(port), security == "tls")]
    url = next((values[key] for key in ("webhook_url", "url", "api_url") if values.get(key)), None)
    if url is None:
        return []
    parts = urlsplit(str(url))
    tls = parts.scheme == "https"
    return [(parts.hostname or "", parts.port or (443 if tls else 80), tls)]


def _connect(name: str, host: str, port: int, *, tls: bool) -> Check:
    began = time.monotonic()
    try:
        with socket.create_connection((host, port), timeout=_SECONDS) as link:
            if tls:
                with ssl.create_default_context().wrap_socket(link, server_hostname=host):
                    pass
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        fix = f"try: curl -v {'https' if tls else 'http'}://{host}:{port}/   (a proxy or firewall may stand between)"
        return Check(
            "error", name, "sink", f"{host}:{port} cannot be reached: {why}", fix, "advice", unreachable=True
        )
    return ok(name, "sink", f"{host}:{port} answers, {(time.monotonic() - began) * 1000:.0f} ms")
