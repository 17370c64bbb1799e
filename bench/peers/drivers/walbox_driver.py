"""walbox: its client, its checkpoint written in the target with the rows, and batches that are this file's: what came
while the batch before was written, up to 2,000 events. (Its handler is called once a transaction.)"""

from __future__ import annotations

import asyncio
import os

import psycopg
from target import STATEMENT, rows
from walbox import Transaction, WalboxOptions
from walbox.abc import CheckpointHandle
from walbox.checkpoint import PostgresCheckpointStore
from walbox.client import Client

_MOST = 2000


class Batches:
    """The handler, and the task that writes what it has taken."""

    def __init__(self, target: psycopg.AsyncConnection) -> None:
        self._target = target
        self._events: list[tuple[str, str]] = []
        self._last: tuple[int, CheckpointHandle] | None = None
        self._some = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    async def take(self, transaction: Transaction, checkpoint: CheckpointHandle) -> None:
        """A transaction that came; waits while a batch is full."""
        for change in transaction.changes:
            assert change.new is not None
            self._events.append((change.new["id"], change.new["payload"]))
        self._last = (transaction.commit_lsn, checkpoint)
        self._some.set()
        if len(self._events) >= _MOST:
            self._room.clear()
            await self._room.wait()

    async def write(self) -> None:
        """For ever: rows and checkpoint commit together, so a kill repeats nothing."""
        while True:
            await self._some.wait()
            self._some.clear()
            events, self._events = self._events, []
            self._room.set()
            if self._last is None:
                continue
            lsn, checkpoint = self._last
            async with self._target.transaction():
                await psycopg.AsyncRawCursor(self._target).execute(STATEMENT, [rows(events)], prepare=True)
                await checkpoint.save(lsn, connection=self._target)


async def main() -> None:
    """Until it is killed."""
    source, target_url = os.environ["SOURCE_URL"], os.environ["TARGET_URL"]
    options = WalboxOptions(
        consumer_name="bench",
        dsn=source,
        slot_name=os.environ["SLOT"],
        publication_name=os.environ["PUBLICATION"],
        max_pending_transactions=2 * _MOST,
    )
    async with await psycopg.AsyncConnection.connect(target_url, autocommit=True) as target:
        batches = Batches(target)
        client = Client(options, PostgresCheckpointStore(target_url, consumer_name="bench"))
        async with asyncio.TaskGroup() as group:
            group.create_task(batches.write())
            group.create_task(client.run(batches.take))


asyncio.run(main())
