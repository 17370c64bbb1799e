"""Settles a lane's messages in sets: what has come together while a statement ran is settled by the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from bridge.postgres import delivery as queue
from bridge.postgres.delivery import Again, AsyncLink, Dead


class Settler:
    """Takes results, and keeps each until it is durable. settled: told the ids, and which of them were not ours any
    more."""

    def __init__(
        self,
        connection: AsyncLink,
        epoch: int,
        settled: Callable[[Sequence[str], set[str]], None],
        *,
        keeps: bool = True,
    ) -> None:
        """keeps: the ledger has a history of each message."""
        self._keeps = keeps
        self._connection = connection
        self._epoch = epoch
        self._settled = settled
        self._sent: list[str] = []
        self._again: list[Again] = []
        self._dead: list[Dead] = []
        self._news = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def sent(self, identity: str) -> None:
        """It was accepted."""
        self._sent.append(identity)
        self._wake()

    def again(self, message: Again) -> None:
        """It is due later."""
        self._again.append(message)
        self._wake()

    def dead(self, message: Dead) -> None:
        """It gets a dead letter."""
        self._dead.append(message)
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._idle.clear()

    async def run(self) -> None:
        """Settle until it is cancelled. Raises psycopg.Error."""
        while True:
            await self._news.wait()
            self._news.clear()
            sent, self._sent = self._sent, []
            again, self._again = self._again, []
            dead, self._dead = self._dead, []
            ours: set[str] = set()
            if sent:
                ours |= await queue.settle_sent(self._connection, sent, self._epoch)
            if again:
                ours |= await queue.settle_again(self._connection, again, self._epoch, keeps=self._keeps)
            if dead:
                ours |= await queue.settle_dead(self._connection, dead, self._epoch, keeps=self._keeps)
            ids = [*sent, *(one.id for one in again), *(one.id for one in dead)]
            self._settled(ids, set(ids) - ours)
            if not self._news.is_set():
                self._idle.set()

    async def drained(self) -> None:
        """Wait until everything is durable."""
        await self._idle.wait()
