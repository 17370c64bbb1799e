"""LISTEN for polling: a notification only wakes the reader sooner, the timer guarantees it.

Behind a pooler in transaction mode LISTEN is accepted, and what arrives between two statements is lost. So the
connection proves first that it is a session, then notifies itself. When either fails, there is only the timer.
"""

from __future__ import annotations

import uuid

import psycopg

from bridge.errors import CannotConnect
from bridge.postgres import wire
from bridge.postgres.pooler import is_shared

CHANNEL = "outbox_bridge"
_PROBE_SECONDS = 2.0


class Listener:
    """`descriptor` is readable when somebody notified; None: notifications do not arrive here."""

    def __init__(self, dsn: str, stream: str) -> None:
        self._connection: psycopg.Connection | None = None
        self.descriptor: int | None = None
        try:
            conninfo = wire.complete(dsn, application_name=f"bridge-listen/{stream}")
            connection = psycopg.connect(conninfo, autocommit=True, prepare_threshold=None)
        except psycopg.Error:
            return
        try:
            proved = not is_shared(connection, conninfo, "the source") and self._proves(connection)
        except (psycopg.Error, CannotConnect):
            proved = False
        if not proved:
            connection.close()
            return
        self._connection = connection
        self.descriptor = connection.fileno()

    def _proves(self, connection: psycopg.Connection) -> bool:
        token = str(uuid.uuid4())
        connection.execute(f"listen {CHANNEL}")
        connection.execute("select pg_notify(%s, %s)", [CHANNEL, token])
        return any(
            notification.payload == token
            for notification in connection.notifies(timeout=_PROBE_SECONDS, stop_after=1)
        )

    def drain(self) -> None:
        """Forget what has arrived. A connection that broke leaves the timer alone."""
        if self._connection is None:
            return
        try:
            for _ in self._connection.notifies(timeout=0):
                pass
        except psycopg.Error:
            self.close()

    def close(self) -> None:
        self.descriptor = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
