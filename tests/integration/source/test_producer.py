"""bridge.emit through psycopg, synchronous and not."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import dict_row

import bridge
from tests.support.servers import Database

App = psycopg.Connection[tuple[Any, ...]]


def test_emit_is_part_of_the_callers_transaction(app: App, source: Database) -> None:
    event_id = bridge.emit(app, "usage.limit_reached", {"used": 1})
    assert isinstance(event_id, UUID)
    assert source.value("select count(*) from outbox.event") == 0
    app.rollback()
    assert source.value("select count(*) from outbox.event") == 0
    event_id = bridge.emit(app, "usage.limit_reached", {"used": 1})
    app.commit()
    assert source.execute("select id from outbox.event") == [(event_id,)]


def test_every_argument_reaches_its_column(app: App, source: Database) -> None:
    bridge.emit(app, "a", {"n": 1}, idempotency_key="k", key="cus_1", headers={"trace": "t"})
    app.commit()
    columns = "type, payload, idempotency_key, key, headers"
    assert source.execute(f"select {columns} from outbox.event") == [
        ("a", {"n": 1}, "k", "cus_1", {"trace": "t"})
    ]


def test_a_used_key_answers_the_first_id(app: App) -> None:
    first = bridge.emit(app, "a", {}, idempotency_key="k")
    assert bridge.emit(app, "a", {"other": True}, idempotency_key="k") == first


def test_numbers_reach_the_outbox_exactly(app: App, source: Database) -> None:
    bridge.emit(app, "a", {"big": 2**64 + 1, "price": Decimal("12345678901234567890.12345678901234567890")})
    app.commit()
    assert source.execute("select payload->>'big', payload->>'price' from outbox.event") == [
        ("18446744073709551617", "12345678901234567890.12345678901234567890")
    ]


def test_a_refused_payload_does_not_cost_the_transaction(app: App, source: Database) -> None:
    bridge.emit(app, "a", {"n": 1})
    for wrong in ({"n": float("nan")}, {"n": "\x00"}, {"n": "\ud83d"}):
        with pytest.raises(ValueError, match=r"^payload\.n "):
            bridge.emit(app, "a", wrong)
    app.commit()
    assert source.value("select count(*) from outbox.event") == 1


@pytest.mark.parametrize("factory", [psycopg.Cursor, psycopg.ClientCursor])
def test_a_cursor_and_rows_as_dictionaries_will_do(source: Database, factory: Any) -> None:
    with psycopg.connect(source.producer_dsn, row_factory=dict_row, cursor_factory=factory) as connection:
        first = bridge.emit(connection, "a", {})
        with connection.cursor() as cursor:
            cursor.execute("select 1 as kept")
            second = bridge.emit(cursor, "a", {})
            assert cursor.fetchone() == {"kept": 1}
    assert source.execute("select id from outbox.event order by seq") == [(first,), (second,)]


def test_an_asynchronous_connection_or_cursor_is_awaited(source: Database) -> None:
    async def produce() -> list[UUID]:
        async with await psycopg.AsyncConnection.connect(source.producer_dsn) as connection:
            ids = [await bridge.emit(connection, "a", {"n": 1})]
            async with connection.cursor() as cursor:
                ids.append(await bridge.emit(cursor, "a", {"n": 2}))
            return ids

    ids = asyncio.run(produce())
    assert source.execute("select id from outbox.event order by seq") == [(each,) for each in ids]
