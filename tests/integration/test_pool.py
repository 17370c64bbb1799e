"""Pools of connections: what they raise, and that they recover."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from bridge.errors import CannotConnect
from bridge.postgres.connect import Pool
from bridge.postgres.profiled import AsyncProfiledConnection
from bridge.postgres.profiles import BACKLOG, SOURCE
from tests.support.proxy import FaultProxy
from tests.support.servers import Database, RestartableServer

NOBODY = "host=127.0.0.1 port=1 dbname=app user=nobody"


async def backend(connection: AsyncProfiledConnection) -> Any:
    return await (await connection.execute("select pg_backend_pid()")).fetchone()


def test_a_pool_raises_the_error_of_the_server_at_once() -> None:
    async def story() -> None:
        async with Pool(NOBODY, SOURCE, "test") as pool:
            for _ in range(2):
                async with asyncio.timeout(20):
                    with pytest.raises(CannotConnect, match="Connection refused") as caught:
                        async with pool.connection():
                            raise AssertionError("there is no server")
                assert "nothing listens there" in caught.value.hint

    asyncio.run(story())


def test_a_connection_that_is_not_ready_is_not_given_out(source: Database) -> None:
    seen: list[AsyncProfiledConnection] = []

    async def prepare(connection: AsyncProfiledConnection) -> None:
        seen.append(connection)
        if len(seen) == 1:
            await connection.execute("select 1 / 0")

    async def story() -> None:
        async with Pool(source.bridge_dsn, SOURCE, "test", prepare=prepare) as pool:
            with pytest.raises(psycopg.errors.DivisionByZero):
                async with pool.connection():
                    raise AssertionError("it was not prepared")
            async with pool.connection() as connection:
                assert connection is seen[-1]
                assert connection.profile is SOURCE
        assert seen[0].closed
        assert seen[-1].closed

    asyncio.run(story())


def test_a_connection_is_kept_checked_and_replaced(source: Database) -> None:
    async def story() -> None:
        async with Pool(source.bridge_dsn, BACKLOG, "test", least=0) as pool:
            async with pool.connection() as connection:
                first = await backend(connection)
            async with pool.connection() as connection:
                assert await backend(connection) == first
                await connection.close()
            async with pool.connection() as connection:
                second = await backend(connection)
                assert second != first
            await asyncio.to_thread(source.execute, "select pg_terminate_backend(%s)", list(second))
            async with pool.connection() as connection:  # the check found it
                assert await backend(connection) not in (first, second)

    asyncio.run(story())


def test_a_server_that_comes_back_is_found(
    source_cluster: RestartableServer, source: Database, proxy_to: Any
) -> None:
    proxy: FaultProxy = proxy_to(source.bridge_dsn)

    async def story() -> None:
        async with Pool(proxy.dsn, SOURCE, "test") as pool:
            async with pool.connection() as connection:
                await backend(connection)
            proxy.refuse()
            proxy.reset_all()
            for _ in range(3):
                with pytest.raises(CannotConnect):
                    async with pool.connection():
                        raise AssertionError("there is no server")
            proxy.clear()
            async with asyncio.timeout(30):
                while True:
                    try:
                        async with pool.connection() as connection:
                            await backend(connection)
                            return
                    except CannotConnect:
                        continue

    asyncio.run(story())


def test_a_waiting_task_that_is_cancelled_keeps_no_connection(
    source: Database,
) -> None:
    async def story() -> None:
        async with Pool(source.bridge_dsn, SOURCE, "test") as pool:

            async def use() -> Any:
                async with pool.connection() as connection:
                    return await backend(connection)

            async with pool.connection() as connection:
                only = await backend(connection)
                waiting = [asyncio.create_task(use()) for _ in range(6)]
                await asyncio.sleep(0.05)
                for task in waiting[::2]:
                    task.cancel()
            done = await asyncio.gather(*waiting, return_exceptions=True)
            assert done[1::2] == [only] * 3
            assert all(isinstance(one, asyncio.CancelledError) for one in done[::2])

    asyncio.run(story())


def test_a_cancelled_statement_does_not_break_the_pool(source: Database) -> None:
    async def story() -> None:
        async with Pool(source.bridge_dsn, SOURCE, "test") as pool:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2), pool.connection() as connection:
                    await connection.execute("select pg_sleep(9)")
            async with pool.connection() as connection:
                assert await backend(connection)

    asyncio.run(story())
