"""What has our name and is not ours, and what is ours under another name: publications, tables, slots."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.support.bridge_process import BridgeProcess
from tests.support.fixes import line_in
from tests.support.servers import drop_database
from tests.support.truth import conservation
from tests.support.variants import first_fast
from tests.support.world import STREAM, World, drop_slot, make_database, until

_BY_SCHEMA = (
    "create publication outbox_bridge for tables in schema outbox"
    " with (publish = 'insert', publish_via_partition_root = true)"
)
_HIDDEN = {
    "the schema taken out": (
        "alter publication outbox_bridge drop tables in schema outbox",
        "alter publication outbox_bridge add tables in schema outbox",
        "outbox.event",
    ),
    "the table in another schema": (
        "alter table outbox.event set schema crm",
        "alter table crm.event set schema outbox",
        "crm.event",
    ),
    "the table under another name": (
        "alter table outbox.event rename to event_of_old",
        "alter table outbox.event_of_old rename to event",
        "outbox.event_of_old",
    ),
    "the schema under another name": (
        "alter schema outbox rename to outbox_of_old",
        "alter schema outbox_of_old rename to outbox",
        "outbox_of_old.event",
    ),
}


def _insert(connection: psycopg.Connection[tuple[object, ...]], table: str, rows: int) -> None:
    connection.execute(
        "with made as materialized (select gen_random_uuid() as id, jsonb_build_object('customer_id', 'cus_1',"
        " 'metric', 'seats', 'limit', 1, 'used', 1, 'plan', 'pro') as payload from generate_series(1, %s)),"
        f" events as (insert into {table} (id, type, payload) select id, 'usage.limit_reached', payload from made)"
        " insert into rig.truth (event_id, type, payload) select id, 'usage.limit_reached', payload from made",
        [rows],
    )


@pytest.mark.fault("41b", 86)
@pytest.mark.parametrize("away", _HIDDEN)
@pytest.mark.parametrize("runs", [False, True], ids=["bridge down", "bridge up"])
@pytest.mark.parametrize("by_schema", first_fast(True, False), ids=["by schema", "by table"])
def test_an_outbox_that_was_out_of_sight_and_is_back_leaves_no_hole(
    world: World, away: str, *, runs: bool, by_schema: bool
) -> None:
    leave, back, table = _HIDDEN[away]
    if by_schema:
        world.source.execute("drop publication outbox_bridge")
        world.source.execute(_BY_SCHEMA)
    elif "publication" in leave:
        leave, back = (
            text.replace("tables in schema outbox", "table outbox.event") for text in (leave, back)
        )
    bridge = world.bridge().start()
    bridge.wait_log("streaming")
    with world.producer() as producer, world.source.connect() as owner:
        producer.transaction(3)
        world.caught_up()
        before = world.slot
        if not runs:
            assert bridge.terminate() == 0
        owner.execute(leave.encode())
        _insert(owner, table, 5)
        owner.execute(back.encode())
        producer.transaction(2)
        if not runs:
            bridge.start()
        until(lambda: world.slot not in (None, before), "another slot is made")
        world.law()
        producer.transaction(2)
    assert world.law().expected > 12


def test_doctor_and_the_bridge_agree_on_a_publication_by_schema(world: World) -> None:
    world.source.execute("drop publication outbox_bridge")
    world.source.execute(_BY_SCHEMA)
    said = world.command("doctor")
    assert "publication outbox_bridge publishes all of schema outbox" in said
    bridge = world.bridge().start()
    bridge.wait_log("streaming")
    world.source.execute("alter publication outbox_bridge drop tables in schema outbox")
    bridge.wait_halted("publication_missing")
    assert "error  source: publication" in world.command("doctor", code=1)


@pytest.fixture
def neighbour(world: World, tmp_path: Path) -> Iterator[World]:
    """Another source database of the same cluster, with a target of its own and the same names."""
    directory = tmp_path / "neighbour"
    directory.mkdir()
    source = make_database(world.source.server, f"{world.source.name}_neighbour", "source")
    target = make_database(world.target.server, f"{world.target.name}_neighbour", "target")
    made = World(source, target, directory)
    yield made
    made.close()
    drop_database(source)
    drop_database(target)


@pytest.mark.fault(87)
def test_slots_of_two_databases_of_a_cluster_never_meet(world: World, neighbour: World) -> None:
    """Names of slots are the cluster's, registries and numbers are the database's."""
    worlds = (world, neighbour)
    bridges = [each.bridge().start() for each in worlds]
    for bridge in bridges:
        bridge.wait_log("streaming")
    assert world.slot != neighbour.slot
    for loser, other in ((world, neighbour), (neighbour, world), (neighbour, world), (world, neighbour)):
        kept, before = other.slot, loser.slot
        loser.drop_slot()
        with loser.producer() as one, other.producer() as two:
            one.transaction(3)
            two.transaction(3)
            until(lambda loser=loser, before=before: loser.slot not in (None, before), "another slot")  # type: ignore[misc]
            loser.caught_up()
            other.caught_up()
        assert other.slot == kept, "a neighbour's slot was dropped"
    for each in worlds:
        each.law()


@pytest.mark.fault(87)
def test_the_brake_leaves_the_slot_of_another_database(world: World, neighbour: World) -> None:
    """The registry's slot is gone, and the neighbour has made one of its name."""
    world.applied_some()
    name = str(world.slot)
    with neighbour.source.connect() as owner, world.source.connect() as mine:
        drop_slot(mine, name)
        owner.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [name])
        mine.execute("create table public.ballast as select repeat('x', 1000) from generate_series(1, 3000)")
    world.configure(lambda c: c["source"].update(max_retained_wal="1MiB"))
    assert "leaves it alone" in world.command("doctor")
    bridge = world.bridge().start()
    bridge.wait_log("streaming")
    world.law()
    assert (
        neighbour.source.value(
            "select count(*) from pg_replication_slots where slot_name = %s and database = current_database()",
            [name],
        )
        == 1
    )


@pytest.mark.fault(87)
def test_who_reads_the_slot_and_is_no_bridge_is_named(world: World) -> None:
    world.applied_some()
    reader = psycopg.pq.PGconn.connect(
        make_conninfo(world.source.dsn, replication="database", application_name="pg_recvlogical").encode()
    )
    started = f"START_REPLICATION SLOT {world.slot} LOGICAL 0/0 (proto_version '1', publication_names 'outbox_bridge')"
    assert reader.exec_(started.encode()).status == psycopg.pq.ExecStatus.COPY_BOTH
    bridge = world.bridge().start()
    body = bridge.wait_halted("slot_in_use")
    assert "pg_recvlogical" in body
    [read] = [one for one in world.json("doctor", code=1)["checks"] if one["check"] == "slot_in_use"]
    world.source.typed(read["fix"])
    bridge.wait_ready()
    world.law()


@pytest.mark.fault(5, 87)
def test_a_second_bridge_of_the_stream_still_stands_by(world: World) -> None:
    first: BridgeProcess = world.bridge().start()
    first.wait_log("streaming")
    second = world.bridge().start()
    second.wait_log("standby")
    second.wait_ready()
    first.kill()
    second.wait_log("streaming")
    assert STREAM in str(world.slot)
    world.law()


def _renamed(document: dict[str, Any]) -> None:
    """The connection has another name."""
    document["connections"]["dwh"] = document["connections"].pop("warehouse")
    for pipeline in document["pipelines"].values():
        for destination in pipeline["destinations"].values():
            if destination.get("connection") == "warehouse":
                destination["connection"] = "dwh"


def _another_prefix(document: dict[str, Any]) -> None:
    document["source"]["slot"] = "newname"


@pytest.mark.fault(87)
@pytest.mark.parametrize("capture", first_fast("slot", "poll"))
@pytest.mark.parametrize(
    ("change", "new"),
    [
        (_renamed, "outbox_bridge_dwh"),
        pytest.param(_another_prefix, "newname_warehouse", marks=pytest.mark.slow),
    ],
    ids=["connection", "slot"],
)
def test_a_renamed_stream_applies_nothing_again(
    world: World, change: Callable[[dict[str, Any]], None], new: str, capture: str
) -> None:
    world.configure(lambda c: c["source"].update(capture=capture))
    bridge = world.bridge().start()
    bridge.wait_log("polling" if capture == "poll" else "streaming")
    with world.producer() as producer:
        producer.transaction(5)
        world.caught_up()
        assert bridge.terminate() == 0
        world.configure(change)
        if change is _another_prefix:
            world.source.execute(
                "create publication newname for table outbox.event with (publish = 'insert',"
                " publish_via_partition_root = true)"
            )
        assert "stream_renamed" in world.command("doctor", code=1)
        body = bridge.start().wait_halted("stream_renamed")
        assert bridge.terminate() == 0
        producer.transaction(5)
        renamed = line_in(body, f"bridge rename-stream {STREAM} {new}")
        assert f"{STREAM} is {new} now" in world.typed(renamed)
        assert "was changed" in world.run("rename-stream", STREAM, new).stderr
        bridge.start().wait_ready()
        producer.transaction(5)
        world.caught_up()
    verdict = conservation(world.source.dsn, world.target.dsn)
    assert verdict.holds, verdict
    slots = world.source.execute(
        "select slot_name from pg_replication_slots where database = current_database()"
    )
    assert [name.rpartition("_")[0] for (name,) in slots] == ([new] if capture == "slot" else [])
    assert world.source.execute("select stream from outbox.stream") == [(new,)]
    assert world.target.execute("select stream from bridge.checkpoint") == [(new,)]


@pytest.mark.fault(87)
@pytest.mark.parametrize("died", ["before the source knows", "before the target knows"])
def test_a_rename_that_was_interrupted_is_finished_by_another(world: World, died: str) -> None:
    world.applied_some()
    new = "outbox_bridge_dwh"
    if died == "before the source knows":  # only the slot was copied
        world.source.execute(
            "select pg_copy_logical_replication_slot(%s::name, %s)", [world.slot, f"{new}_1"]
        )
    else:
        world.source.execute(
            "select pg_copy_logical_replication_slot(%s::name, %s)", [world.slot, f"{new}_1"]
        )
        world.source.execute(
            "update outbox.stream set stream = %s, slot = %s, session = ''", [new, f"{new}_1"]
        )
    world.configure(_renamed)
    if died == "before the target knows":
        world.bridge().start().wait_halted("ledger_missing")
        assert world.bridges[-1].terminate() == 0
    world.command("rename-stream", STREAM, new)
    bridge = world.bridge().start()
    bridge.wait_log("streaming")
    with world.producer() as producer:
        producer.transaction(5)
        world.caught_up()
    verdict = conservation(world.source.dsn, world.target.dsn)
    assert verdict.holds, verdict
    assert world.source.execute(
        "select slot_name from pg_replication_slots where database = current_database()"
    ) == [(f"{new}_1",)]


@pytest.mark.fault(87)
def test_a_stream_beside_one_that_works_is_no_rename(world: World) -> None:
    """Another configuration may fill the same database."""
    first = world.bridge().start()
    first.wait_log("streaming")
    world.configure(_renamed)
    world.configure(lambda c: c["pipelines"].clear())
    world.configure(
        lambda c: c["pipelines"].update(
            other={
                "event": "other",
                "destinations": {"events": {"connection": "dwh", "table": "events.usage_limits"}},
            }
        )
    )
    second = world.bridge().start()
    second.wait_log("streaming")
    assert first.running


@pytest.mark.fault(87)
def test_a_decommissioned_stream_leaves_nothing_behind(world: World) -> None:
    """The runbook: docs/operations.md, "A stream that ends"."""
    world.applied_some()
    with world.producer() as producer:
        producer.transaction(4)
    assert "is in this configuration" in world.run("decommission", STREAM).stderr
    world.target.execute("alter table events.usage_limits rename to aside")
    halted = world.bridge().start()
    halted.wait_halted("table_missing")
    world.configure(_renamed)
    assert f"a bridge has stream {STREAM}" in world.run("decommission", STREAM, "--yes").stderr
    assert halted.terminate() == 0
    world.target.execute("alter table events.aside rename to usage_limits")
    said = world.command("decommission", STREAM)
    assert "4 events that it has not applied are given up" in said
    assert "nothing was changed" in said
    assert world.slot is not None
    assert "has ended" in world.command("decommission", STREAM, "--yes")
    assert world.source.value("select count(*) from outbox.stream") == 0
    assert (
        world.source.value("select count(*) from pg_replication_slots where database = current_database()")
        == 0
    )
    assert world.target.value("select count(*) from bridge.checkpoint") == 0
    assert "there is no stream" in world.run("decommission", STREAM).stderr
    bridge = world.bridge().start()  # the new one is new, and nothing is in its way
    bridge.wait_log("streaming")
