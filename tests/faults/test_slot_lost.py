"""The slot or the publication is lost, in every way: the outbox table is the truth, and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from tests.support.bridge_process import BridgeProcess
from tests.support.producers import Producer, Traffic
from tests.support.servers import RestartableServer
from tests.support.world import World, drop_slot, until


@pytest.fixture
def running(world: World) -> BridgeProcess:
    """A bridge that streams, and has confirmed something."""
    bridge = world.bridge().start()
    bridge.wait_log("streaming")
    world.caught_up()
    return bridge


def another_slot(world: World, before: int) -> None:
    until(lambda: incarnation(world) > before, "another slot is made")


def incarnation(world: World) -> int:
    return int(world.checkpoint("slot_incarnation"))


@pytest.mark.fault(31)
def test_a_slot_dropped_again_and_again_under_load(world: World, running: BridgeProcess) -> None:
    with Traffic(world.source.dsn, producers=2, burst=200):
        for _ in range(4):
            before = incarnation(world)
            world.drop_slot()
            another_slot(world, before)
            world.caught_up()
    assert running.running
    world.law()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.fault(31)
def test_a_slot_dropped_forty_times_under_load_breaks_no_promise(
    world: World, running: BridgeProcess
) -> None:
    """The law compares every event by its id, and the order of each key."""
    first = incarnation(world)
    with Traffic(world.source.dsn, producers=3, burst=400, pause=0.02):
        for _ in range(40):
            before = incarnation(world)
            world.drop_slot()
            another_slot(world, before)
            until(lambda: world.checkpoint("mode") == "stream", "it streams again", 60)
            floor = world.checkpoint("floor_lsn")  # it rises about once a second, with events in flight
            until(lambda known=floor: world.checkpoint("floor_lsn") != known, "and applies", 60)  # type: ignore[misc]
    assert running.running
    assert incarnation(world) >= first + 40
    verdict = world.law(deadline=120)
    assert verdict.expected > 1000
    assert verdict.in_dead_letters == 0
    print(f"40 slots dropped: {verdict}")


def _recreated(connection: psycopg.Connection[tuple[object, ...]], slot: str) -> None:
    drop_slot(connection, slot)
    connection.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])


def _of_another_plugin(connection: psycopg.Connection[tuple[object, ...]], slot: str) -> None:
    drop_slot(connection, slot)
    connection.execute("select pg_create_logical_replication_slot(%s, 'test_decoding')", [slot])


def _physical(connection: psycopg.Connection[tuple[object, ...]], slot: str) -> None:
    drop_slot(connection, slot)
    connection.execute("select pg_create_physical_replication_slot(%s)", [slot])


def _advanced(connection: psycopg.Connection[tuple[object, ...]], slot: str) -> None:
    connection.execute("select pg_replication_slot_advance(%s, pg_current_wal_lsn())", [slot])


def _made_anew_then_advanced(connection: psycopg.Connection[tuple[object, ...]], slot: str) -> None:
    _recreated(connection, slot)
    connection.execute("create table public.noise as select generate_series(1, 1000)")
    _advanced(connection, slot)
    connection.execute("drop table public.noise")


@pytest.mark.fault(32, 35)
@pytest.mark.parametrize(
    "deed", [_recreated, _of_another_plugin, _physical, _advanced, _made_anew_then_advanced]
)
def test_events_that_a_meddled_slot_skips_are_read_from_the_table(
    world: World, running: BridgeProcess, deed: Callable[..., None]
) -> None:
    running.kill()
    with world.producer() as producer, world.source.connect() as somebody:
        producer.burst(50)
        until(
            lambda: world.source.value(
                "select count(*) from pg_replication_slots where slot_name = %s and not active", [world.slot]
            ),
            "the slot is free",
        )
        deed(somebody, str(world.slot))
        producer.transaction(3)
        running.start().wait_ready()
        world.caught_up()
    assert incarnation(world) == 2
    verdict = world.law()
    assert verdict.expected >= 55
    world.source.execute(  # what is not ours the bridge leaves where it is, and names of slots are the cluster's
        "select pg_drop_replication_slot(slot_name) from pg_replication_slots where not active"
        " and starts_with(slot_name::text, 'outbox_bridge_')"
    )


@pytest.mark.fault(33)
def test_a_slot_that_the_server_gave_up_is_replaced(world: World, source_cluster: RestartableServer) -> None:
    bridge = world.bridge().start()
    bridge.wait_log("streaming")
    with world.producer() as producer, world.source.connect() as owner:
        producer.transaction(3)
        world.caught_up()
        bridge.kill()
        owner.execute("alter system set max_slot_wal_keep_size = '1MB'")
        owner.execute("select pg_reload_conf()")
        producer.burst(400)
        for _ in range(4):
            owner.execute("select pg_switch_wal()")
            producer.transaction(2)
        owner.execute("checkpoint")
        lost = "select wal_status = 'lost' or invalidation_reason is not null from pg_replication_slots"
        until(lambda: owner.execute(lost).fetchone() == (True,), "the slot is lost")
        owner.execute("alter system reset max_slot_wal_keep_size")
        owner.execute("select pg_reload_conf()")
        bridge.start().wait_ready()
        world.caught_up()
    assert incarnation(world) == 2, running.log_tail()
    verdict = world.law()
    assert verdict.expected > 400


@pytest.mark.fault(40, 41)
def test_a_publication_dropped_halts_and_made_again_loses_nothing(
    world: World, running: BridgeProcess
) -> None:
    with world.producer() as producer:
        producer.transaction(2)
        world.source.execute("drop publication outbox_bridge")
        producer.transaction(3)
        body = running.wait_halted("publication_missing")
        assert "bridge install" in body
        producer.transaction(3)
        world.source.execute(_PUBLICATION)
        running.wait_ready()
        world.caught_up()
    world.law()


@pytest.mark.fault(41)
@pytest.mark.parametrize(
    ("away", "back"),
    [
        (
            "alter publication outbox_bridge drop table outbox.event",
            "alter publication outbox_bridge add table outbox.event",
        ),
        (
            "alter publication outbox_bridge set (publish = 'update')",
            "alter publication outbox_bridge set (publish = 'insert')",
        ),
        (
            "alter publication outbox_bridge set table outbox.event where (type = 'none')",
            "alter publication outbox_bridge set table outbox.event",
        ),
        (
            "alter publication outbox_bridge set table outbox.event (id, type)",
            "alter publication outbox_bridge set table outbox.event",
        ),
    ],
    ids=["no table", "no inserts", "a row filter", "some columns"],
)
def test_a_publication_that_leaves_events_out_halts_and_loses_none(
    world: World, running: BridgeProcess, away: str, back: str
) -> None:
    with world.producer() as producer:
        world.source.execute(away)
        producer.transaction(3)
        running.wait_halted("publication_missing")
        producer.transaction(3)
        world.source.execute(back)
        running.wait_ready()
        producer.transaction(3)
    world.law()


_PUBLICATION = (
    "create publication outbox_bridge for table outbox.event"
    " with (publish = 'insert', publish_via_partition_root = true)"
)


@pytest.mark.fault("41b")
@pytest.mark.parametrize(
    ("away", "back"),
    [
        ("drop publication outbox_bridge", _PUBLICATION),
        (
            "alter publication outbox_bridge set (publish = 'update')",
            "alter publication outbox_bridge set (publish = 'insert')",
        ),
        (
            "alter publication outbox_bridge drop table outbox.event",
            "alter publication outbox_bridge add table outbox.event",
        ),
    ],
    ids=["dropped", "publish toggled", "table taken out"],
)
def test_a_publication_changed_and_changed_back_leaves_no_hole(
    world: World, running: BridgeProcess, away: str, back: str
) -> None:
    with world.source.connect() as owner, Producer(world.source.dsn) as producer:
        for _ in range(3):
            before = incarnation(world)
            owner.execute(away.encode())
            producer.transaction(4)
            owner.execute(back.encode())
            producer.transaction(2)
            another_slot(world, before)
            world.caught_up()
    assert running.running
    world.law()


@pytest.mark.fault("54b")
def test_events_flow_while_a_slot_waits_for_open_transactions(world: World) -> None:
    with world.source.connect() as app, world.source.connect() as other, world.producer() as producer:
        with app.transaction():
            app.execute("select pg_current_xact_id()")
            other.execute("begin")
            other.execute("select pg_current_xact_id()")
            other.execute("prepare transaction 'forgotten'")
            bridge = world.bridge().start()
            bridge.wait_log("creating a slot")
            producer.transaction(5)
            world.caught_up()
            assert world.checkpoint("mode") == "catchup"
            until(
                lambda: "slot creation waits for" in bridge.get("/status")[1],
                "status names who is waited for",
            )
        until(lambda: "forgotten" in bridge.get("/status")[1], "and then the prepared one")
        producer.transaction(5)
        world.caught_up()
        other.execute("rollback prepared 'forgotten'")
        bridge.wait_log("streaming")
        producer.transaction(5)
    world.law()


@pytest.mark.fault(51, 52)
def test_switching_between_slot_and_polling_on_a_live_system(world: World) -> None:
    with Traffic(world.source.dsn, producers=2, burst=200):
        for capture in ("slot", "poll", "slot", "auto", "poll"):
            world.configure(lambda c, to=capture: c["source"].update(capture=to, poll_interval="100ms"))  # type: ignore[misc]
            bridge = world.bridge().start()
            bridge.wait_log("polling" if capture == "poll" else "streaming")
            world.caught_up()
            if capture == "slot":
                bridge.kill()
            else:
                assert bridge.terminate() == 0
    assert (
        world.source.value("select count(*) from pg_replication_slots where database = current_database()")
        == 0
    )
    world.bridge().start().wait_ready()
    world.law()


@pytest.mark.fault(51, 54)
def test_auto_polls_without_logical_decoding_and_streams_once_there_is_one(
    world: World, source_cluster: RestartableServer
) -> None:
    world.source.execute("alter system set wal_level = replica")
    source_cluster.restart()
    world.configure(lambda c: c["source"].update(capture="auto", poll_interval="100ms"))
    bridge = world.bridge().start()
    bridge.wait_log("polling")
    with world.producer() as producer, psycopg.connect(world.source.dsn) as early:
        # A transaction that began first and commits last, and one of another database that never ends.
        with psycopg.connect(source_cluster.dsn("postgres")) as forgotten:
            forgotten.execute("select pg_current_xact_id()")
            _insert(early, 1)
            producer.transaction(5)
            world.caught_up()
            early.commit()
            world.caught_up()
        world.source.execute("alter system reset wal_level")
        assert bridge.terminate() == 0
        source_cluster.restart()
        bridge.start().wait_log("streaming")
    with world.producer("later") as producer:
        producer.transaction(3)
    world.law()


def _insert(connection: psycopg.Connection[tuple[object, ...]], rows: int) -> None:
    """As a producer, in the connection's open transaction."""
    connection.execute(
        "with made as materialized (select gen_random_uuid() as id, jsonb_build_object('customer_id', 'cus_1',"
        " 'metric', 'seats', 'limit', 1, 'used', 1, 'plan', 'pro') as payload from generate_series(1, %s)),"
        " events as (insert into outbox.event (id, type, payload) select id, 'usage.limit_reached', payload from made)"
        " insert into rig.truth (event_id, type, payload) select id, 'usage.limit_reached', payload from made",
        [rows],
    )


@pytest.mark.fault(45, 46)
def test_prepared_transactions_savepoints_and_rollbacks(world: World, running: BridgeProcess) -> None:
    with world.source.connect() as app:
        app.execute("begin")
        _insert(app, 3)
        app.execute("prepare transaction 'later'")
        world.caught_up()
        before = world.applied()
        app.execute("begin")
        _insert(app, 2)
        app.execute("prepare transaction 'never'")
        app.execute("rollback prepared 'never'")
        with app.transaction():
            _insert(app, 1)
            app.execute("savepoint one")
            _insert(app, 5)
            app.execute("rollback to one")
            app.execute("savepoint two")
            _insert(app, 2)
            app.execute("release two")
        with app.transaction(force_rollback=True):
            _insert(app, 4)
        world.caught_up()
        assert world.applied() == before + 3 + 1
        app.execute("commit prepared 'later'")
        world.caught_up()
        assert world.applied() == before + 3 + 1 + 3 + 1
        # prepared before the slot is lost, committed after another was made
        app.execute("begin")
        _insert(app, 3)
        app.execute("prepare transaction 'across'")
        world.drop_slot()
        running.wait_log("creating a slot", since=len(running.lines) - 3)
        world.caught_up()
        app.execute("commit prepared 'across'")
    until(lambda: incarnation(world) == 2 and world.checkpoint("mode") == "stream", "it streams again")
    world.law()


_CONFIRMED = "select confirmed_flush_lsn >= %s from pg_replication_slots where slot_name = %s"


@pytest.mark.fault(50)
def test_messages_in_the_wal_are_no_events_rolled_back_or_not(world: World, running: BridgeProcess) -> None:
    """Anybody may write one. Those that are not transactional are decoded although their transaction was rolled
    back; both stand among rows of the outbox."""
    emit = "select pg_logical_emit_message(%s, 'outbox.event', '{\"customer_id\": \"cus_1\"}')"
    with world.source.connect() as app, world.producer() as producer:
        for transactional in (True, False):
            with app.transaction(force_rollback=True):
                app.execute(emit, [transactional])
                _insert(app, 2)
                app.execute(emit, [transactional])
            with app.transaction():
                app.execute(emit, [transactional])
                _insert(app, 2)
                app.execute(emit, [transactional])
            producer.transaction(3)
        for _ in range(50):  # nothing else: the slot goes on past them
            app.execute(emit, [False])
        end = app.execute("select pg_current_wal_flush_lsn()::text").fetchone()
        world.caught_up()
        assert end is not None
        until(
            lambda: world.source.value(_CONFIRMED, [*end, world.slot]),
            "the slot is confirmed past the messages",
        )
    assert running.running
    assert incarnation(world) == 1
    assert world.law().expected == 10 + 3  # and three markers


@pytest.mark.fault(44)
def test_a_partitioned_outbox(world: World) -> None:
    with world.source.connect() as owner:
        owner.execute("drop table outbox.event cascade")
        owner.execute(_PARTITIONED)
        owner.execute("drop publication if exists outbox_bridge")
        owner.execute("create publication outbox_bridge for table outbox.event with (publish = 'insert')")
        bridge = world.bridge().start()
        bridge.wait_halted("publication_missing")  # it would send the partitions' names
        owner.execute("drop publication outbox_bridge")
        owner.execute(_PUBLICATION)
        bridge.wait_log("streaming")
        with world.producer() as producer:
            for _ in range(3):
                producer.transaction(3)
            with owner.transaction():  # a partition replaced while events come
                owner.execute("alter table outbox.event detach partition outbox.event_c")
                owner.execute(
                    "alter table outbox.event attach partition outbox.event_c"
                    " for values with (modulus 3, remainder 2)"
                )
            producer.transaction(6)
            world.drop_slot()
            producer.transaction(6)
    world.law()


_PARTITIONED = """
    create table outbox.event (
        id uuid not null default gen_random_uuid(), seq bigint not null generated always as identity,
        xid xid8 not null default pg_current_xact_id(), type text not null, key text, payload jsonb not null,
        idempotency_key text, headers jsonb, occurred_at timestamptz not null default now(), primary key (id)
    ) partition by hash (id);
    create table outbox.event_a partition of outbox.event for values with (modulus 3, remainder 0);
    create table outbox.event_b partition of outbox.event for values with (modulus 3, remainder 1);
    create table outbox.event_c partition of outbox.event for values with (modulus 3, remainder 2);
    grant insert (id, type, key, payload, idempotency_key, headers, occurred_at) on outbox.event to outbox_producer;
    grant select on outbox.event to outbox_bridge"""


@pytest.mark.fault(43)
def test_update_delete_and_truncate_of_the_outbox_are_no_events(world: World, running: BridgeProcess) -> None:
    with world.producer() as producer, world.source.connect() as owner:
        producer.burst(50)
        world.caught_up()
        before = world.applied()
        owner.execute("update outbox.event set headers = '{}'")
        owner.execute(
            "delete from outbox.event where id <> (select witness_id::uuid from outbox.stream) and seq % 2 = 0"
        )
        world.caught_up()
        owner.execute("truncate outbox.event")
        producer.transaction(3)
        world.caught_up()
        assert world.applied() == before + 5
    assert running.running
    world.law()


@pytest.mark.fault(42)
def test_columns_of_the_outbox_come_and_go_mid_stream(world: World, running: BridgeProcess) -> None:
    with world.producer() as producer, world.source.connect() as owner:
        with owner.transaction():
            _insert(owner, 2)
            owner.execute("alter table outbox.event add column region text default 'eu'")
            _insert(owner, 2)
        producer.transaction(3)
        owner.execute("alter table outbox.event drop column region")
        owner.execute("alter table outbox.event add column shard integer not null default 7")
        producer.transaction(3)
        owner.execute("alter table outbox.event alter column key type varchar(500)")
        producer.transaction(3)
        world.caught_up()
        owner.execute("alter table outbox.event rename column payload to body")
        owner.execute(
            "insert into outbox.event (type, body) values ('usage.limit_reached', '{\"renamed\": true}')"
        )
        assert "source.columns" in running.wait_halted("outbox_changed")
        assert incarnation(world) == 1
        owner.execute("delete from outbox.event where body @> '{\"renamed\": true}'")
        owner.execute("alter table outbox.event rename column body to payload")
        producer.transaction(3)
        another_slot(world, 1)  # by itself: the WAL knows that column under the other name for ever
        running.wait_ready()
    world.law()


@pytest.mark.fault(42)
def test_a_column_that_was_dropped_and_added_again_is_for_a_person(
    world: World, running: BridgeProcess
) -> None:
    """What it held is in the WAL only: the slot stays until somebody says that this may be lost."""
    with world.producer() as producer, world.source.connect() as owner:
        producer.transaction(3)
        world.caught_up()
        owner.execute("alter table outbox.event drop column payload")
        empty = owner.execute("insert into outbox.event (type) values ('t') returning id").fetchone()
        owner.execute("alter table outbox.event add column payload jsonb not null default '{}'")
        owner.execute("grant insert (payload) on outbox.event to outbox_producer")
        running.wait_halted("outbox_changed")
        looked = int(world.checkpoint("epoch"))
        until(lambda: int(world.checkpoint("epoch")) > looked + 1, "it looks again")
        assert "pg_drop_replication_slot" in running.wait_halted("outbox_changed")
        assert incarnation(world) == 1
        owner.execute("delete from outbox.event where id = %s", empty)
        world.drop_slot()
        another_slot(world, 1)
        producer.transaction(3)
        running.wait_ready()
    world.law()
