"""A libpq connection that never blocks, and a wait for several of them at once.

Uses psycopg's `pq` layer directly for what its cursors cannot do: COPY BOTH, and whole transactions sent as one
pipeline of prepared statements with encoded parameters. The raw socket is never read, so TLS works.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq.abc import PGconn

from bridge.errors import CannotConnect

# A link without an acknowledgement for this long is dead (half-open).
_KEEPALIVE = {
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
    "connect_timeout": "10",
}
_RECORDS_AT_ONCE = 64  # then whoever reads looks around again; poll() still sees the rest


def complete(dsn: str, **parameters: str) -> str:
    """The conninfo with our defaults for missing parameters, overridden by `parameters`."""
    given = conninfo_to_dict(dsn)
    options = " ".join(filter(None, (str(given.get("options") or ""), parameters.pop("options", ""))))
    merged = {**_KEEPALIVE, **{k: str(v) for k, v in given.items() if v is not None}, **parameters}
    if options:
        merged["options"] = options
    return make_conninfo(**merged)


def connect(conninfo: str, what: str) -> PGconn:
    """Connect, with at most connect_timeout per host. what: for the error, such as "the source".

    Not with PGconn.connect(), which holds the interpreter's lock while the server is silent: the whole process would
    block, health checks included.
    """
    given = conninfo_to_dict(conninfo)
    hosts = 1 + str(given.get("host") or "").count(",")
    patience = int(given.get("connect_timeout") or _KEEPALIVE["connect_timeout"])
    end = deadline(hosts * patience + (hosts - 1) * 20)  # tcp_user_timeout leads on to the next host
    connection = pq.PGconn.connect_start(conninfo.encode())
    status: int = (
        pq.PollingStatus.WRITING if connection.status != pq.ConnStatus.BAD else pq.PollingStatus.FAILED
    )
    while status in (pq.PollingStatus.READING, pq.PollingStatus.WRITING) and (left := end - deadline(0)) > 0:
        socket = [connection.socket]
        reading = status == pq.PollingStatus.READING
        wait(socket if reading else [], [] if reading else socket, left)
        status = connection.connect_poll()
    if status != pq.PollingStatus.OK:
        failed = status == pq.PollingStatus.FAILED
        message = connection.get_error_message() if failed else "connection timeout expired"
        connection.finish()
        raise CannotConnect(f"cannot connect to {what}: {message}", hint=advice(message))
    connection.nonblocking = 1
    return connection


_ADVICE = (
    (
        r"does not match host name",
        "use the host in the dsn that the server's certificate is issued for, or issue a "
        "certificate for this host",
    ),
    (
        r"certificate verify failed",
        "the server's certificate has expired or is not signed by the CA in sslrootcert: renew "
        "it, or name the file of the right CA; to see it: openssl s_client -starttls postgres "
        "-connect HOST:PORT </dev/null | openssl x509 -noout -dates -issuer -subject",
    ),
    (
        r"root certificate file|root\.crt",
        "set sslrootcert to the file of the CA that signed the server's certificate, or to system",
    ),
    (
        r"does not support SSL|SSL off|no encryption",
        "the server does not support this `sslmode`: turn TLS on in the server (ssl = on), or "
        "check its pg_hba.conf",
    ),
    (
        r"password authentication failed|no password supplied",
        "correct the password where the dsn comes from, or set the role's: \\password ROLE in psql",
    ),
    (
        r'database ".*" does not exist',
        "correct `dbname` in the dsn; to list the databases: psql -l",
    ),
    (
        r'role ".*" does not exist|is not permitted to log in',
        "correct `user` in the dsn, or create the role with LOGIN: bridge doctor has the SQL",
    ),
    (
        r"no pg_hba.conf entry|pg_hba.conf rejects",
        "add a line for this machine, database and role to the server's pg_hba.conf; then: select pg_reload_conf();",
    ),
    (
        r"could not translate host name|failed to resolve host|Name or service not known",
        "correct `host` in the dsn: the name does not resolve on this machine",
    ),
    (
        r"[Cc]onnection refused|No such file or directory",
        "nothing listens there: correct `host` and `port` in the dsn, or start the server",
    ),
    (
        r"unsupported startup parameter: replication",
        "a pooler cannot carry replication: change source.dsn to the server itself, or set "
        "source.capture to poll",
    ),
)


def advice(message: str) -> str:
    """The fix for a connection that failed with this libpq message."""
    for pattern, words in _ADVICE:
        if re.search(pattern, message):
            return words
    return "check the dsn, the network and pg_hba.conf; bridge doctor checks each"


def consume(connection: PGconn) -> bool:
    """Read everything that has arrived, so that a later poll() of the socket reports only new data. True: there was
    data.

    Under TLS one read takes one record (at most 16 KiB), and libpq may have room for half of it: the rest waits
    inside OpenSSL, where poll() does not see it. When the socket is empty, at most 8 KiB can be left there, and
    libpq always makes room for that much. libpq 18.6 empties OpenSSL itself; 15.18 does not, and an answer then
    waits until other data arrives (tests/security/test_tls.py). The host decides which libpq we use.
    """
    descriptor = connection.socket
    heard = bool(wait([descriptor], [], 0))
    connection.consume_input()
    if connection.ssl_in_use:
        for _ in range(_RECORDS_AT_ONCE):
            empty = not wait([descriptor], [], 0)
            connection.consume_input()
            if empty:
                break
    return heard


def takes_no_options(error: Exception) -> bool:
    """Is this a pooler (PgBouncer) that refuses the options of a startup packet?"""
    return "unsupported startup parameter" in str(error) and "options" in str(error)


def settings(values: Mapping[str, str]) -> tuple[str, list[list[str]]]:
    """A statement that sets these for the session, with its parameters."""
    query = "select pg_catalog.set_config(name, value, false) from unnest(%s::text[], %s::text[]) as s(name, value)"
    return query, [list(values), list(values.values())]


def wait(readable: Sequence[int], writable: Sequence[int], timeout: float) -> list[int]:
    """The descriptors that are ready, after at most `timeout` seconds."""
    poller = select.poll()
    for descriptor in readable:
        poller.register(descriptor, select.POLLIN)
    for descriptor in writable:
        mask = select.POLLOUT | (select.POLLIN if descriptor in readable else 0)
        poller.register(descriptor, mask)
    return [descriptor for descriptor, _ in poller.poll(max(0.0, timeout) * 1000)]


_ANSWER_SECONDS = 30.0  # beyond every statement_timeout of ours


class BoundedConnection(psycopg.Connection[psycopg.rows.TupleRow]):
    """For short statements: a missing answer ends the connection. statement_timeout works only on the server, and a
    half-open link can acknowledge packets without a server behind it."""

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        try:
            return super().wait(gen, interval, timeout or _ANSWER_SECONDS)
        except psycopg.errors._WaitTimeout:
            self.pgconn.finish()
            raise psycopg.OperationalError(
                f"no answer in {_ANSWER_SECONDS:.0f} s: the link is dead"
            ) from None


class Waker:
    """Lets another thread end a wait: add `descriptor` to the readable ones, then drain()."""

    def __init__(self) -> None:
        self.descriptor, self._write = os.pipe()
        self._closing = threading.Lock()
        self._closed = False
        os.set_blocking(self.descriptor, False)
        os.set_blocking(self._write, False)

    def nudge(self) -> None:
        """Wake the waiting thread. Does nothing after close(): the number of a closed pipe may belong to another
        file."""
        with self._closing, contextlib.suppress(BlockingIOError):  # full: it will wake anyway
            if not self._closed:
                os.write(self._write, b".")

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.descriptor, 4096)

    def close(self) -> None:
        with self._closing:
            self._closed = True
            os.close(self.descriptor)
            os.close(self._write)


def deadline(seconds: float) -> float:
    """A time on the monotonic clock."""
    return time.monotonic() + seconds
