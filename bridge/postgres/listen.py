"""LISTEN for polling: a notification only wakes the reader sooner, the timer guarantees it.

Behind a pooler in transaction mode LISTEN is accepted and nothing ever arrives, so the connection proves
itself first: it notifies itself. When that fails, there is only the timer.
"""

from __future__ import annotations

import uuid

import psycopg

from bridge.postgres import wire

CHANNEL = "outbox_bridge"
_PROBE_SECONDS = 2.0


class Listener:
    """`descriptor` is readable when somebody notified; None: notifications do not arrive here."""

    def __init__(self, dsn: str, stream: str) -> None:
        self._connection: psycopg.Connection | None = None
        self.descriptor: int | None = None
        try:
            connection = psycopg.connect(
                wire.complete(dsn, application_name=f"bridge-listen/{stream}"), autocommit=True
            )
        except psycopg.Error:
            return
        try:
            proved = self._proves(connection)
        except psycopg.Error:
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
