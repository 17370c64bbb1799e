"""bridge.emit through psycopg, synchronous and not."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import args_row, dict_row, kwargs_row, namedtuple_row, scalar_row, tuple_row

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


class _Shouting(psycopg.RawCursor[Any]):
    """A program's own cursor: another dialect, another signature."""

    def execute(self, *, statement: str) -> Any:  # type: ignore[override]  # that is the point
        return super().execute(statement.encode())


class _Dictionaries(psycopg.AsyncRawCursor[Any]):
    async def fetchone(self) -> Any:
        return {"row": await super().fetchone()}


_FACTORIES = [psycopg.Cursor, psycopg.ClientCursor, psycopg.RawCursor, _Shouting]
_ASYNC_FACTORIES = [psycopg.AsyncCursor, psycopg.AsyncClientCursor, psycopg.AsyncRawCursor, _Dictionaries]
_ROWS: list[Any] = [dict_row, namedtuple_row, scalar_row, tuple_row, kwargs_row(dict), args_row(list)]


@pytest.mark.parametrize("factory", _FACTORIES)
@pytest.mark.parametrize("rows", _ROWS)
def test_the_connections_factories_play_no_part(source: Database, factory: Any, rows: Any) -> None:
    with psycopg.connect(source.producer_dsn, row_factory=rows, cursor_factory=factory) as connection:
        ids = [bridge.emit(connection, "a", {"n": 0}, idempotency_key=f"k{n}") for n in range(7)]
        ids.append(
            bridge.emit(connection, "a", {}, idempotency_key="k", period="day", time_zone="Europe/Berlin")
        )
        ids.append(bridge.emit(connection.cursor(), "a", {"n": 1}))
        with psycopg.Cursor(connection, row_factory=tuple_row) as cursor:
            cursor.execute("select 1")
            ids.append(bridge.emit(cursor, "a", {"n": 2}))
            assert cursor.fetchone() == (1,)
        with connection.cursor("named") as cursor:
            ids.append(bridge.emit(cursor, "a", {"n": 3}))
        with connection.pipeline():
            ids.append(bridge.emit(connection, "a", {"n": 4}))
        # with a cursor that binds on the client's side nothing is prepared: poolers may lose it
        with psycopg.Cursor(connection, row_factory=tuple_row) as cursor:
            cursor.execute("select count(*) from pg_prepared_statements where statement ~ 'outbox.emit'")
            assert cursor.fetchone() == (0 if factory is psycopg.ClientCursor else 1,)
    assert source.execute("select id from outbox.event order by seq") == [(each,) for each in ids]


@pytest.mark.parametrize("factory", _ASYNC_FACTORIES)
@pytest.mark.parametrize("rows", _ROWS)
def test_an_asynchronous_connections_factories_play_no_part(
    source: Database, factory: Any, rows: Any
) -> None:
    async def produce() -> list[UUID]:
        async with await psycopg.AsyncConnection.connect(
            source.producer_dsn, row_factory=rows, cursor_factory=factory
        ) as connection:
            ids = [await bridge.emit(connection, "a", {"n": 1}) for _ in range(7)]
            ids.append(await bridge.emit(connection.cursor(), "a", {"n": 2}))
            async with connection.cursor("named") as cursor:
                ids.append(await bridge.emit(cursor, "a", {"n": 3}))
            async with connection.pipeline():
                ids.append(await bridge.emit(connection, "a", {"n": 4}))
            return ids

    ids = asyncio.run(produce())
    assert source.execute("select id from outbox.event order by seq") == [(each,) for each in ids]


def test_an_asynchronous_connection_or_cursor_is_awaited(source: Database) -> None:
    async def produce() -> list[UUID]:
        async with await psycopg.AsyncConnection.connect(source.producer_dsn) as connection:
            ids = [await bridge.emit(connection, "a", {"n": 1})]
            async with connection.cursor() as cursor:
                ids.append(await bridge.emit(cursor, "a", {"n": 2}))
            return ids

    ids = asyncio.run(produce())
    assert source.execute("select id from outbox.event order by seq") == [(each,) for each in ids]
