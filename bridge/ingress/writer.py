"""Combine the events of concurrent requests into one insert and one commit.

While one commit runs, the next batch collects behind it. So no request waits for a timer, and with more requests
each commit stores more events. It uses one connection.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import psycopg
import structlog

from bridge.errors import BridgeError
from bridge.ingress.problem import Refusal
from bridge.ingress.store import IngressDown, Item, Stored, connect, forget_deliveries, insert
from bridge.postgres.safe_error import safe_error, safe_message

BATCH_ITEMS = 500
BATCH_BYTES = 4 << 20
QUEUE_ITEMS = 5000
QUEUE_BYTES = 64 << 20
WAIT_SECONDS = 10.0  # a request waits so long for its commit
STATEMENT_SECONDS = 15.0  # past the server's own statement_timeout: it is not there any more
LOOK_SECONDS = 10.0  # an idle connection is asked whether it lives
FORGET_SECONDS = 600.0
LONGEST_PAUSE = 5.0  # between attempts to connect
CONFLICT_ATTEMPTS = 3

StoreOutcome = Stored | Refusal


@dataclass(eq=False, slots=True)
class _Waiting:
    item: Item
    future: asyncio.Future[StoreOutcome] = field(repr=False)
    again: bool = False  # tried once already, on a connection that broke

    def settle(self, outcome: StoreOutcome) -> None:
        if not self.future.done():
            self.future.set_result(outcome)


def unavailable(detail: str) -> Refusal:
    """The Refusal 503: the event may not be stored."""
    return Refusal(503, "unavailable", detail, retry_after=1)


class Writer:
    """`put` from any number of requests; `run` in one task."""

    def __init__(
        self,
        dsn: str,
        *,
        failed: Callable[[BridgeError], None],
        works: Callable[[], None],
        deliveries: Callable[[], bool] = bool,
    ) -> None:
        """failed, works: report to the process's health. deliveries: are there old deliveries to delete?"""
        self._dsn = dsn
        self._deliveries = deliveries
        self._failed = failed
        self._works = works
        self._queue: deque[_Waiting] = deque()
        self._bytes = 0
        self._news = asyncio.Event()
        self._down = ""  # why nothing can be stored now
        self._forget_at = 0.0
        self.commits = 0
        self._log = structlog.get_logger("bridge.ingress")

    async def put(self, items: Sequence[Item]) -> list[StoreOutcome]:
        """Each item's outcome, in order, after its commit. Raises Refusal 503 if it cannot be accepted."""
        size = sum(len(item.payload) for item in items)
        if self._down:
            raise unavailable(self._down)
        if len(self._queue) + len(items) > QUEUE_ITEMS or self._bytes + size > QUEUE_BYTES:
            raise unavailable("too many events wait to be stored")
        loop = asyncio.get_running_loop()
        waiting = [_Waiting(item, loop.create_future()) for item in items]
        self._queue.extend(waiting)
        self._bytes += size
        self._news.set()
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                return [await one.future for one in waiting]
        except TimeoutError:
            raise unavailable(
                "the source did not answer in time; what was sent may still be stored: send the same "
                "idempotency key again"
            ) from None

    async def run(self) -> None:
        """Connect, store, reconnect, until cancelled; then waiting items are refused."""
        pause = 0.0
        try:
            while True:
                pause = await self._session(pause)
                await asyncio.sleep(pause)
        finally:
            self._down = "the bridge is stopping"
            self._refuse_all()

    async def _session(self, pause: float) -> float:
        """One connection's life; the seconds to wait before the next."""
        connection: psycopg.AsyncConnection | None = None
        commits = self.commits
        try:
            async with asyncio.timeout(STATEMENT_SECONDS):
                connection = await connect(self._dsn)
            self._down = ""
            self._works()
            await self._serve(connection)
        except (psycopg.Error, OSError, TimeoutError, BridgeError) as error:
            if connection is not None and is_lost(connection, error):
                self._log.info("connection lost", cause=safe_message(error))
                if self.commits > commits:
                    return 0.0  # what can be sent again waits for the next connection
            self._go_down(error)
        finally:
            if connection is not None:
                await connection.close()
        return min(LONGEST_PAUSE, pause * 2 or 0.25)

    def _go_down(self, error: BaseException) -> None:
        if not self._down:
            self._log.warning("cannot store events", cause=safe_message(error))
        self._down = "the source is not writable at present"
        trouble = error if isinstance(error, BridgeError) else IngressDown(_why(error))
        self._failed(trouble)
        self._refuse_all()

    def _refuse_all(self) -> None:
        while self._queue:
            self._queue.popleft().settle(unavailable(self._down))
        self._bytes = 0

    async def _serve(self, connection: psycopg.AsyncConnection) -> None:
        """Store batch after batch; raises when the connection is unusable."""
        while True:
            if not self._queue:
                self._news.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self._news.wait()
            if self._queue:
                await self._store(connection, self._batch())
            else:
                async with asyncio.timeout(STATEMENT_SECONDS):
                    await connection.execute("select")
            await self._forget(connection)

    async def _forget(self, connection: psycopg.AsyncConnection) -> None:
        """From time to time, delete some thousands of expired deliveries."""
        now = asyncio.get_running_loop().time()
        if self._deliveries() and now >= self._forget_at:
            async with asyncio.timeout(STATEMENT_SECONDS):
                more = await forget_deliveries(connection)
            self._forget_at = now + (1.0 if more else FORGET_SECONDS)

    def _batch(self) -> list[_Waiting]:
        """The next items of one kind: with a delivery, or without."""
        kind, size = self._queue[0].item.delivery is None, 0
        batch: list[_Waiting] = []
        while self._queue and len(batch) < BATCH_ITEMS and size < BATCH_BYTES:
            if (self._queue[0].item.delivery is None) is not kind:
                break
            batch.append(self._queue.popleft())
            size += len(batch[-1].item.payload)
        self._bytes -= size
        return [one for one in batch if not one.future.done()]

    async def _store(self, connection: psycopg.AsyncConnection, batch: list[_Waiting]) -> None:
        """One transaction for all; if one of them is refused, one for each half."""
        if not batch:
            return
        try:
            stored = await self._insert(connection, batch)
        except Exception as error:
            if is_lost(connection, error):
                self._keep_for_next(batch)
                raise
            outcome = _outcome_alone(error)
            if outcome is None:
                for one in batch:
                    one.settle(unavailable("the source is not writable at present"))
                raise
            if len(batch) == 1:
                if outcome.status == 500:
                    self._log.error("an event could not be stored", **safe_error(error))
                batch[0].settle(outcome)
                return
            middle = len(batch) // 2
            await self._store(connection, batch[:middle])
            await self._store(connection, batch[middle:])
        else:
            for one, result in zip(batch, stored, strict=True):
                one.settle(result)

    async def _insert(self, connection: psycopg.AsyncConnection, batch: list[_Waiting]) -> list[Stored]:
        for attempt in range(1, CONFLICT_ATTEMPTS + 1):
            try:
                async with asyncio.timeout(STATEMENT_SECONDS):
                    stored = await insert(connection, [one.item for one in batch])
            except psycopg.errors.OperationalError as error:
                if (error.sqlstate or "")[:2] != "40" or attempt == CONFLICT_ATTEMPTS:
                    raise
            else:
                self.commits += 1
                return stored
        raise AssertionError("the last attempt returned or raised")

    def _keep_for_next(self, batch: list[_Waiting]) -> None:
        """It is unknown whether they are committed: items with a unique name are sent again."""
        for one in reversed(batch):
            if one.again or not one.item.names:
                one.settle(
                    unavailable(
                        "the connection to the source was lost: it is unknown whether the event "
                        "is stored; with an idempotency key it can be sent again safely"
                    )
                )
            else:
                one.again = True
                self._queue.appendleft(one)
                self._bytes += len(one.item.payload)


def is_lost(connection: psycopg.AsyncConnection, error: BaseException) -> bool:
    """True if the session is lost, and with it the answer."""
    if isinstance(error, (OSError, TimeoutError)) or connection.closed:
        return True
    return (
        isinstance(error, psycopg.Error)
        and (error.sqlstate or "08")[:2] in ("08", "57")
        and (error.sqlstate != "57014")
    )


_REFUSED = {
    "22003": "a number is beyond what Postgres' numeric holds",
    "54001": "it is nested too deeply",
}


def _outcome_alone(error: BaseException) -> Refusal | None:
    """The refusal for one event that the server refuses; None: the server refuses every event."""
    if not isinstance(error, psycopg.Error):
        return Refusal(500, "internal", "the bridge's log says more")
    state = error.sqlstate or ""
    if state[:2] in ("22", "23", "54"):
        words = f": {_REFUSED[state]}" if state in _REFUSED else ""
        return Refusal(422, "payload", f"the source refuses the payload ({state}){words}")
    if state == "55P03":
        return unavailable("an open transaction uses the same idempotency key")
    if state[:2] in ("40", "P0") or state == "57014":
        return unavailable("the source refused this event")
    return None


def _why(error: BaseException) -> str:
    return f"the ingress cannot write to the source: {safe_message(error)}"
