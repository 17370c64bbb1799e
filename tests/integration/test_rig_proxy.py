"""The fault proxy does to connections what it says it does."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from tests.support.proxy import FaultProxy
from tests.support.servers import Database

INSERT = "insert into probe values (%s)"


@pytest.fixture
def proxy(target: Database, proxy_to: Callable[[str], FaultProxy]) -> Iterator[FaultProxy]:
    target.execute("create table probe (i int)")
    return proxy_to(target.dsn)


def count(target: Database) -> int:
    return int(target.value("select count(*) from probe"))


def test_explicit_commit_happens_and_its_answer_is_lost(proxy: FaultProxy, target: Database) -> None:
    lost = proxy.lose_commit_answer(b"into probe")
    with psycopg.connect(proxy.dsn) as client:
        client.execute(INSERT, [1])
        with pytest.raises(psycopg.OperationalError):
            client.commit()
    lost.wait()
    assert count(target) == 1


def test_implicit_commit_at_sync_of_a_prepared_statement_is_lost(proxy: FaultProxy, target: Database) -> None:
    with psycopg.connect(proxy.dsn, autocommit=True, prepare_threshold=0) as client:
        client.execute(INSERT, [1])
        lost = proxy.lose_commit_answer(b"into probe")
        client.execute("select 1")
        with pytest.raises(psycopg.OperationalError):
            client.execute(INSERT, [2])
    lost.wait()
    assert count(target) == 2


def test_the_second_of_two_pipelined_commits_is_lost(proxy: FaultProxy, target: Database) -> None:
    lost = proxy.lose_commit_answer(b"into probe", nth=2)
    with psycopg.connect(proxy.dsn, autocommit=True) as client:
        with pytest.raises(psycopg.OperationalError):
            insert_twice_in_a_pipeline(client)
        assert lost.happened
    assert count(target) == 2


def insert_twice_in_a_pipeline(client: psycopg.Connection[tuple[Any, ...]]) -> None:
    with client.pipeline() as pipeline:
        for number in (1, 2):
            client.execute("begin")
            client.execute(INSERT, [number])
            client.execute("commit")
            pipeline.sync()


def test_rollbacks_and_other_transactions_are_not_counted(proxy: FaultProxy, target: Database) -> None:
    lost = proxy.lose_commit_answer(b"into probe")
    with psycopg.connect(proxy.dsn) as client:
        client.execute(INSERT, [1])
        client.rollback()
        client.execute("select 1")
        client.commit()
        with pytest.raises(psycopg.DataError):
            client.execute(INSERT, ["not a number"])
        client.rollback()
        assert not lost.happened
        client.execute("select 2")
        client.commit()
    assert count(target) == 0


def test_refused_then_cleared(proxy: FaultProxy) -> None:
    proxy.refuse()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(proxy.dsn)
    proxy.clear()
    psycopg.connect(proxy.dsn).close()


def test_blackhole_answers_nothing_until_cleared(proxy: FaultProxy) -> None:
    with psycopg.connect(proxy.dsn, autocommit=True) as client:
        proxy.blackhole()
        with pytest.raises(psycopg.OperationalError, match="timeout"):
            psycopg.connect(proxy.dsn, connect_timeout=2)
        proxy.clear()
        with pytest.raises(psycopg.OperationalError):
            client.execute("select 1")
    psycopg.connect(proxy.dsn).close()


def test_reset_all_cuts_every_connection(proxy: FaultProxy) -> None:
    with psycopg.connect(proxy.dsn, autocommit=True) as client:
        assert proxy.reset_all() == 1
        with pytest.raises(psycopg.OperationalError):
            client.execute("select 1")


def test_cut_after_some_bytes(proxy: FaultProxy) -> None:
    with psycopg.connect(proxy.dsn, autocommit=True) as client:
        proxy.cut_after(10_000)
        client.execute("select 1")
        with pytest.raises(psycopg.OperationalError):
            client.execute("select repeat('x', 100000)")


def test_half_open_leaves_the_client_waiting_and_frees_the_server(
    proxy: FaultProxy, target: Database
) -> None:
    client = psycopg.connect(proxy.dsn, autocommit=True)
    assert proxy.half_open() == 1
    until = time.monotonic() + 20
    while target.execute("select from pg_stat_activity where pid = %s", [client.info.backend_pid]):
        assert time.monotonic() < until, "the server still has the session"
    client.pgconn.send_query(b"select 1")
    client.pgconn.flush()
    assert select.select([client.fileno()], [], [], 0.3) == ([], [], [])
    proxy.clear()
    assert select.select([client.fileno()], [], [], 10)[0]
    with pytest.raises(psycopg.OperationalError):
        client.pgconn.consume_input()
    client.close()


def test_latency_delays_each_answer(proxy: FaultProxy) -> None:
    with psycopg.connect(proxy.dsn, autocommit=True) as client:
        proxy.latency(0.1)
        began = time.monotonic()
        client.execute("select 1")
        assert time.monotonic() - began >= 0.2
