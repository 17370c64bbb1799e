"""A link behind which nobody is, though every packet is acknowledged: the control connections notice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import psycopg
import pytest

from bridge.postgres.connect import Pool, connect
from bridge.postgres.profiles import SOURCE
from tests.support.proxy import FaultProxy
from tests.support.servers import Database


def test_a_control_connection_gives_up_on_a_link_that_only_acknowledges(
    source: Database, proxy_to: Callable[[str], FaultProxy]
) -> None:
    link = proxy_to(source.bridge_dsn)
    connection = connect(link.dsn, SOURCE, "s")
    assert connection.answer_seconds > SOURCE.statement_seconds
    connection.answer_seconds = 0.5
    assert connection.execute("select 1").fetchone() == (1,)
    link.blackhole()
    with pytest.raises(psycopg.OperationalError, match="the link is dead"):
        connection.execute("select 1")
    assert connection.closed


def test_a_pool_replaces_a_connection_that_gave_up(
    source: Database, proxy_to: Callable[[str], FaultProxy]
) -> None:
    link = proxy_to(source.bridge_dsn)

    async def story() -> None:
        async with Pool(link.dsn, SOURCE, "s") as pool:
            async with pool.connection() as connection:
                connection.answer_seconds = 0.5
                link.blackhole()
                with pytest.raises(psycopg.OperationalError, match="the link is dead"):
                    await connection.execute("select 1")
                assert connection.closed
                link.clear()
            async with pool.connection() as another:
                assert await (await another.execute("select 1")).fetchone() == (1,)

    asyncio.run(story())


def test_an_error_of_the_server_is_not_a_dead_link(source: Database) -> None:
    with connect(source.bridge_dsn, SOURCE, "s") as connection:
        connection.answer_seconds = 5.0
        connection.execute("set statement_timeout = '100ms'")
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("select pg_sleep(3)")
        assert connection.execute("select 1").fetchone() == (1,)
