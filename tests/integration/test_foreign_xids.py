"""Rows whose xid is not what this cluster gave to the transaction that wrote them: told by stream, catch-up and poll,
halted for, never passed over and never applied twice."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest

from bridge.postgres.schema import install_source
from tests.faults.test_recover import state
from tests.integration.test_own_outbox import CONFIG, wait_for_rows
from tests.support.bridge_process import BridgeProcess
from tests.support.servers import Database
from tests.support.truth import conservation
from tests.support.variants import first_fast
from tests.support.world import World, until

WRONG: dict[str, LiteralString] = {
    "none": "null",
    "not given out": "'99999999999'",
    "of an earlier transaction": "'3'",
    "of the next one": "(pg_current_xact_id()::text::bigint + 1)::text::xid8",
}


def insert(connection: psycopg.Connection, xid: LiteralString) -> str:
    """A row by the table's owner, who may write the column, and here leave it out; its id."""
    connection.execute("alter table outbox.event alter column xid drop not null")
    row = connection.execute(
        "insert into outbox.event (type, payload, xid) values ('usage.limit_reached', '{}', "
        + xid
        + ") returning id::text"
    ).fetchone()
    assert row is not None
    return str(row[0])


def burn(connection: psycopg.Connection, count: int) -> None:
    """Let the cluster give out so many xids."""
    connection.execute(
        f"do $$ begin for i in 1..{count} loop perform pg_current_xact_id(); commit; end loop; end $$".encode()
    )


def came(world: World, event: str) -> bool:
    """As a row, or as a dead letter."""
    found = world.target.value(
        "select (select count(*) from events.usage_limits where event_id::text = %s)"
        " + (select count(*) from bridge.dead_letter where event_id = %s)",
        [event, event],
    )
    return int(found) > 0


SAID = {"none": "1 rows of the outbox have no xid", "not given out": "gave out later"}
WRONG_IN_THE_STREAM = {name: xid for name, xid in WRONG.items() if name != "none"}


@pytest.mark.parametrize("begin", ["begin", "begin; savepoint a"])
def test_a_streamed_row_without_an_xid_has_that_of_its_transaction(
    world: World, begin: LiteralString
) -> None:
    """Begin says it. The table could not: what wrote the row may be a savepoint. So once a floor is above it."""
    world.bridge().start().wait_log("streaming")
    with world.producer() as producer, world.source.connect() as owner:
        producer.transaction(3)
        world.caught_up()
        owner.execute("alter table outbox.event alter column xid drop not null")
        owner.execute(begin)
        event = insert(owner, WRONG["none"])
        owner.execute("commit")
        until(lambda: came(world, event), "the row arrives")
        given = world.source.value("select pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
        floor = "select pg_snapshot_xmin(floor)::text::bigint from bridge.checkpoint"
        until(lambda: world.target.value(floor) >= given, "the floor is above it")
        producer.transaction(3)
        world.drop_slot()
        producer.transaction(3)
        world.caught_up()
    assert times(world, event) == 1
    verdict = conservation(world.source.dsn, world.target.dsn)
    verdict.unexpected.clear()
    assert verdict.holds, verdict


@pytest.mark.parametrize("xid", WRONG_IN_THE_STREAM.values(), ids=WRONG_IN_THE_STREAM)
def test_a_streamed_row_with_another_xid_than_its_transaction_halts(world: World, xid: LiteralString) -> None:
    bridge = world.bridge().start()
    bridge.wait_log("streaming")
    with world.producer() as producer, world.source.connect() as owner:
        producer.transaction(3)
        world.caught_up()
        before = world.applied()
        producer.transaction(5)
        event = insert(owner, xid)
        assert "--adopt-outbox" in bridge.wait_halted("foreign_xids")
        assert world.applied() == before + 5  # what was committed earlier is applied
        assert not came(world, event)
        ((confirmed, written),) = world.source.execute(
            "select s.confirmed_flush_lsn, pg_current_wal_lsn() from pg_replication_slots s"
            " join outbox.stream r on r.slot = s.slot_name"
        )
        assert confirmed < written
        bridge.terminate()
        assert "will be applied       1" in world.command("recover", "--adopt-outbox")
        bridge = world.bridge().start()
        until(lambda: came(world, event), "the row arrives")
        producer.transaction(3)
        world.drop_slot()
        bridge.wait_ready()
        producer.transaction(3)
        world.caught_up()
    verdict = conservation(world.source.dsn, world.target.dsn)
    verdict.unexpected.clear()  # that row itself, which no producer of the rig wrote
    assert verdict.holds, verdict


@pytest.mark.parametrize("capture", first_fast("slot", "poll"))
@pytest.mark.parametrize("xid", ["none", "not given out"])
def test_a_stream_that_starts_takes_rows_that_no_snapshot_can_place(
    world: World, capture: str, xid: str
) -> None:
    """Nothing is applied yet, so everything that is there is taken, once; also after the counter has passed the xid."""
    world.configure(lambda document: document["source"].update(capture=capture))
    with world.source.connect() as owner, world.producer() as producer:
        producer.transaction(4)
        ahead = "(pg_current_xact_id()::text::bigint + 3000)::text::xid8"
        event = insert(owner, WRONG[xid] if xid == "none" else ahead)
        assert SAID[xid] in world.command("doctor")
        bridge = world.bridge().start()
        bridge.wait_ready()
        until(lambda: came(world, event), "the row arrives")
        producer.transaction(4)
        world.caught_up()
        burn(owner, 4000)
        producer.transaction(4)
        if capture == "slot":
            world.drop_slot()
        world.caught_up()
    verdict = conservation(world.source.dsn, world.target.dsn)
    verdict.unexpected.clear()
    assert verdict.holds, verdict
    assert times(world, event) == 1


@pytest.mark.parametrize("capture", first_fast("slot", "poll"))
@pytest.mark.parametrize("xid", ["none", "not given out"])
@pytest.mark.slow
def test_a_later_row_that_no_snapshot_can_place_halts_and_is_adopted(
    world: World, capture: str, xid: str
) -> None:
    world.configure(lambda document: document["source"].update(capture=capture))
    bridge = world.bridge().start()
    bridge.wait_ready()
    with world.source.connect() as owner, world.producer() as producer:
        producer.transaction(4)
        world.caught_up()
        if capture == "slot":
            until(
                lambda: world.source.value("select floor::text <> '3:3:' from outbox.stream"),
                "a floor is known",
            )
        bridge.terminate()
        producer.transaction(3)
        event = insert(owner, WRONG[xid])
        producer.transaction(3)
        if capture == "slot":
            world.drop_slot()
        # A polling stream registers its floor one poll late: then doctor takes it for one that starts, and warns.
        assert SAID[xid] in world.command("doctor", code=1 if capture == "slot" else 0)
        bridge = world.bridge().start()
        assert SAID[xid] in bridge.wait_halted("foreign_xids")
        assert not came(world, event)
        bridge.terminate()
        before = state(world)
        assert "will be applied       7" in world.command("recover", "--adopt-outbox", "--dry-run")
        assert state(world) == before
        applied = world.source.value("select count(*) from outbox.event") - 7
        assert f"applied already       {applied}" in world.command("recover", "--adopt-outbox")
        assert "will be applied       7" in world.command(
            "recover", "--adopt-outbox"
        )  # again, before a start
        bridge = world.bridge().start()
        bridge.wait_ready()
        until(lambda: came(world, event), "the row arrives")
        producer.transaction(3)
        world.caught_up()
    verdict = conservation(world.source.dsn, world.target.dsn)
    verdict.unexpected.clear()
    assert verdict.holds, verdict
    assert times(world, event) == 1


def times(world: World, event: str) -> int:
    """How often the event was applied, or is a dead letter."""
    return int(
        world.target.value(
            "select (select count(*) from rig.effects where row ->> 'event_id' = %s)"
            " + (select count(*) from bridge.dead_letter where event_id = %s)",
            [event, event],
        )
    )


PARTITIONED = """
create table public.outboxevent (id uuid not null, aggregateid text, type text not null, payload jsonb,
    processed boolean not null default false, seq bigint not null generated always as identity (cache 1),
    xid xid8 not null default pg_current_xact_id()) partition by list (processed);
create table public.outboxevent_new partition of public.outboxevent for values in (false);
create table public.outboxevent_done partition of public.outboxevent for values in (true);
create index on public.outboxevent (xid, seq);
grant select on public.outboxevent to outbox_bridge
"""


def make(source: Database, target: Database, directory: Path, *, xid: bool = True) -> BridgeProcess:
    with source.connect() as customer, target.connect() as owner:
        customer.execute(PARTITIONED)
        owner.execute("create table events.orders (id uuid, key text, total numeric, payload jsonb)")
        owner.execute("grant select, insert on events.orders to outbox_bridge")
    with psycopg.connect(source.dsn, autocommit=True) as customer:
        install_source(customer, "own", "public.outboxevent")
    config = directory / "own.yaml"
    config.write_text(CONFIG % (", seq: seq, xid: xid" if xid else ""))
    return BridgeProcess(
        source=source.bridge_dsn, target=target.bridge_dsn, directory=directory, config=config
    )


def order(customer: psycopg.Connection, total: int) -> None:
    customer.execute(
        "insert into public.outboxevent (id, aggregateid, type, payload) values (%s, 'k', 'OrderCreated', %s)",
        [uuid.uuid4(), json.dumps({"total": total})],
    )


@pytest.mark.fault(82)
def test_a_row_that_moves_to_another_partition_is_no_event(
    source: Database, target: Database, tmp_path: Path
) -> None:
    bridge = make(source, target, tmp_path)
    try:
        bridge.start().wait_log("streaming")
        with psycopg.connect(source.dsn, autocommit=True) as customer:
            for total in range(5):
                order(customer, total)
            customer.execute(
                "update public.outboxevent set processed = true"
            )  # at once: still listed, or in flight
            wait_for_rows(target, 5)
            with customer.transaction():  # a new one, moved by its own transaction; old ones beside it
                order(customer, 5)
                customer.execute("update public.outboxevent set processed = not processed")
            wait_for_rows(target, 6)
            bridge.kill()
            customer.execute("update public.outboxevent set processed = not processed")
            order(customer, 6)
            bridge.start()
            rows = wait_for_rows(target, 7)
            assert len(rows) == 7
            assert {count for _, count in rows} == {1}
            # One transaction, larger than a batch: it moves all of that and 6,000 rows of its own.
            with customer.transaction():
                customer.execute(
                    "insert into public.outboxevent (id, aggregateid, type, payload) select gen_random_uuid(), 'k',"
                    " 'OrderCreated', jsonb_build_object('total', n) from generate_series(1, 6000) as n"
                )
                customer.execute("update public.outboxevent set processed = not processed")
            order(customer, 7)
            rows = wait_for_rows(target, 6008)
            assert len(rows) == 6008
            assert {count for _, count in rows} == {1}
            # One that was never applied under the xid that it has is not passed over.
            customer.execute(
                "insert into public.outboxevent (id, aggregateid, type, payload, xid) values"
                " (gen_random_uuid(), 'k', 'OrderCreated', '{}', (pg_current_xact_id()::text::bigint + 1)::text::xid8)"
            )
            bridge.wait_halted("foreign_xids")
            assert len(wait_for_rows(target, 6008)) == 6008
    finally:
        bridge.close()


def test_a_partitioned_outbox_without_an_xid_is_refused(
    source: Database, target: Database, tmp_path: Path
) -> None:
    bridge = make(source, target, tmp_path, xid=False)
    try:
        assert "bridge doctor" in bridge.start().wait_halted("xid_missing")
    finally:
        bridge.close()
