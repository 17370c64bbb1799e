"""Is there a pooler between us and the server, and does it give us a session of our own?

The apply transaction relies on its session's settings (durable commits, no row security, an empty
search_path) and on prepared statements. A pooler in transaction or statement mode takes the server away
between two statements and hands our settings to strangers: refused on a target, before anything is set.
"""

from __future__ import annotations

import psycopg
from psycopg import pq

from bridge.errors import CannotConnect, Halt
from bridge.postgres import wire

_ROUNDS = 3
_PATIENCE_SECONDS = 5.0


def is_pooled(connection: psycopg.Connection) -> bool:
    """Another process answers than the one that the login named: poolers make up the cancel key."""
    return _backend(connection) != connection.info.backend_pid


def _backend(connection: psycopg.Connection) -> int:
    row = connection.execute("select pg_catalog.pg_backend_pid()").fetchone()
    return 0 if row is None else int(row[0])


def is_shared(connection: psycopg.Connection, conninfo: str, what: str) -> bool:
    """Does a pooler take the server away between two statements? Another connection of this conninfo that is given
    our server, or takes it from us, proves it. Sets nothing. what: for errors, such as "the target"."""
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
    """Halt unless this connection to a target is a session."""
    if is_shared(connection, conninfo, "the target"):
        raise Halt(
            "the target is behind a pooler in transaction mode: two statements of one connection meet two servers, "
            "so nothing that a session is set to would hold",
            reason="target_pooled",
            hint="let this connection's dsn name the server itself, or a pool with pool_mode = session",
        )


def _ask(connection: pq.abc.PGconn, query: bytes) -> int | None:
    """The number it answers; None when the pool has no server left for us, as a pool of sessions may not."""
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
