"""A libpq connection that never blocks, and the wait for several of them at once.

psycopg's `pq` layer is used directly where its cursors cannot go: COPY BOTH, and whole transactions sent
as one pipeline of prepared statements with parameters that are already encoded. Nobody reads the raw
socket, so TLS works as everywhere.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Sequence

from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq.abc import PGconn

from bridge.errors import CannotConnect

# A link on which nothing is acknowledged for so long is dead (half-open), whatever TCP thinks.
_KEEPALIVE = {
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
    "connect_timeout": "10",
}


def complete(dsn: str, **parameters: str) -> str:
    """The conninfo with our defaults for what it leaves open, and `parameters` on top."""
    given = conninfo_to_dict(dsn)
    options = " ".join(filter(None, (str(given.get("options") or ""), parameters.pop("options", ""))))
    merged = {**_KEEPALIVE, **{k: str(v) for k, v in given.items() if v is not None}, **parameters}
    if options:
        merged["options"] = options
    return make_conninfo(**merged)


def connect(conninfo: str, what: str) -> PGconn:
    """Connect, blocking at most connect_timeout an address. what: for the error, such as "the source"."""
    connection = pq.PGconn.connect(conninfo.encode())
    if connection.status != pq.ConnStatus.OK:
        message = connection.get_error_message()
        connection.finish()
        raise CannotConnect(
            f"cannot connect to {what}: {message}",
            hint="check the dsn, the network and pg_hba.conf; bridge doctor looks at each",
        )
    connection.nonblocking = 1
    return connection


def wait(readable: Sequence[int], writable: Sequence[int], timeout: float) -> list[int]:
    """The descriptors that are ready, after at most `timeout` seconds."""
    poller = select.poll()
    for descriptor in readable:
        poller.register(descriptor, select.POLLIN)
    for descriptor in writable:
        mask = select.POLLOUT | (select.POLLIN if descriptor in readable else 0)
        poller.register(descriptor, mask)
    return [descriptor for descriptor, _ in poller.poll(max(0.0, timeout) * 1000)]


class Waker:
    """Lets another thread end a wait: put `descriptor` among the readable ones, then drain()."""

    def __init__(self) -> None:
        self.descriptor, self._write = os.pipe()
        self._closing = threading.Lock()
        self._closed = False
        os.set_blocking(self.descriptor, False)
        os.set_blocking(self._write, False)

    def nudge(self) -> None:
        """Nothing happens when nobody waits any more: the number of a closed pipe may be another file's."""
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
    """A moment on the monotonic clock."""
    return time.monotonic() + seconds
