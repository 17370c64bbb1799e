"""Events that were not put in are counted, and no producer waits for another because of it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import IsolationLevel, errors

import bridge
from bridge.ingress import store
from bridge.ingress.store import Item
from bridge.postgres.outbox import fold, suppressed
from bridge.postgres.schema import install_source, migrations
from tests.integration.source.conftest import waits_for_a_lock
from tests.support.servers import Database
from tests.support.world import until

pytestmark = pytest.mark.matrix
App = psycopg.Connection[tuple[Any, ...]]


def emit(connection: App, key: str = "k", type_: str = "a") -> UUID:
    return bridge.emit(connection, type_, {}, idempotency_key=key)


def counted(source: Database) -> dict[str, int] | None:
    with psycopg.connect(source.bridge_dsn, autocommit=True) as connection:
        return suppressed(connection)


def folded(source: Database) -> int:
    with psycopg.connect(source.bridge_dsn, autocommit=True) as connection:
        return fold(connection)


def test_repeats_are_counted_by_type(app: App, source: Database) -> None:
    assert counted(source) == {}
    for key, type_ in (("k", "a"), ("k", "a"), ("k", "a"), ("k", "b"), ("k", "b"), ("l", "a")):
        emit(app, key, type_)
        app.commit()
    bridge.emit(app, "a", {})
    app.commit()
    assert counted(source) == {"a": 2, "b": 1}


def test_a_producer_that_rolls_back_counts_nothing(app: App, source: Database) -> None:
    emit(app)
    app.commit()
    emit(app)
    app.rollback()
    emit(app)
    app.execute("savepoint mine")
    emit(app)
    app.execute("rollback to savepoint mine")
    app.commit()
    assert counted(source) == {"a": 1}
    assert source.value("select count(*) from outbox.event") == 1


def test_repeats_of_transactions_that_are_open_wait_for_nobody(app: App, source: Database) -> None:
    emit(app)
    app.commit()
    others = [psycopg.connect(source.producer_dsn) for _ in range(5)]
    try:
        for isolation, other in zip([*IsolationLevel, None], others, strict=True):
            other.isolation_level = isolation
            other.execute("set lock_timeout = '1ms'")
            emit(other)
        assert folded(source) == 0, "adding up takes what has committed, and waits for nobody either"
        assert counted(source) == {}
    finally:
        for other in others:
            other.commit()
            other.close()
    assert counted(source) == {"a": 5}


def test_a_repeat_that_lost_to_a_transaction_in_flight_is_counted(app: App, source: Database) -> None:
    first = emit(app)
    with ThreadPoolExecutor(1) as pool, psycopg.connect(source.producer_dsn) as other:
        future = pool.submit(emit, other)
        until(lambda: waits_for_a_lock(source, other.info.backend_pid), "the second session waits")
        app.commit()
        assert future.result(20) == first
    assert counted(source) == {"a": 1}


def test_of_many_producers_with_one_key_all_but_one_are_counted(source: Database) -> None:
    def produce(_: int) -> list[UUID]:
        with psycopg.connect(source.producer_dsn, autocommit=True) as connection:
            return [emit(connection, f"k{n}") for n in range(20)]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(produce, range(8)))
    assert all(answer == answers[0] for answer in answers)
    assert source.value("select count(*) from outbox.event") == 20
    assert counted(source) == {"a": 7 * 20}


def test_adding_up_keeps_the_sums_and_leaves_a_row_a_type(app: App, source: Database) -> None:
    for _ in range(6):
        emit(app, type_="a")
        emit(app, type_="b")
    app.commit()
    since = source.value("select min(since) from outbox.suppressed")
    assert folded(source) == 10
    emit(app)
    app.commit()
    assert source.value("select count(*) from outbox.suppressed") == 3
    folded(source)
    assert source.execute("select type, count, since from outbox.suppressed order by type") == [
        ("a", 6, since),
        ("b", 5, since),
    ]


def test_two_bridges_that_add_up_at_once_add_nothing_twice(app: App, source: Database) -> None:
    for _ in range(300):
        emit(app)
    app.commit()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: folded(source), range(12)))
    assert counted(source) == {"a": 299}


def test_adding_up_works_beside_a_publication_for_all_tables(app: App, source: Database) -> None:
    source.execute("create publication everything for all tables")
    for _ in range(3):
        emit(app)
    app.commit()
    folded(source)
    assert counted(source) == {"a": 2}


def test_a_transaction_that_only_reads_is_answered_and_not_counted(app: App, source: Database) -> None:
    first = emit(app)
    app.commit()
    app.read_only = True
    assert emit(app) == first
    app.commit()
    assert counted(source) == {}


def test_a_direct_insert_that_gives_way_is_not_counted(app: App, source: Database) -> None:
    emit(app)
    app.execute(
        "insert into outbox.event (type, payload, idempotency_key) values ('a', '{}', 'k') on conflict do nothing"
    )
    app.commit()
    assert counted(source) == {}


@pytest.mark.parametrize(
    "statement",
    [
        "select * from outbox.suppressed",
        "insert into outbox.suppressed (type, count) values ('a', 1000)",
        "update outbox.suppressed set count = 1",
        "delete from outbox.suppressed",
    ],
)
def test_a_producer_can_count_one_and_no_more(app: App, statement: str) -> None:
    with pytest.raises(errors.InsufficientPrivilege):
        app.execute(statement.encode())


def test_roles_that_could_emit_before_the_migration_still_can(empty: Database) -> None:
    """Not every application is a member of outbox_producer: some have grants of their own."""
    version = next(each for each in migrations("source") if each.name == "suppressed")
    for migration in migrations("source"):
        if migration.version < version.version:
            empty.execute(migration.sql)
            empty.execute(migration.record("outbox.migration"))
    empty.execute(
        """
        grant usage on schema outbox to public;
        grant insert on outbox.event to public;
        grant execute on function outbox.first_id(text, text), outbox.emit(text, jsonb, text, text, jsonb) to public
        """
    )
    with psycopg.connect(empty.producer_dsn, autocommit=True) as old:
        first = emit(old)
        with psycopg.connect(empty.bridge_dsn, autocommit=True) as reader:
            assert suppressed(reader) is None
            assert fold(reader) == 0
        empty.execute("revoke outbox_producer from app")
        try:
            with psycopg.connect(empty.dsn) as owner:
                install_source(owner)
            assert emit(old) == first
        finally:
            empty.execute("grant outbox_producer to app")
    assert counted(empty) == {"a": 1}


def item(key: str | None, type_: str = "a", delivery: str | None = None) -> Item:
    return Item(type_, b"{}", idempotency_key=key, endpoint=delivery and "hook", delivery=delivery)


def ingest(source: Database, *batches: list[Item]) -> list[list[bool]]:
    """Whether each was a duplicate, batch by batch."""

    async def insert() -> list[list[bool]]:
        connection = await store.connect(source.bridge_dsn)
        async with connection:
            return [[one.duplicate for one in await store.insert(connection, batch)] for batch in batches]

    return asyncio.run(insert())


def test_the_ingress_counts_its_repeats_within_a_batch_and_across(app: App, source: Database) -> None:
    emit(app, "mine")
    app.commit()
    answers = ingest(
        source,
        [item("k"), item("k"), item("mine"), item(None), item(None), item("k", "b")],
        [item("k"), item("k"), item("k"), item("l", "b")],
    )
    assert answers == [[False, True, True, False, False, False], [True, True, True, False]]
    assert counted(source) == {"a": 5}


def test_a_webhook_sent_again_is_counted(source: Database) -> None:
    answers = ingest(
        source,
        [item(None, delivery="d1"), item("k", delivery="d2")],
        [item(None, delivery="d1"), item("k", delivery="d3"), item(None, delivery="d4")],
    )
    assert answers == [[False, False], [True, True, False]]
    assert counted(source) == {"a": 2}


def test_what_an_ingress_lost_to_a_producer_in_flight_is_counted(app: App, source: Database) -> None:
    emit(app)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(ingest, source, [item("k"), item("l")])
        until(
            lambda: bool(
                source.value(
                    "select count(*) from pg_stat_activity where application_name = 'bridge-ingress'"
                    " and wait_event_type = 'Lock' and datname = current_database()"
                )
            ),
            "the ingress waits",
        )
        app.commit()
        assert future.result(20) == [[True, False]]
    assert counted(source) == {"a": 1}


def test_an_ingress_before_the_migration_says_what_to_run(source: Database) -> None:
    source.execute("drop table outbox.suppressed")
    with pytest.raises(store.IngressDown, match=r"no outbox\.suppressed") as caught:
        ingest(source, [item("k")])
    assert caught.value.hint == "bridge install"
