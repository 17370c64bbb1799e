"""Streams of one process beside each other: one that is slow, one that is halted, and one that is neither."""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median

import psycopg
import pytest

from bridge.config.load import load
from bridge.plans import stream_plans
from bridge.postgres.whose import Owned
from bridge.repair.upkeep import Upkeep
from bridge.stream.sockets import QUIET_SECONDS
from tests.integration.ops.conftest import emit, letters, usage
from tests.support.servers import Database, drop_database
from tests.support.world import Document, World, make_database, until

_SLOW = """
create function rig.slow() returns trigger language plpgsql as $$ begin perform pg_sleep(0.5); return new; end $$;
create trigger slow before insert on events.usage_limits for each row execute function rig.slow();"""


@pytest.fixture
def other(target: Database) -> Iterator[Database]:
    """A second target, on the server of the first."""
    made = make_database(target.server, "bridge_test_other", "target")
    yield made
    drop_database(made)


@pytest.fixture
def third(target: Database) -> Iterator[Database]:
    made = make_database(target.server, "bridge_test_third", "target")
    yield made
    drop_database(made)


def _into(world: World, *others: Database) -> None:
    """The demo's pipeline, into these as well; in the order of the configuration they come first."""

    def change(document: Document) -> None:
        given = document["connections"]
        document["connections"] = {
            **{one.name: {"type": "postgres", "dsn": one.bridge_dsn} for one in others},
            **given,
        }
        [pipeline] = document["pipelines"].values()
        table = pipeline["destinations"]["events"]
        pipeline["destinations"] |= {one.name: {**table, "connection": one.name} for one in others}

    world.configure(change)


def _seconds(source: Database, target: Database, count: int = 15) -> float:
    """The median from an event's commit to its row."""
    took = []
    with target.connect() as reader:
        for _ in range(count):
            [event] = emit(source, usage())
            began = time.monotonic()
            there = "select from events.usage_limits where event_id = %s"
            while reader.execute(there, [event]).fetchone() is None:
                assert time.monotonic() < began + 30
                time.sleep(0.002)  # what is shorter than a few of these is not told apart
            took.append(time.monotonic() - began)
    return median(took)


def test_a_halted_and_a_slow_stream_delay_no_other(
    world: World, source: Database, target: Database, other: Database, third: Database
) -> None:
    _into(world, other, third)
    bridge = world.bridge().start().wait_ready()
    alone = _seconds(source, target)
    other.execute(_SLOW)
    third.execute("drop table events.usage_limits")
    emit(source, usage())
    bridge.wait_halted("table_missing")
    beside = _seconds(source, target)
    behind = source.value("select count(*) from outbox.event")
    assert other.value("select count(*) from rig.effects") < behind  # it is slow, and was all the time
    bridge.wait_halted("table_missing")
    assert beside < 5 * max(alone, 0.01), f"{beside:.3f} s beside them, {alone:.3f} s before"


def test_upkeep_of_a_target_waits_for_no_other(
    world: World, source: Database, target: Database, other: Database
) -> None:
    _into(world, other)
    world.text = world.text.replace("missing: continue", "missing: retry")
    bridge = world.bridge().start().wait_ready()
    emit(source, usage(customer_id="new_1"))
    until(lambda: letters(target) == letters(other) == 1, "a parked letter in both")
    bridge.terminate()
    source.execute("insert into crm.customer values ('new_1', 5, 'ada', '2027-01-01')")
    plans = stream_plans(
        load(world.config, {"SOURCE_DSN": source.bridge_dsn, "WAREHOUSE_DSN": target.bridge_dsn})
    )
    assert plans[0].connection == "warehouse"
    plans.reverse()  # the one that waits is looked at first
    upkeep = Upkeep(lambda: plans, Owned(), retry_every=0.05, prune_every=60.0)
    with other.connect() as holder, other.connect() as looking:
        with holder.transaction():
            holder.execute("lock table bridge.dead_letter")
            upkeep.start()
            waiting = until(lambda: _waits(looking, other), "it waits for the lock")
            due = "update bridge.dead_letter set retry_at = now() where state = 'open'"
            target.execute(due)
            until(lambda: letters(target, "resolved") == 1, "the letter of the target that answers")
            assert _waits(looking, other) == waiting, "it was retried only when the other's look had ended"
        other.execute(due)
        until(lambda: letters(other, "resolved") == 1, "the other's, once it answers")
        sessions = "select sessions from pg_stat_database where datname = %s"
        pids = _looks(looking, target)
        before = looking.execute(sessions, [target.name]).fetchone()
        time.sleep(1)  # twenty looks
        assert _looks(looking, target) == pids
        assert looking.execute(sessions, [target.name]).fetchone() == before
        assert len(pids) == 1
    upkeep.stop()
    upkeep.thread.join(20)
    assert not upkeep.thread.is_alive()


def _waits(connection: psycopg.Connection[tuple[object, ...]], database: Database) -> object:
    """The waiting look: its process and when its statement began."""
    return connection.execute(
        "select pid, query_start from pg_stat_activity where datname = %s and wait_event_type = 'Lock'"
        " and application_name like 'bridge-dead/%%'",
        [database.name],
    ).fetchone()


def _looks(connection: psycopg.Connection[tuple[object, ...]], database: Database) -> list[object]:
    return connection.execute(
        "select pid from pg_stat_activity where datname = %s and application_name like 'bridge-dead/%%'",
        [database.name],
    ).fetchall()


def test_a_stream_that_streams_has_two_connections_to_the_source(
    world: World, source: Database, target: Database
) -> None:
    emit(source, *[usage()] * 3)  # read from the table, first
    world.bridge().start().wait_ready()
    emit(source, usage())
    until(lambda: target.value("select count(*) from events.usage_limits") == 4, "from the slot")
    query = (
        "select application_name from pg_stat_activity where datname = current_database()"
        " and usename = 'outbox_bridge' and (application_name like 'bridge-source/outbox%'"
        " or application_name like 'bridge-stream/%') order by 1"
    )
    wanted = [("bridge-source/outbox_bridge_warehouse",), ("bridge-stream/outbox_bridge_warehouse",)]
    until(lambda: source.execute(query) == wanted, "two, once the others have looked")


@pytest.mark.slow
def test_a_quiet_stream_asks_the_source_less(world: World, source: Database, target: Database) -> None:
    """A look is a statement of the control connection. As many seconds with an event each as without."""
    bridge = world.bridge().start().wait_ready()
    with source.connect() as looking:
        busy = _looks_in(looking, source, seconds=12, events=True)
        time.sleep(QUIET_SECONDS)
        quiet = _looks_in(looking, source, seconds=12, events=False)
        assert 0 < quiet * 2 < busy
        [event] = emit(source, usage())
        until(
            lambda: target.value("select count(*) from events.usage_limits where event_id = %s", [event]),
            "it",
        )
        # Withheld by the publication, it comes from the table: a quiet stream finds out as well.
        source.execute("alter publication outbox_bridge set (publish = 'update')")
        [event] = emit(source, usage())
        bridge.wait_halted("publication_missing")
        source.execute("alter publication outbox_bridge set (publish = 'insert')")
        until(
            lambda: target.value("select count(*) from events.usage_limits where event_id = %s", [event]),
            "it",
        )


def _looks_in(
    connection: psycopg.Connection[tuple[object, ...]], source: Database, *, seconds: int, events: bool
) -> int:
    """How many statements the control connection has begun, by looking often."""
    seen = set()
    for n in range(seconds * 10):
        if events and n % 10 == 0:
            emit(source, usage())
        seen.update(
            connection.execute(
                "select query_start from pg_stat_activity where application_name"
                " = 'bridge-source/outbox_bridge_warehouse'"
            ).fetchall()
        )
        time.sleep(0.1)
    return len(seen)
