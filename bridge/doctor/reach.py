"""Can a server be reached: name, port, TLS, login? The causes of a failed login are in postgres/advice.py."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import statistics
import time
from collections.abc import Generator, Iterator
from dataclasses import replace

import psycopg

from bridge.doctor import path
from bridge.doctor.check import Check, ok
from bridge.errors import CannotConnect, Halt
from bridge.postgres.advice import cause_of, parameters
from bridge.postgres.connect import CONNECT_SECONDS, connect
from bridge.postgres.profiled import ProfiledConnection
from bridge.postgres.profiles import CATALOG, DOCTOR
from bridge.postgres.replication import open_replication
from bridge.postgres.safe_error import mask_secrets
from bridge.stream.spec import StreamSpec

OLDEST, NEWEST = 14, 18
_SLOW_SECONDS = 0.02


def place(dsn: str) -> str:
    """The database as a conninfo for psql, without user and secrets."""
    known = parameters(dsn)
    return " ".join(f"{name}={known[name]}" for name in ("host", "port", "dbname") if known.get(name))


def unreachable(where: str, dsn: str, error: CannotConnect) -> Check:
    """The step that failed, with its fix."""
    said = " ".join(mask_secrets(str(error.args[0])).split())
    cause = cause_of(said)
    if cause is None:
        return Check("error", where, "reach", said, error.hint, "advice", unreachable=True)
    if re.search(r"timeout expired|timed out", said):
        known = {"host": "the local socket", "port": "5432", **parameters(dsn)}
        patience = known.get("connect_timeout") or CONNECT_SECONDS
        said = f"cannot connect: no answer from {known['host']}:{known['port']} within {patience} s"
    return Check("error", where, f"reach_{cause.name}", said, error.hint, cause.kind, unreachable=True)


def reached(where: str, connection: psycopg.Connection) -> Iterator[Check]:
    """Version, TLS and our role."""
    info = connection.info
    major = info.server_version // 10000
    place = f"{info.dbname} on {info.host or 'the local socket'}:{info.port} as {info.user}"
    yield ok(where, "reach", f"connected to {place}")
    if major < OLDEST:
        yield Check(
            "error",
            where,
            "version",
            f"PostgreSQL {major}; {OLDEST} is the oldest supported",
            "upgrade it",
            "advice",
        )
    elif major > NEWEST:
        yield Check(
            "warn",
            where,
            "version",
            f"PostgreSQL {major} is newer than this bridge knows ({NEWEST})",
            "pip install --upgrade outbox-bridge",
            "advice",
        )
    else:
        yield ok(where, "version", f"PostgreSQL {major}")
    yield _tls(where, connection)


def source_pooler(link: ProfiledConnection, plan: StreamSpec) -> Iterator[Check]:
    """A pooler before the source: whether capture works behind it."""
    if not link.lent:
        return
    if plan.capture != "poll":
        try:
            open_replication(plan.source_dsn, "doctor").finish()
        except CannotConnect as error:
            yield Check(
                "error",
                "source",
                "pooler",
                f"capture is {plan.capture}: {error.args[0]}",
                error.hint,
                "config",
                unreachable=True,
            )
            return
    yield ok("source", "pooler", f"a pooler stands between; capture: {plan.capture} works behind it")


def target_pooler(link: ProfiledConnection, plan: StreamSpec) -> Iterator[Check]:
    """A pooler before the target: it must give us sessions."""
    if not link.lent:
        return
    try:
        connect(plan.target_dsn, CATALOG, "bridge doctor", where="the target").close()
    except Halt as error:
        yield Check("error", plan.connection, error.reason, str(error.args[0]), error.hint, "config")
    else:
        yield ok(plan.connection, "pooler", "a pooler stands between, and gives sessions")


def is_local(host: str) -> bool:
    """A socket, or an address of this machine."""
    if not host or host.startswith(("/", "@")) or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _tls(where: str, connection: psycopg.Connection) -> Check:
    info = connection.info
    mode = str(info.get_parameters().get("sslmode") or "prefer")
    if is_local(info.host) or is_local(info.hostaddr):
        return ok(where, "tls", "on this machine")
    if mode == "verify-full":
        return ok(where, "tls", "sslmode verify-full")
    used = "encrypted" if connection.pgconn.ssl_in_use else "not encrypted"
    return Check(
        "warn",
        where,
        "tls",
        f"sslmode is {mode} ({used}) to {info.host}: the server's identity is not verified",
        "add sslmode: verify-full and sslrootcert: <the CA's file, or system> to this connection",
        "config",
    )


def way(where: str, dsn: str) -> Generator[Check, None, bool]:
    """Check name and port of each host in the dsn, before a login. Returns whether one was reached. Skips a local
    socket."""
    known = parameters(dsn)
    hosts = str(known.get("hostaddr") or known.get("host") or "").split(",")
    ports = str(known.get("port") or "5432").split(",")
    if any(not host or host.startswith(("/", "@")) for host in hosts):
        return True
    links: list[socket.socket | None] = []

    def walking() -> Iterator[Check]:
        for number, host in enumerate(hosts):
            port = ports[number] if len(ports) == len(hosts) else ports[0]
            links.append((yield from path.walk(where, path.Place(host, int(port or 5432)))))

    checks = list(walking())
    answered = False
    for link in filter(None, links):
        link.close()
        answered = True
    for check in checks:
        spare = answered and check.level == "error"  # the dsn names others, and one of them answers
        yield replace(check, level="warn", unreachable=False) if spare else check
    return answered


def network(where: str, dsn: str, connection: psycopg.Connection) -> Iterator[Check]:
    """Measure TLS, our address, and round trips, for `--network`."""
    yield from _session(where, connection)
    began = time.monotonic()
    with connect(dsn, DOCTOR):
        opened = time.monotonic() - began
    trips = []
    for _ in range(20):
        began = time.monotonic()
        connection.execute("select 1")
        trips.append(time.monotonic() - began)
    median = statistics.median(trips)
    said = f"round trip {median * 1000:.2f} ms (worst {max(trips) * 1000:.2f}), a connection {opened * 1000:.0f} ms"
    if median > _SLOW_SECONDS:
        advice = "each batch waits for a round trip: run the bridge closer to this server"
        yield Check("warn", where, "round_trip", said, advice, "advice")
    else:
        yield ok(where, "round_trip", said)


_SEEN = (
    "select host(inet_client_addr()), s.version, s.cipher from pg_stat_ssl s where s.pid = pg_backend_pid()"
)


def _session(where: str, connection: psycopg.Connection) -> Iterator[Check]:
    """The server's view of this session's address, and our end of it."""
    with socket.socket(fileno=os.dup(connection.pgconn.socket)) as link:
        if link.family == socket.AF_UNIX:
            yield ok(where, "egress", "none: the local socket")
            return
        local = path.local_address(link)
    row = connection.execute(_SEEN).fetchone()
    seen, version, cipher = row or (None, None, None)
    said = f"{version}, {cipher}" if version else "none: this connection is not encrypted"
    yield ok(where, "tls_session", said)
    yield path.egress(where, local, path.plain(seen) if seen else None)
