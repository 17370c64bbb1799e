"""psycopg connections and cursors in which a profile's settings apply to every statement, even if a pooler lends the
server for one transaction at a time. connect.py opens them.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
from psycopg import pq
from psycopg.rows import Row, TupleRow

from bridge.postgres.profiles import Profile

FIRST_ANSWER_SECONDS = 30.0
"""For the statements that make the profile's settings; afterwards the profile's answer_seconds applies."""

_IDLE = pq.TransactionStatus.IDLE


Waits = Callable[[int, int, float], int]
"""How a thread waits that has other sockets to serve: (descriptor, psycopg.waiting.Wait, seconds) -> Ready, 0 if it is
not. It returns after a second at most."""


class ProfiledConnection(psycopg.Connection[TupleRow]):
    """A connection in autocommit. Its profile's settings apply to every statement.

    It closes itself when an answer does not come: statement_timeout needs a server, and behind a half-open link there
    is none, even if something acknowledges its packets.
    """

    profile: Profile
    lent = False  # a pooler lends the server for one transaction at a time
    answer_seconds: float | None = FIRST_ANSWER_SECONDS
    waits: Waits | None = None  # as psycopg does

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        if timeout is not None:  # psycopg's own limit, which it handles
            return super().wait(gen, interval, timeout)
        if self.waits is not None:
            return self._wait_beside(gen, self.waits)
        began = time.monotonic()
        try:
            return super().wait(gen, interval, self.answer_seconds)
        except psycopg.OperationalError as error:
            if not _is_late(self, error, began):
                raise
            self.pgconn.finish()
            raise psycopg.OperationalError(_DEAD.format(self.answer_seconds)) from None

    def _wait_beside(self, gen: Any, waits: Waits) -> Any:
        end = math.inf if self.answer_seconds is None else time.monotonic() + self.answer_seconds
        try:
            wanted = next(gen)
            while True:
                ready = waits(self.pgconn.socket, wanted, end - time.monotonic())
                if ready:
                    wanted = gen.send(ready)
                elif time.monotonic() >= end:
                    self.pgconn.finish()
                    raise psycopg.OperationalError(_DEAD.format(self.answer_seconds))
        except StopIteration as ended:
            return ended.value

    def begin(self, mode: str = "") -> None:
        """Begin a transaction; commit() or rollback() ends it. mode: `read only`, an isolation level, ..."""
        psycopg.Cursor(self).execute(_begin(self, mode))

    @contextlib.contextmanager
    def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> Iterator[psycopg.Transaction]:
        settle = self.lent and self.info.transaction_status == _IDLE
        with super().transaction(savepoint_name, force_rollback) as transaction:
            if settle:
                psycopg.Cursor(self).execute(self.profile.set_in_transaction().encode())
            yield transaction


class ProfiledCursor(psycopg.Cursor[Row]):
    def execute(self, *arguments: Any, **options: Any) -> Any:
        connection = self.connection
        if not _stands_alone(connection):
            return super().execute(*arguments, **options)
        try:
            psycopg.Cursor(connection).execute(_begin(connection))
            super().execute(*arguments, **options)
            connection.commit()
        except BaseException:
            with contextlib.suppress(psycopg.Error):
                connection.rollback()
            raise
        return self


class AsyncProfiledConnection(psycopg.AsyncConnection[TupleRow]):
    """The same for asyncio."""

    profile: Profile
    lent = False
    answer_seconds: float | None = FIRST_ANSWER_SECONDS

    async def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        if timeout is not None:
            return await super().wait(gen, interval, timeout)
        began = time.monotonic()
        try:
            return await super().wait(gen, interval, self.answer_seconds)
        except psycopg.OperationalError as error:
            if not _is_late(self, error, began):
                raise
            self.pgconn.finish()
            raise psycopg.OperationalError(_DEAD.format(self.answer_seconds)) from None

    def transaction(self, savepoint_name: str | None = None, force_rollback: bool = False) -> Any:
        if self.lent:
            raise psycopg.NotSupportedError("each statement has a transaction of its own here")
        return super().transaction(savepoint_name, force_rollback)


class AsyncProfiledCursor(psycopg.AsyncCursor[Row]):
    async def execute(self, *arguments: Any, **options: Any) -> Any:
        connection = self.connection
        if not _stands_alone(connection):
            return await super().execute(*arguments, **options)
        try:
            await psycopg.AsyncCursor(connection).execute(_begin(connection))
            await super().execute(*arguments, **options)
            await connection.commit()
        except BaseException:
            with contextlib.suppress(psycopg.Error):
                await connection.rollback()
            raise
        return self


_DEAD = "no answer in {:.0f} s: the link is dead"


def _is_late(
    connection: ProfiledConnection | AsyncProfiledConnection, error: psycopg.Error, began: float
) -> bool:
    """psycopg stopped waiting; there was no error of the server or of the socket."""
    limit = connection.answer_seconds
    waited = limit is not None and time.monotonic() - began >= limit
    return waited and error.sqlstate is None and connection.pgconn.status == pq.ConnStatus.OK


def _stands_alone(connection: Any) -> bool:
    """The next statement is outside of a transaction, and the server is only lent for one."""
    return bool(connection.lent) and connection.info.transaction_status == _IDLE


def _begin(connection: Any, mode: str = "") -> bytes:
    if connection.lent:
        return f"begin; {connection.profile.set_in_transaction(mode)}".encode()
    return f"begin {mode}".rstrip().encode()
