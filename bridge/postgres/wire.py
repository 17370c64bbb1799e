"""Waiting for several libpq connections that never block, and reading what has arrived. connect.py opens them.

Uses psycopg's `pq` layer directly for what its cursors cannot do: COPY BOTH, and whole transactions sent as one
pipeline of prepared statements with encoded parameters. The raw socket is never read, so TLS works.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Sequence

from psycopg.pq.abc import PGconn

_RECORDS_AT_ONCE = 64  # then whoever reads looks around again; poll() still sees the rest


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


def read(connection: PGconn) -> None:
    """As consume(), where nobody asks whether there was data: without TLS that is one call of the system instead of
    two."""
    if connection.ssl_in_use:
        consume(connection)
    else:
        connection.consume_input()


class Poller:
    """wait() for descriptors that are nearly the same every time."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._masks: dict[int, int] = {}

    def wait(self, masks: dict[int, int], timeout: float) -> list[tuple[int, int]]:
        """Those that are ready, each with its events, after at most `timeout` seconds. masks: by descriptor."""
        if masks != self._masks:
            for descriptor in self._masks.keys() - masks.keys():
                self._poll.unregister(descriptor)
            for descriptor, mask in masks.items():
                self._poll.register(descriptor, mask)
            self._masks = masks
        return self._poll.poll(max(0.0, timeout) * 1000)


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
