"""Combine the events of concurrent requests into one insert and one commit.

While one commit runs, the next batch collects behind it. So no request waits for a timer, and with more requests
each commit stores more events. It uses a pool of one connection.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import psycopg

from bridge.attempts import Backoff, Retries, bisect_async
from bridge.errors import BridgeError
from bridge.ingress.problem import Refusal
from bridge.ingress.store import IngressDown, Item, Stored, forget_deliveries, insert, prepare
from bridge.log import Log
from bridge.postgres.connect import Pool
from bridge.postgres.profiles import INGRESS
from bridge.postgres.safe_error import safe_error, safe_message

BATCH_ITEMS = 500
BATCH_BYTES = 4 << 20
QUEUE_ITEMS = 5000
QUEUE_BYTES = 64 << 20
WAIT_SECONDS = 10.0  # a request waits so long for its commit
STATEMENT_SECONDS = 15.0  # past the server's own statement_timeout: it is not there any more
LOOK_SECONDS = 10.0  # an idle connection is asked whether it lives
FORGET_SECONDS = 600.0
CONFLICT_ATTEMPTS = 3
_AGAIN = Backoff(first=0.25, longest=5.0)  # requests are refused meanwhile, so not longer

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
        source: str = "the source",
    ) -> None:
        """failed, works: report to the process's health. deliveries: are there old deliveries to delete? source: as
        answers and errors call it."""
        self._source = source
        self._dsn = dsn
        self._deliveries = deliveries
        self._failed = failed
        self._works = works
        self._queue: deque[_Waiting] = deque()
        self._bytes = 0
        self._news = asyncio.Event()
        self._retries = Retries(_AGAIN)  # of a server that accepts the connection and no event
        self._down = ""  # why nothing can be stored now
        self._forget_at = 0.0
        self.commits = 0
        self._log = Log("bridge.ingress")

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
                f"{self._source} did not answer in time; what was sent may still be stored: send the same "
                "idempotency key again"
            ) from None

    async def run(self) -> None:
        """Connect, store, reconnect, until cancelled; then waiting items are refused."""
        try:
            async with Pool(self._dsn, INGRESS, prepare=prepare) as pool:
                while True:
                    await self._use(pool)
        finally:
            self._down = "the bridge is stopping"
            self._refuse_all()

    async def _use(self, pool: Pool) -> None:
        """Store over a connection of the pool, until there is nothing to store or the connection is unusable."""
        try:
            async with contextlib.AsyncExitStack() as stack:
                async with asyncio.timeout(STATEMENT_SECONDS):
                    connection = await stack.enter_async_context(pool.connection())
                self._down = ""
                self._works()
                await self._serve_until_it_fails(connection)
        except (psycopg.Error, OSError, TimeoutError, BridgeError) as error:
            self._go_down(error)  # the pool connects again, with its back-off

    async def _serve_until_it_fails(self, connection: psycopg.AsyncConnection) -> None:
        commits = self.commits
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            await self._serve(connection)
        except (psycopg.Error, OSError, TimeoutError, BridgeError) as error:
            lost = is_lost(connection, error)
            self._retries.ran(loop.time() - began)
            await connection.close()  # the pool opens another
            if lost:
                self._log.info("connection lost", cause=safe_message(error))
                if self.commits > commits:
                    return  # items that can be sent again wait for the next connection
            self._go_down(error)
            await asyncio.sleep(self._retries.failed())

    def _go_down(self, error: BaseException) -> None:
        if not self._down:
            self._log.warning("cannot store events", cause=safe_message(error))
        self._down = f"{self._source} is not writable at present"
        self._failed(error if isinstance(error, IngressDown) else _down(error, self._source))
        self._refuse_all()

    def _refuse_all(self) -> None:
        while self._queue:
            self._queue.popleft().settle(unavailable(self._down))
        self._bytes = 0

    async def _serve(self, connection: psycopg.AsyncConnection) -> None:
        """Store batch after batch; returns after LOOK_SECONDS without one, so that the pool checks the connection.
        Raises when the connection is unusable."""
        while True:
            await self._forget(connection)
            if not self._queue:
                self._news.clear()
                try:
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self._news.wait()
                except TimeoutError:
                    return
            await self._store(connection, self._batch())

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
        """One transaction for all; if some of them are refused, one for each part that is not."""

        async def attempt(part: Sequence[_Waiting]) -> Refusal | None:
            try:
                stored = await self._insert(connection, part)
            except Exception as error:
                outcome = None if is_lost(connection, error) else _outcome_alone(error)
                if outcome is None:
                    raise
                if len(part) == 1:
                    if outcome.status == 500:
                        self._log.error("an event could not be stored", **safe_error(error))
                    part[0].settle(outcome)
                return outcome
            for one, result in zip(part, stored, strict=True):
                one.settle(result)
            return None

        try:
            await bisect_async(batch, attempt)
        except Exception as error:
            undecided = [one for one in batch if not one.future.done()]
            if is_lost(connection, error):
                self._keep_for_next(undecided)
            else:
                for one in undecided:
                    one.settle(unavailable(f"{self._source} is not writable at present"))
            raise

    async def _insert(self, connection: psycopg.AsyncConnection, batch: Sequence[_Waiting]) -> list[Stored]:
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
                        f"the connection to {self._source} was lost: it is unknown whether the event "
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
        return Refusal(500, "internal", "see the bridge's log")
    state = error.sqlstate or ""
    if state[:2] in ("22", "23", "54"):
        words = f": {_REFUSED[state]}" if state in _REFUSED else ""
        return Refusal(422, "payload", f"the source refuses the payload ({state}){words}")
    if state == "55P03":
        return unavailable("an open transaction uses the same idempotency key")
    if state[:2] in ("40", "P0") or state == "57014":
        return unavailable("the source refused this event")
    return None


def _down(error: BaseException, source: str) -> IngressDown:
    hint = error.hint if isinstance(error, BridgeError) else None
    return IngressDown(f"the ingress cannot write to {source}: {safe_message(error)}", hint=hint)
