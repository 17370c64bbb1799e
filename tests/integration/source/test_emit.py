"""outbox.emit and direct INSERTs, as an application's role sees them."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import errors

from tests.integration.source.conftest import waits_for_a_lock
from tests.support.servers import Database
from tests.support.world import until

pytestmark = pytest.mark.matrix
App = psycopg.Connection[tuple[Any, ...]]


def emit(connection: App, key: str | None = None, type_: str = "usage.limit_reached") -> UUID:
    row = connection.execute("select outbox.emit(%s, '{}', %s)", [type_, key]).fetchone()
    assert row is not None
    assert isinstance(row[0], UUID)
    return row[0]


def test_an_emitted_event_has_every_column(app: App, source: Database) -> None:
    event_id = app.execute(
        """select outbox.emit('usage.limit_reached', '{"used": 1}', 'hit-1',
                              key => 'cus_1', headers => '{"a": "b"}')"""
    ).fetchone()
    xid = app.execute("select pg_current_xact_id()::text").fetchone()
    app.commit()
    rows = source.execute(
        "select id, type, key, payload, idempotency_key, headers, xid::text, seq > 0, "
        "abs(extract(epoch from now() - occurred_at)) < 60 from outbox.event"
    )
    assert event_id is not None
    assert xid is not None
    assert rows == [
        (event_id[0], "usage.limit_reached", "cus_1", {"used": 1}, "hit-1", {"a": "b"}, xid[0], True, True)
    ]


def test_type_and_payload_are_enough_for_a_direct_insert(app: App, source: Database) -> None:
    app.execute("insert into outbox.event (type, payload) values ('a', '{}')")
    app.commit()
    assert source.value("select count(*) from outbox.event where id is not null and xid is not null") == 1


def test_ids_are_version_7_and_hold_the_time(app: App, source: Database) -> None:
    before = source.value("select (extract(epoch from clock_timestamp()) * 1000)::bigint - 1")
    ids = [emit(app) for _ in range(5)]
    app.execute("insert into outbox.event (type, payload) values ('a', '{}')")
    app.commit()
    ids.append(source.value("select id from outbox.event where type = 'a'"))
    after = source.value("select (extract(epoch from clock_timestamp()) * 1000)::bigint + 1")
    for event_id in ids:
        assert event_id.version == 7
        assert event_id.variant == "specified in RFC 4122"
        assert before <= event_id.int >> 80 <= after


def test_a_used_key_answers_the_first_id_and_puts_nothing_in(app: App, source: Database) -> None:
    first = emit(app, "k")
    assert emit(app, "k") == first
    app.commit()
    assert emit(app, "k") == first
    app.commit()
    assert source.value("select count(*) from outbox.event") == 1


def test_a_used_key_twice_in_one_statement_is_one_event(app: App, source: Database) -> None:
    row = app.execute("select outbox.emit('a', '{}', 'k'), outbox.emit('a', '{}', 'k')").fetchone()
    app.commit()
    assert row is not None
    assert row[0] == row[1]
    assert source.value("select count(*) from outbox.event") == 1


def test_keys_are_scoped_by_type(app: App) -> None:
    assert emit(app, "k", "a") != emit(app, "k", "b")


def test_without_a_key_every_emit_is_an_event(app: App) -> None:
    assert emit(app) != emit(app)


def test_a_rollback_leaves_no_event_and_frees_the_key(app: App, source: Database) -> None:
    first = emit(app, "k")
    app.rollback()
    assert source.value("select count(*) from outbox.event") == 0
    second = emit(app, "k")
    app.commit()
    assert second != first


def test_a_key_used_and_committed_costs_no_wait(app: App, source: Database) -> None:
    first = emit(app, "k")
    app.commit()
    with psycopg.connect(source.producer_dsn) as holder:
        assert emit(holder, "k") == first
        app.execute("set lock_timeout = '1ms'")
        assert emit(app, "k") == first


def in_flight(source: Database, app: App, key: str, pool: ThreadPoolExecutor) -> tuple[App, Future[UUID]]:
    """A second session that emits the key which `app` has in flight, seen waiting."""
    other = psycopg.connect(source.producer_dsn)
    future = pool.submit(emit, other, key)
    until(lambda: waits_for_a_lock(source, other.info.backend_pid), "the second session waits")
    return other, future


def test_a_concurrent_duplicate_waits_and_answers_the_first_id(app: App, source: Database) -> None:
    first = emit(app, "k")
    with ThreadPoolExecutor(1) as pool:
        other, future = in_flight(source, app, "k", pool)
        app.commit()
        with other:
            assert future.result(20) == first
    assert source.value("select count(*) from outbox.event") == 1


def test_a_concurrent_duplicate_takes_over_when_the_first_rolls_back(app: App, source: Database) -> None:
    first = emit(app, "k")
    with ThreadPoolExecutor(1) as pool:
        other, future = in_flight(source, app, "k", pool)
        app.rollback()
        with other:
            second = future.result(20)
    assert second != first
    assert source.execute("select id from outbox.event") == [(second,)]


def test_lock_timeout_ends_the_wait_for_a_key_in_flight(app: App, source: Database) -> None:
    emit(app, "k")
    with psycopg.connect(source.producer_dsn) as other:
        other.execute("set lock_timeout = '50ms'")
        with pytest.raises(errors.LockNotAvailable):
            emit(other, "k")
        other.rollback()


def test_two_transactions_that_emit_the_same_keys_in_opposite_order_deadlock(
    app: App, source: Database
) -> None:
    emit(app, "a")
    with ThreadPoolExecutor(1) as pool, psycopg.connect(source.producer_dsn) as other:
        emit(other, "b")
        future = pool.submit(emit, other, "a")
        until(lambda: waits_for_a_lock(source, other.info.backend_pid), "the second session waits")
        outcomes: list[BaseException | None] = []
        try:
            emit(app, "b")
            outcomes.append(None)
        except errors.DeadlockDetected as error:
            outcomes.append(error)
        app.rollback()
        outcomes.append(future.exception(20))
        other.rollback()
    assert [type(outcome) for outcome in outcomes if outcome] == [errors.DeadlockDetected]


def test_a_duplicate_committed_meanwhile_fails_under_repeatable_read(app: App, source: Database) -> None:
    with psycopg.connect(source.producer_dsn) as late:
        late.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        late.execute("select 1")
        first = emit(app, "k")
        app.commit()
        with pytest.raises(errors.SerializationFailure):
            emit(late, "k")
        late.rollback()
        assert emit(late, "k") == first


def test_a_direct_duplicate_is_a_unique_violation_that_on_conflict_turns_off(
    app: App, source: Database
) -> None:
    emit(app, "k")
    app.commit()
    insert = (
        "insert into outbox.event (type, payload, idempotency_key) values ('usage.limit_reached', '{}', 'k')"
    )
    with pytest.raises(errors.UniqueViolation) as caught:
        app.execute(insert)
    assert caught.value.diag.constraint_name == "event_idempotency_key"
    app.rollback()
    assert app.execute(f"{insert} on conflict do nothing").rowcount == 0
    app.commit()
    assert source.value("select count(*) from outbox.event") == 1


@pytest.mark.parametrize(
    "statement",
    [
        "insert into outbox.event (type, payload, xid) values ('a', '{}', '3')",
        "insert into outbox.event (type, payload, seq) overriding system value values ('a', '{}', 1)",
        "select id from outbox.event",
        "select count(*) from outbox.event",
        "insert into outbox.event (type, payload) values ('a', '{}') returning payload",
        "update outbox.event set xid = '3'",
        "update outbox.event set payload = '{}'",
        "delete from outbox.event",
        "truncate outbox.event",
        "select * from outbox.stream",
        "select * from outbox.pruned",
        "select * from outbox.migration",
        "create table outbox.mine ()",
    ],
)
def test_a_producer_can_only_put_events_in(app: App, statement: str) -> None:
    with pytest.raises(errors.InsufficientPrivilege):
        app.execute(statement.encode())


def test_even_the_owner_must_insist_to_set_seq(source: Database) -> None:
    with pytest.raises(errors.GeneratedAlways):
        source.execute("insert into outbox.event (type, payload, seq) values ('a', '{}', 1)")


def test_seq_is_handed_out_one_by_one(source: Database) -> None:
    sequence = source.value("select pg_get_serial_sequence('outbox.event', 'seq')")
    assert source.value("select seqcache from pg_sequence where seqrelid = %s::regclass", [sequence]) == 1


@pytest.mark.parametrize(
    ("values", "sqlstate", "says"),
    [
        (("a", r'{"name": "\u0000"}'), "22P05", "unsupported Unicode escape sequence"),
        (("a", r'{"name": "\ud83d"}'), "22P02", "invalid input syntax for type json"),
        (("a", '{"used": NaN}'), "22P02", "invalid input syntax for type json"),
        (("a", '{"used": Infinity}'), "22P02", "invalid input syntax for type json"),
        (("a", "["), "22P02", "invalid input syntax for type json"),
        (("a", "[" * 20_000 + "]" * 20_000), "54001", "stack depth limit exceeded"),
        (("a", None), "23502", "null value in column"),
        ((None, "{}"), "23502", "null value in column"),
        (("", "{}"), "23514", "event_type_is_1_to_200_characters"),
        (("t" * 201, "{}"), "23514", "event_type_is_1_to_200_characters"),
        (("a", "{}", ""), "23514", "event_idempotency_key_is_1_to_255_characters"),
        (("a", "{}", "k" * 256), "23514", "event_idempotency_key_is_1_to_255_characters"),
        (("a", "{}", None, "k" * 501), "23514", "event_key_is_at_most_500_characters"),
        (("a", "{}", None, None, "[]"), "23514", "event_headers_are_an_object"),
    ],
)
def test_what_the_outbox_refuses_and_how_it_looks(
    app: App, values: tuple[str | None, ...], sqlstate: str, says: str
) -> None:
    places = ", ".join(f"%s::{kind}" for kind in ("text", "jsonb", "text", "text", "jsonb")[: len(values)])
    with pytest.raises(psycopg.Error) as caught:
        app.execute(f"select outbox.emit({places})".encode(), values)
    assert caught.value.sqlstate == sqlstate
    assert says in str(caught.value)


def test_the_longest_names_fit_the_index(app: App) -> None:
    widest = "\U0001f980"  # four bytes
    app.execute("select outbox.emit(%s, '{}', %s, %s)", [widest * 200, widest * 255, widest * 500])


def test_a_search_path_of_the_callers_cannot_bend_emit(app: App, source: Database) -> None:
    source.execute(
        """
        create schema evil;
        create function evil.length(text) returns integer language sql as 'select 0';
        create function evil.uuid7() returns uuid language sql as $$ select null::uuid $$;
        create function evil.first_id(text, text) returns uuid language sql as $$ select null::uuid $$;
        create table evil.event (id uuid, type text, idempotency_key text);
        grant usage on schema evil to public;
        grant all on evil.event to public
        """
    )
    app.execute("set search_path = evil, outbox, pg_catalog")
    event_id = emit(app, "k")
    assert emit(app, "k") == event_id
    app.commit()
    assert source.value("select count(*) from outbox.event") == 1


def test_a_trigger_that_drops_the_row_is_an_error_and_not_an_id(app: App, source: Database) -> None:
    source.execute(
        """
        create function drop_it() returns trigger language plpgsql as 'begin return null; end';
        create trigger drop_it before insert on outbox.event for each row execute function drop_it()
        """
    )
    with pytest.raises(
        errors.SerializationFailure, match=r"no event of type usage\.limit_reached was inserted"
    ):
        emit(app, "k")
