"""Is there a pooler between us and the server, and does it give us our own session?

The apply transaction relies on its session's settings (durable commits, no row security, an empty search_path) and
on prepared statements. A pooler in transaction or statement mode switches servers between two statements and passes
our settings to other clients. It is refused on a target, before anything is set.
"""

from __future__ import annotations

import psycopg
from psycopg import pq

from bridge.errors import CannotConnect, Halt
from bridge.postgres import wire

_ROUNDS = 3
_PATIENCE_SECONDS = 5.0


def is_pooled(connection: psycopg.Connection) -> bool:
    """Does a process answer other than the one named at login? Poolers invent the cancel key."""
    return _backend(connection) != connection.info.backend_pid


def _backend(connection: psycopg.Connection) -> int:
    row = connection.execute("select pg_catalog.pg_backend_pid()").fetchone()
    return 0 if row is None else int(row[0])


def is_shared(connection: psycopg.Connection, conninfo: str, what: str) -> bool:
    """Does a pooler switch servers between two statements? A second connection with this conninfo that gets our
    server proves it. Sets nothing. what: for errors, such as "the target"."""
    ours = _backend(connection)
    if ours == connection.info.backend_pid:
        return False
    for _ in range(_ROUNDS):
        other = wire.connect(conninfo, what)
        try:
            theirs = _ask(other, b"begin; select pg_catalog.pg_backend_pid()")
            if theirs is not None and (theirs == ours or _backend(connection) != ours):
                return True
        finally:
            other.finish()
    return False


def require_own_session(connection: psycopg.Connection, conninfo: str) -> None:
    """Raise Halt unless this connection to a target is a session."""
    if is_shared(connection, conninfo, "the target"):
        raise Halt(
            "the target is behind a pooler in transaction mode: two statements of one connection "
            "can run on two servers, so the session's settings would be lost",
            reason="target_pooled",
            hint="change this connection's dsn to the server itself, or to a pool with pool_mode = session",
        )


def _ask(connection: pq.abc.PGconn, query: bytes) -> int | None:
    """The returned number; None if the pool has no free server, which can happen in session mode."""
    connection.send_query(query)
    end = wire.deadline(_PATIENCE_SECONDS)
    answer: int | None = None
    while True:
        while connection.is_busy():
            left = end - wire.deadline(0)
            if left <= 0:
                return None
            wire.wait([connection.socket], [], left)
            wire.consume(connection)
        result = connection.get_result()
        if result is None:
            return answer
        if result.status == pq.ExecStatus.TUPLES_OK:
            answer = int(result.get_value(0, 0) or 0)
        elif result.status == pq.ExecStatus.FATAL_ERROR and connection.status != pq.ConnStatus.OK:
            raise CannotConnect("the pooler closed a connection")
