"""The publication is altered while a transaction writes to the outbox before, meanwhile and after: the slot brings
a part of that transaction, and the rest is read from the table."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.support.world import World, until

AWAY_AND_BACK = {
    "publish": (
        "alter publication outbox_bridge set (publish = 'update')",
        "alter publication outbox_bridge set (publish = 'insert')",
    ),
    "table": (
        "alter publication outbox_bridge drop table outbox.event",
        "alter publication outbox_bridge add table outbox.event",
    ),
}
_INSERT = """
    with made as materialized (select gen_random_uuid() as id, jsonb_build_object('customer_id', 'cus_1',
        'metric', 'seats', 'limit', 1, 'used', 1, 'plan', 'pro') as payload from generate_series(1, %s)),
    events as (insert into outbox.event (id, type, payload) select id, 'usage.limit_reached', payload from made)
    insert into rig.truth (event_id, type, payload) select id, 'usage.limit_reached', payload from made
    returning event_id"""


def write(connection: psycopg.Connection[Any], rows: int) -> str:
    """As a producer, in the connection's open transaction; the id of one of the events."""
    row = connection.execute(_INSERT, [rows]).fetchone()
    assert row is not None
    return str(row[0])


@pytest.mark.fault(41)
@pytest.mark.parametrize("way", AWAY_AND_BACK)
def test_rows_withheld_amid_a_transaction_are_read_from_the_table(world: World, way: str) -> None:
    away, back = AWAY_AND_BACK[way]
    bridge = world.bridge().start()
    bridge.wait_log("streaming")
    world.caught_up()
    with world.source.connect() as app, world.source.connect() as owner, world.producer() as producer:
        with app.transaction():
            write(app, 3)
            owner.execute(away.encode())
            write(app, 4)
            producer.transaction(2)
            owner.execute(back.encode())
            write(app, 5)
            # The bridge notices now, and a slot cannot be made while this transaction is open: it polls.
            until(lambda: world.checkpoint("mode") == "catchup", "the bridge catches up")
            write(app, 2)
        world.caught_up()
        before = int(world.checkpoint("slot_incarnation"))
        bridge.wait_log("streaming", since=len(bridge.lines) - 5)
        world.caught_up()
        bridge.pause()  # so that it does not look before the transaction ends
        with app.transaction():
            first = write(app, 3)
            owner.execute(away.encode())
            withheld = write(app, 4)
            owner.execute(back.encode())
            write(app, 5)
        producer.transaction(2)
        bridge.resume()
        until(lambda: int(world.checkpoint("slot_incarnation")) > before, "another slot is made")
        world.caught_up()
    assert bridge.running
    world.law()
    assert brought_by(world, first) != brought_by(world, withheld), "the slot brought no part of it alone"


def brought_by(world: World, event_id: str) -> int:
    """The target transaction that applied this event."""
    return int(
        world.target.value("select xid::text from rig.effects where row ->> 'event_id' = %s", [event_id])
    )
