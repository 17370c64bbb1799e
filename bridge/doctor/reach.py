"""Can a server be reached: name, port, TLS, login?

The cause of a failed login is taken from libpq's message, because there is no SQLSTATE before the session exists.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import statistics
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace

import psycopg
from psycopg.conninfo import conninfo_to_dict

from bridge.doctor import path
from bridge.doctor.check import Check, Kind, ok
from bridge.postgres import wire
from bridge.postgres.safe_error import mask_secrets

OLDEST, NEWEST = 14, 18
_SLOW_SECONDS = 0.02
_PATIENCE = "10"  # connect_timeout where the dsn has none (postgres/wire.py)

# (check, libpq's message, fix, kind). The first match counts.
_FAILURES: tuple[tuple[str, str, str, Kind], ...] = (
    (
        "name",
        r"could not translate host name|failed to resolve host|Name or service not known|nodename nor servname",
        "the host's name does not resolve here: correct `host` in the dsn, or check the DNS: "
        "getent hosts {host}",
        "config",
    ),
    (
        "password",
        r"password authentication failed|no password supplied",
        "the password is wrong or missing for role {user}: correct it where the dsn comes from, or set it: "
        "\\password {user} in psql; ${{VAR}} and ${{file:/run/secrets/x}} keep it out of the file",
        "config",
    ),
    (
        "database",
        r'database ".*" does not exist',
        "correct `dbname` in the dsn; to list the databases: psql -l",
        "config",
    ),
    (
        "role",
        r'role ".*" does not exist',
        "create the role: bridge schema source has it, as outbox_bridge; or correct `user` in the dsn",
        "advice",
    ),
    (
        "login",
        r"is not permitted to log in",
        'alter role "{user}" login;',
        "sql",
    ),
    (
        "login",
        r"permission denied for database",
        'grant connect on database "{dbname}" to "{user}";',
        "sql",
    ),
    (
        "pg_hba",
        r"no pg_hba.conf entry|pg_hba.conf rejects",
        "add a line to the server's pg_hba.conf, such as: hostssl {dbname} {user} <this machine>/32 scram-sha-256 "
        "(and one whose database is `replication` is not needed); then: select pg_reload_conf();",
        "advice",
    ),
    (
        "tls",
        r"certificate|SSL|sslmode|TLS",
        "the server's certificate does not satisfy `sslmode`: sslmode=verify-full needs "
        "sslrootcert=<the CA's file, or system> and a certificate for the host in the dsn",
        "config",
    ),
    (
        "connections",
        r"too many (clients|connections)|remaining connection slots",
        "the server accepts no more connections: close idle ones, or raise max_connections and restart it",
        "advice",
    ),
    (
        "starting",
        r"starting up|shutting down|in recovery mode|not yet accepting",
        "the server is starting or stopping: try again soon",
        "advice",
    ),
    (
        "port",
        r"[Cc]onnection refused|No such file or directory",
        "nothing listens at {host}:{port}: correct `host` and `port`, start the server, or set "
        "its listen_addresses",
        "config",
    ),
    (
        "closed",
        r"server closed the connection",
        "something answers at {host}:{port} and closes the connection before the login: a proxy "
        "without a server behind it, or not Postgres",
        "config",
    ),
    (
        "timeout",
        r"timeout expired|timed out|[Nn]o route|unreachable",
        "a firewall drops the packets, the address is wrong, or something accepts the connection "
        "and does not answer: bridge doctor --network shows which, and the address to allow there",
        "advice",
    ),
)


def parameters(dsn: str) -> Mapping[str, str]:
    """host, port, dbname and user as libpq resolves them from the dsn and the environment."""
    defaults = {
        option.keyword.decode(): option.val.decode()
        for option in psycopg.pq.Conninfo.get_defaults()
        if option.val
    }
    return {**defaults, **{name: str(value) for name, value in conninfo_to_dict(dsn).items()}}


def place(dsn: str) -> str:
    """The database as a conninfo for psql, without user and secrets."""
    known = parameters(dsn)
    return " ".join(f"{name}={known[name]}" for name in ("host", "port", "dbname") if known.get(name))


def connect(dsn: str, *, search_path: bool = False) -> psycopg.Connection:
    """Connect as the bridge does, in autocommit. search_path: the role's own, as for enrichments; otherwise empty.
    Raises psycopg.OperationalError."""
    path_option = "" if search_path else "-c search_path= "
    options = f"{path_option}-c statement_timeout=15s -c lock_timeout=2s -c client_encoding=UTF8"
    conninfo = wire.complete(dsn, application_name="bridge doctor", options=options)
    try:
        return psycopg.connect(conninfo, autocommit=True, prepare_threshold=None)
    except psycopg.OperationalError as error:
        if not wire.takes_no_options(error):
            raise
    conninfo = wire.complete(dsn, application_name="bridge doctor")
    return psycopg.connect(conninfo, autocommit=True, prepare_threshold=None)


def unreachable(where: str, dsn: str, error: psycopg.Error) -> Check:
    """The step that failed, with its fix."""
    known = {"host": "the local socket", "port": "5432", "dbname": "?", "user": "?", **parameters(dsn)}
    said = " ".join(mask_secrets(str(error)).split())
    for check, pattern, advice, kind in _FAILURES:
        if re.search(pattern, said):
            if re.search(r"timeout expired|timed out", said):
                patience = known.get("connect_timeout") or _PATIENCE
                said = f"no answer from {known['host']}:{known['port']} within {patience} s"
            fix = advice.format(**{name: known[name] for name in ("host", "port", "dbname", "user")})
            return Check(
                "error", where, f"reach_{check}", f"cannot connect: {said}", fix, kind, unreachable=True
            )
    fix = "try the same dsn with psql"
    return Check("error", where, "reach", f"cannot connect: {said}", fix, "advice", unreachable=True)


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
    with connect(dsn):
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
