"""The delivery table as a queue: claims, leases, order, expiry and pruning, on a real server."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import psycopg
import pytest

from bridge.postgres import delivery as place
from bridge.postgres import delivery as queue
from bridge.postgres.claims import Claim
from bridge.postgres.connect import Pool
from bridge.postgres.delivery import Again, Dead
from bridge.postgres.profiles import DISPATCH
from bridge.postgres.queued import Search, discard, hurry, named, restore, search
from bridge.sinks.model import Delivery
from tests.support.servers import Database

T = TypeVar("T")
Sql = psycopg.Connection[tuple[Any, ...]]

STREAM, PIPELINE, DESTINATION = "s", "p", "d"


@pytest.fixture
def run(target: Database) -> Callable[[Callable[[place.AsyncLink], Awaitable[T]]], T]:
    """Run a coroutine with a dispatcher's connection, as the bridge's role."""

    def call(work: Callable[[place.AsyncLink], Awaitable[T]]) -> T:
        async def connected() -> T:
            async with Pool(target.bridge_dsn, DISPATCH, STREAM) as pool, pool.connection() as connection:
                return await work(connection)

        return asyncio.run(connected())

    return call


def put(
    sql: Sql, *rows: tuple[int, str | None], destination: str = DESTINATION, pipeline: str = PIPELINE
) -> None:
    """Deliveries by (seq, key)."""
    with sql.cursor() as cursor:
        cursor.executemany(
            "insert into bridge.delivery (id, stream, pipeline, destination, event_id, event_seq, event_type, "
            "event_key, body) values (gen_random_uuid(), %s, %s, %s, %s, %s, 't', %s, '{}')",
            [(STREAM, pipeline, destination, f"e{seq}", seq, key) for seq, key in rows],
        )


def claim(epoch: int, *, lease: float = 60.0, max_age: float = 3600.0) -> Claim:
    return Claim(STREAM, PIPELINE, DESTINATION, epoch, lease, max_age)


async def held(connection: place.AsyncLink) -> int:
    epoch = await place.hold(connection, STREAM, "me")
    assert epoch is not None
    return epoch


def names(found: list[Delivery]) -> list[str]:
    return [one.event_id for one in found]


def test_only_the_first_of_each_key_is_claimed_and_keyless_ones_all(target_connection: Sql, run: Any) -> None:
    put(target_connection, (1, "a"), (2, "a"), (3, "b"), (4, None), (5, None), (6, ""), (7, "b"))
    put(target_connection, (8, "c"), destination="other")
    put(target_connection, (9, "d"), pipeline="other")

    async def story(connection: place.AsyncLink) -> None:
        mine = claim(await held(connection))
        assert names(await mine.keyless(connection, 10)) == ["e4", "e5"]
        first, last = await mine.keyed(connection, 10, None)
        assert (names(first), last) == (["e1", "e3", "e6"], "b")
        assert await mine.keyed(connection, 10, None) == ([], None), (
            "leased, and the later ones wait for them"
        )
        await queue.settle_sent(connection, [first[0].id], mine.epoch)
        await queue.settle_again(connection, [Again(first[1].id, 3600.0, "later")], mine.epoch)
        assert names((await mine.keyed(connection, 10, None))[0]) == ["e2"], "b's first is put off: b waits"
        await queue.settle_dead(connection, [Dead(first[1].id, "c", "w")], mine.epoch)

    run(story)


def test_keys_take_turns(target_connection: Sql, run: Any) -> None:
    put(target_connection, *[(n, f"k{n:02}") for n in range(10)])

    async def story(connection: place.AsyncLink) -> None:
        mine = claim(await held(connection))
        assert names((await mine.keyed(connection, 3, None))[0]) == ["e0", "e1", "e2"]
        assert names((await mine.keyed(connection, 3, "k02"))[0]) == ["e3", "e4", "e5"]
        assert names((await mine.keyed(connection, 3, "k08"))[0]) == ["e9"]

    run(story)


def test_an_ended_lease_is_claimed_again_and_a_late_settle_changes_nothing(
    target_connection: Sql, run: Any
) -> None:
    put(target_connection, (1, "a"))

    async def story(connection: place.AsyncLink) -> None:
        first = await held(connection)
        ((one,), _) = await claim(first, lease=0.0).keyed(connection, 1, None)
        await place.let_go(connection, STREAM, first, [])
        second = await held(connection)
        assert second == first + 1
        ((again,), _) = await claim(second).keyed(connection, 1, None)
        assert again.id == one.id
        assert await queue.settle_sent(connection, [one.id], first) == set()
        assert not await queue.settle_dead(connection, [Dead(one.id, "c", "w")], first)
        assert not await queue.settle_again(connection, [Again(one.id, 0.0, "w")], first)
        assert await queue.settle_sent(connection, [one.id], second) == {one.id}

    run(story)
    assert target_connection.execute("select count(*) from bridge.dead_letter").fetchone() == (0,)


def test_a_dispatcher_that_lost_its_place_claims_expires_and_renews_nothing(
    target_connection: Sql, run: Any
) -> None:
    put(target_connection, (1, "a"), (2, None))

    async def story(connection: place.AsyncLink) -> None:
        first = await held(connection)
        assert await place.hold(connection, STREAM, "another") is None
        assert await place.renew(connection, STREAM, first)
        target_connection.execute("update bridge.dispatcher set held_until = now() - interval '1 second'")
        await held(connection)
        assert not await place.renew(connection, STREAM, first)
        zombie = claim(first)
        assert await zombie.keyless(connection, 10) == []
        assert await zombie.keyed(connection, 10, None) == ([], None)
        assert await queue.expire(connection, STREAM, (PIPELINE, DESTINATION), first, -1.0) == 0

    run(story)


def test_what_exceeds_max_age_is_a_dead_letter_unless_it_is_being_sent(
    target_connection: Sql, run: Any
) -> None:
    put(target_connection, (1, "a"), (2, "a"), (3, None))
    target_connection.execute(
        "update bridge.delivery set created_at = now() - interval '2 hours' where event_seq < 3"
    )

    async def story(connection: place.AsyncLink) -> None:
        mine = claim(await held(connection))
        ((one,), _) = await mine.keyed(connection, 1, None)
        assert one.expires_in < 0
        assert await queue.expire(connection, STREAM, (PIPELINE, DESTINATION), mine.epoch, mine.max_age) == 1
        assert await queue.expire(connection, STREAM, (PIPELINE, DESTINATION), mine.epoch, mine.max_age) == 0

    run(story)
    query = "select l.event_id, l.code, l.state, d.state from bridge.dead_letter l join bridge.delivery d using (id)"
    assert target_connection.execute(query).fetchall() == [("e2", "expired", "open", "dead")]


def test_pruning_keeps_what_waits_and_the_dead_with_their_letters(target_connection: Sql, run: Any) -> None:
    put(target_connection, *[(n, None) for n in range(1, 8)])

    async def story(connection: place.AsyncLink) -> None:
        mine = claim(await held(connection))
        found = await mine.keyless(connection, 5)
        for one in found[:3]:
            await queue.settle_sent(connection, [one.id], mine.epoch)
        for one in found[3:]:
            await queue.settle_dead(connection, [Dead(one.id, "c", "w")], mine.epoch)
        assert await queue.prune(connection, STREAM, 3600.0) == 0
        assert await queue.prune(connection, STREAM, -1.0, limit=2) == 2
        assert await queue.prune(connection, STREAM, -1.0) == 1
        target_connection.execute("update bridge.dead_letter set state = 'discarded' where event_id = 'e4'")
        assert await queue.prune(connection, STREAM, -1.0) == 1

    run(story)
    rows = target_connection.execute(
        "select event_id, state from bridge.delivery order by event_seq"
    ).fetchall()
    assert rows == [("e5", "dead"), ("e6", "pending"), ("e7", "pending")]


def test_a_message_that_dies_twice_has_one_dead_letter_again_open(target_connection: Sql, run: Any) -> None:
    put(target_connection, (1, "a"))

    async def story(connection: place.AsyncLink) -> None:
        mine = claim(await held(connection))
        for _ in range(2):
            ((one,), _) = await mine.keyed(connection, 1, None)
            await queue.settle_dead(connection, [Dead(one.id, "http_400", "HTTP 400")], mine.epoch)
            target_connection.execute("update bridge.dead_letter set state = 'resolved'")
            target_connection.execute("update bridge.delivery set state = 'pending', next_attempt_at = now()")
        ((one,), _) = await mine.keyed(connection, 1, None)
        await queue.settle_dead(connection, [Dead(one.id, "http_400", "HTTP 400")], mine.epoch)

    run(story)
    assert target_connection.execute(
        "select state, count(*) from bridge.dead_letter group by 1"
    ).fetchall() == [("open", 1)]


def test_a_long_backlog_of_one_key_is_not_read_to_claim_its_first(target_connection: Sql, run: Any) -> None:
    put(target_connection, *[(n, "hot") for n in range(20_000)], (20_000, "zz"))
    target_connection.execute("analyze bridge.delivery")

    async def story(connection: place.AsyncLink) -> None:
        mine = claim(await held(connection))
        assert names((await mine.keyed(connection, 8, None))[0]) == ["e0", "e20000"]

    run(story)
    target_connection.execute("select pg_stat_force_next_flush()")
    read = "select coalesce(sum(idx_tup_read), 0) from pg_stat_user_indexes where relname = 'delivery'"
    row = target_connection.execute(read).fetchone()
    assert row is not None
    assert row[0] < 1000, "it walked along the key"


def test_a_long_backlog_without_keys_is_not_read_to_claim_its_first(target_connection: Sql, run: Any) -> None:
    put(target_connection, *[(n, None) for n in range(20_000)])
    target_connection.execute("analyze bridge.delivery")

    async def story(connection: place.AsyncLink) -> None:
        mine = claim(await held(connection))
        found = await mine.keyless(connection, 8)
        assert names(found) == [f"e{n}" for n in range(8)]
        more = await mine.keyless(connection, 8, found[-1].event_seq)
        assert names(more) == [f"e{n}" for n in range(8, 16)]

    run(story)
    target_connection.execute("select pg_stat_force_next_flush()")
    read = (
        "select (select coalesce(sum(idx_tup_read), 0) from pg_stat_user_indexes where relname = 'delivery')"
        " + (select seq_tup_read from pg_stat_user_tables where relname = 'delivery')"
    )
    row = target_connection.execute(read).fetchone()
    assert row is not None
    assert row[0] < 1000 + 20_000, "it sorted the whole backlog; analyze reads it once"


def test_two_dispatchers_of_one_epoch_never_break_the_order_of_a_key(
    target: Database, target_connection: Sql, run: Any
) -> None:
    """Claims race on two connections; whatever is taken, a key's messages come out one after another."""
    chance = random.Random(7)
    keys = [chance.choice("abcd") for _ in range(120)]
    put(target_connection, *enumerate(keys))
    taken: list[tuple[str | None, int]] = []

    async def worker(dsn_connection: place.AsyncLink, epoch: int) -> None:
        mine = claim(epoch)
        idle = 0
        while idle < 20:
            found, _ = await mine.keyed(dsn_connection, 3, None)
            idle = 0 if found else idle + 1
            for one in found:
                taken.append((one.event_key, int(one.event_id[1:])))
                await asyncio.sleep(0.001)
                assert await queue.settle_sent(dsn_connection, [one.id], epoch)
            if not found:
                await asyncio.sleep(0.005)

    async def story(connection: place.AsyncLink) -> None:
        epoch = await held(connection)
        async with Pool(target.bridge_dsn, DISPATCH, STREAM) as pool, pool.connection() as other:
            await asyncio.gather(worker(connection, epoch), worker(other, epoch))

    run(story)
    assert len(taken) == len(keys)
    for key in "abcd":
        order = [seq for name, seq in taken if name == key]
        assert order == sorted(order)


def test_what_a_person_does_leaves_claimed_messages_alone(
    target: Database, target_connection: Sql, run: Callable[[Any], Any]
) -> None:
    sql = target_connection
    put(sql, (1, None), (2, None))

    async def work(connection: place.AsyncLink) -> None:
        epoch = await held(connection)
        [one] = await claim(epoch).keyless(connection, 1)
        for number in range(12):  # answers: the last ten are kept
            await queue.settle_again(connection, [Again(one.id, 0.0, f"http_{number}: x")], epoch)
            [one] = await claim(epoch).keyless(connection, 1)
        with target.connect() as person:
            both = [
                row[0] for row in person.execute("select id::text from bridge.delivery order by event_seq")
            ]
            assert hurry(person, both, "ada", None) == 1
            assert discard(person, both, "ada", "noise") == 1, "the other is being sent"
            assert restore(person, both, "ada", None) == 1
        assert await queue.settle_sent(connection, [one.id], epoch) == {one.id}

    run(work)
    first, second = sql.execute("select history, state from bridge.delivery order by event_seq").fetchall()
    assert [entry["said"] for entry in first[0]] == [f"http_{number}: x" for number in range(2, 12)]
    assert first[1] == "sent"
    assert [(entry["did"], entry["by"]) for entry in second[0]] == [
        ("retry now", "ada"),
        ("discarded", "ada"),
        ("restored", "ada"),
    ]
    assert (second[0][1]["reason"], second[1]) == ("noise", "pending")


def test_a_long_queue_is_read_and_changed_in_parts(target: Database) -> None:
    """A receiver was away for days: no command holds every body, or locks every message until it has all."""
    with target.connect() as sql:
        sql.execute(
            "insert into bridge.delivery (id, stream, pipeline, destination, event_id, event_seq, event_type, body)"
            " select gen_random_uuid(), %s, %s, %s, 'e' || n, n, 't', '{}' from generate_series(1, 2500) n",
            [STREAM, PIPELINE, DESTINATION],
        )
        found = search(sql, STREAM, Search(), None)
        assert next(found)["event_seq"] == 1
        read = "select count(*) from pg_cursors where name = 'found'"
        assert sql.execute(read).fetchone() == (1,), "the rest is still with the server"
        assert [row["event_seq"] for row in found] == list(range(2, 2501))
        ids = [row[0] for row in named(sql, STREAM, Search())]
        for change in (hurry, discard, restore):
            assert change(sql, ids, "ada", None) == 2500
            together = "select max(count) from (select count(*) from bridge.delivery group by xmin::text) t"
            assert sql.execute(together).fetchone() == (1000,)
