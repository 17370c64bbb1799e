"""`bridge prove` counts the outbox by itself: a row that the protocol cannot see is told all the same."""

from __future__ import annotations

import json
from typing import Any

from tests.support.world import World, until


def census(world: World, code: int) -> dict[str, Any]:
    [one] = world.json("prove", "--json", code=code)["outboxes"]
    assert one["rows"] == world.source.value("select count(*) from outbox.event")
    counts = (one["applied"], one["before"], one["waiting"])
    assert sum(counts) + one["passed_over"]["count"] + one["unplaced"]["count"] == one["rows"]
    return dict(one)


def test_what_waits_is_told_and_is_no_difference(world: World) -> None:
    world.applied_some(5)
    before = world.source.value("select count(*) from outbox.event")
    with world.producer() as producer:
        producer.transaction(3)
    one = census(world, code=0)
    assert (one["applied"], one["waiting"]) == (before, 3)
    assert one["oldest_waiting"]
    assert f"{before + 3} rows: {before} applied, 3 waiting" in world.command("prove")


def test_rows_that_the_slot_is_past_and_nobody_applied_are_a_difference(world: World) -> None:
    """Somebody moves the slot; until a bridge looks, every position is in order and the rows are nobody's."""
    world.applied_some(5)
    with world.producer() as producer:
        producer.transaction(3)

    def passed() -> dict[str, Any] | None:
        """Whatever else writes WAL in this cluster, between two looks too."""
        world.source.execute("select pg_replication_slot_advance(%s, pg_current_wal_lsn())", [world.slot])
        ran = world.run("prove", "--json")
        return json.loads(ran.stdout)["outboxes"][0] if ran.returncode == 1 else None

    one = until(passed, "the slot is past everything")
    newest = world.source.execute("select id::text from outbox.event order by seq desc limit 3")
    assert (one["passed_over"]["count"], set(one["passed_over"]["first"])) == (
        3,
        {name for (name,) in newest},
    )
    bridge = world.bridge().start()
    bridge.wait_ready()
    world.caught_up()
    one = census(world, code=0)
    assert one["applied"] == one["rows"]


def test_under_a_bridge_that_runs_what_was_there_is_applied_or_told(world: World) -> None:
    """A row whose xid is not its transaction's halts the stream; prove names it."""
    world.applied_some(5)
    bridge = world.bridge().start().wait_ready()
    world.source.execute(
        "insert into outbox.event (type, payload, xid) values ('usage.limit_reached', '{}', '99999999999')"
    )
    bridge.wait_halted("foreign_xids")
    one = census(world, code=1)
    newest = world.source.value("select id::text from outbox.event order by seq desc limit 1")
    assert one["unplaced"]["first"] == [newest]
    assert f"unplaced: {newest}" in world.command("prove", code=1)


def test_types_that_no_pipeline_takes_are_named(world: World) -> None:
    world.applied_some(5)
    world.bridge().start().wait_ready()
    world.source.execute("insert into outbox.event (type, payload) values ('nobody.wants', '{}')")
    until(lambda: census(world, code=0)["waiting"] == 0, "it is passed")
    assert census(world, code=0)["in_no_pipeline"] == {"nobody.wants": 1}
    assert "in no pipeline: nobody.wants (1)" in world.command("prove")
