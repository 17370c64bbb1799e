"""Commands on a world whose events go over a log, in three partitions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from bridge.protocol.chain import partition_of
from tests.support.bridge_process import BridgeProcess
from tests.support.nats import NatsNode
from tests.support.over_log import over_log, part, without_log
from tests.support.world import STREAM, World, until

pytestmark = pytest.mark.timeout(180)
PARTITIONS = [f"{STREAM}.{number}of3" for number in (1, 2, 3)]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NatsNode]:
    with NatsNode(tmp_path) as made:
        yield made


@pytest.fixture
def bridge(world: World, node: NatsNode) -> BridgeProcess:
    """Relay and workers in one; 30 events are applied."""
    over_log(world, node)
    made = world.bridge().start().wait_ready()
    with world.producer() as producer:
        for _ in range(10):
            producer.transaction(3)
        world.caught_up()
    until(lambda: streaming(world), "all partitions stream")
    return made


def streaming(world: World) -> bool:
    return world.target.value("select bool_and(mode = 'stream') from bridge.checkpoint") is True


def row(world: World, event_id: str) -> str:
    """The partition of an event, as the relay divides."""
    [(key,)] = world.source.execute("select key from outbox.event where id = %s", [event_id])
    return PARTITIONS[partition_of(key.encode() if key is not None else None, event_id.encode(), 3) - 1]


def test_status_tells_the_relay_and_one_line_a_target(world: World, bridge: BridgeProcess) -> None:
    until(lambda: world.json("status")["streams"][0]["relay"]["log_limit_bytes"], "the log was asked")
    told = world.command("status")
    assert f"stream {STREAM}: 3 partitions over the log, 3 streaming" in told
    assert "relay outbox_bridge_bus: streaming" in told
    assert "of 64 MiB" in told
    assert f"stream {PARTITIONS[0]}" not in told
    assert told.count("slot ") == 1
    state = world.json("status")
    assert [one["stream"] for one in state["streams"]] == ["outbox_bridge_bus", *PARTITIONS]
    assert [one["group"] for one in state["streams"]] == ["", STREAM, STREAM, STREAM]
    assert state["streams"][0]["relay"]["rows"] > 0 or state["streams"][0]["relay"]["frames"] > 0
    assert set(state["streams"][0]["relay"]["lag_bytes"]) == set(PARTITIONS)
    assert bridge.terminate() == 0
    world.source.execute("insert into outbox.event (type, payload, key) values ('none', '{}', 'a')")
    world.source.execute("insert into outbox.event (type, payload, key) values ('none', '{}', 'a')")
    stopped = world.json("status", code=1)
    waiting = {one["stream"]: one["pending_events"] for one in stopped["streams"]}
    mine = PARTITIONS[partition_of(b"a", b"", 3) - 1]
    assert waiting == {"outbox_bridge_bus": None, **dict.fromkeys(PARTITIONS, 0), mine: 2}
    text = world.command("status", code=1)
    assert f"stream {STREAM}: 3 partitions over the log, 3 stopped, 2 events wait" in text
    assert "left behind" not in text


def test_explain_tail_and_emit_ask_the_events_partition(world: World, bridge: BridgeProcess) -> None:
    name = world.source.value("select id::text from outbox.event where key is not null limit 1")
    told = world.command("explain", name)
    assert f"partition {row(world, name)}" in told
    assert "its transaction is applied" in told
    emitted = world.run(
        "emit",
        "usage.limit_reached",
        '{"customer_id": "c", "metric": "seats", "limit": 1, "used": 1, "plan": "p"}',
    )
    assert f"applied by {STREAM}" in emitted.stdout + emitted.stderr
    assert world.command("tail", "--no-follow", "-n", "3").count("applied") == 3
    assert bridge.terminate() == 0
    late = world.source.value(
        "insert into outbox.event (type, payload, key) values ('usage.limit_reached', '{}', 'k') returning id::text"
    )
    assert "is not applied yet" in world.command("explain", late)
    assert "waiting" in world.command("tail", "--no-follow", "-n", "1")


@pytest.mark.slow
def test_explain_shows_the_frame_that_carries_an_event(world: World, bridge: BridgeProcess) -> None:
    [(position, event)] = world.source.execute(
        "with made as (insert into outbox.event (type, payload, key) values ('usage.limit_reached', '{}', 'k')"
        " returning id::text) select pg_current_wal_insert_lsn()::text, id from made"
    )
    assert position

    def said() -> str:
        return next((line for line in world.command("explain", event).splitlines() if "frame" in line), "")

    line = until(said, "its partition's frames were looked at")
    assert "outbox_bridge_bus.frames." in line


@pytest.mark.slow
def test_prove_counts_each_event_in_its_own_partition(world: World, bridge: BridgeProcess) -> None:
    proof = world.json("prove")
    assert proof["differences"] == 0
    assert bridge.terminate() == 0
    world.target.execute(
        "update bridge.checkpoint set floor = '3:3:', next = null where stream = %s", [PARTITIONS[0]]
    )
    world.target.execute("delete from bridge.applied where stream = %s", [PARTITIONS[0]])
    census = world.json("prove", code=1)["outboxes"][0]
    others = [
        event
        for (event,) in world.source.execute("select id::text from outbox.event")
        if row(world, event) != PARTITIONS[0]
    ]
    assert census["applied"] == len(others)


@pytest.mark.slow
def test_prune_keeps_what_one_partition_has_not_applied(world: World, bridge: BridgeProcess) -> None:
    assert bridge.terminate() == 0
    world.source.execute(
        "update outbox.event set occurred_at = now() - interval '90 days', idempotency_key = null"
    )
    world.source.execute("update outbox.stream set floor = '3:3:' where stream = %s", [PARTITIONS[2]])
    assert "0 events" in world.command("prune", "--dry-run")
    world.bridge().start().wait_ready()
    until(
        lambda: (
            world.source.value("select min(pg_snapshot_xmin(floor)::text::bigint) from outbox.stream") > 3
        ),
        "the floor is said again",
    )
    until(lambda: "0 events would be deleted" not in world.command("prune", "--dry-run"), "it may be pruned")


def test_dead_letters_are_the_targets_and_retried_once(world: World, bridge: BridgeProcess) -> None:
    world.source.execute(
        "insert into outbox.event (type, payload, key) select 'usage.limit_reached', '{\"customer_id\": 5}', n::text"
        " from generate_series(1, 6) n"
    )
    until(lambda: len(world.dead_letters()) == 6, "dead letters of all partitions")
    assert world.target.value("select count(distinct stream) from bridge.dead_letter") == 1
    listed = world.json("dead", "list")
    assert sum(group["letters"] for group in listed) == 6
    assert world.command("dead", "retry", "--pipeline", "usage-limit-hits", code=1)
    assert "6" in world.command("dead", "discard", "--pipeline", "usage-limit-hits")
    assert bridge.terminate() == 0


@pytest.mark.slow
def test_a_stream_over_a_log_is_ended_with_all_its_partitions(world: World, bridge: BridgeProcess) -> None:
    assert bridge.terminate() == 0
    without_log(world)
    world.configure(lambda document: document["source"].update(slot="another"))
    shown = world.command("decommission", PARTITIONS[0])
    assert f"stream {STREAM} is registered" in shown
    assert world.source.value("select count(*) from outbox.stream") == 3
    world.configure(lambda document: document["source"].update(slot="outbox_bridge"))
    world.configure(
        lambda document: document["connections"].update(other=document["connections"].pop("warehouse"))
    )
    text = world.text.replace("connection: warehouse", "connection: other")
    world.text = text
    said = world.command("decommission", STREAM, "--yes")
    assert f"stream {STREAM} has ended" in said
    assert "relay outbox_bridge_bus has ended" in said
    assert "nats stream rm outbox_bridge_bus" in said
    for table in ("outbox.stream", "outbox.relay", "pg_replication_slots"):
        assert world.source.value(f"select count(*) from {table} where true") in (
            0,
            _foreign_slots(world, table),
        )
    assert world.target.value("select count(*) from bridge.checkpoint") == 0


def _foreign_slots(world: World, table: str) -> int:
    """Slots of other databases of this server."""
    if table != "pg_replication_slots":
        return 0
    return int(
        world.source.value("select count(*) from pg_replication_slots where database <> current_database()")
    )


@pytest.mark.slow
def test_a_stream_over_a_log_goes_on_under_another_name(world: World, bridge: BridgeProcess) -> None:
    assert bridge.terminate() == 0
    with world.producer("two") as producer:
        producer.transaction(4)
    world.text = world.text.replace("warehouse:", "lake:").replace(
        "connection: warehouse", "connection: lake"
    )
    renamed = world.bridge().start()
    halt = json.loads(renamed.wait_log('"reason":"stream_renamed"'))
    fix = halt["fix"].partition(": ")[2].partition("   ")[0]
    assert renamed.terminate() == 0
    assert "catches up from the table" in world.typed(fix)
    world.bridge().start().wait_ready()
    until(
        lambda: world.target.value("select count(*) from bridge.checkpoint where stream like '%lake.%'") == 3,
        "x",
    )
    world.law()


@pytest.mark.slow
def test_a_lost_ledger_is_begun_again_for_every_partition(world: World, bridge: BridgeProcess) -> None:
    assert bridge.terminate() == 0
    world.target.execute("delete from bridge.checkpoint")
    world.target.execute("delete from bridge.applied")
    halted = world.bridge().start()
    halted.wait_log('"reason":"ledger_missing"')
    assert halted.terminate() == 0
    world.command("recover", "--restart-stream")
    assert world.source.value("select count(*) from outbox.stream") == 0
    world.target.execute("truncate events.usage_limits")
    with pytest.raises(psycopg.errors.UndefinedTable):
        world.target.execute("select from no_such_table")
    world.bridge().start().wait_ready()
    until(lambda: world.applied() >= 30, "everything once more")


@pytest.mark.slow
def test_only_one_worker_sends_the_messages_of_a_target(world: World, node: NatsNode) -> None:
    """The dispatcher is the target's, wherever its partitions run."""
    over_log(world, node)
    relay = part(world, "relay")
    workers = [part(world, "worker"), part(world, "worker")]
    with world.producer() as producer:
        producer.transaction(30)
        for process in (relay, *workers):
            process.wait_ready()
        world.caught_up()
    told = world.json("scale", "status")
    [target] = told["targets"]
    assert [one["row"] for one in target["partitions"]] == PARTITIONS
    holders = {one["worker"]["pid"] for one in target["partitions"]}
    assert len(holders) == 2
    assert len(told["workers"]) == 2
    assert told["relays"][0]["slot"]["active"] is True
    text = world.command("scale", "status")
    assert "relay outbox_bridge_bus" in text
    assert f"target warehouse, stream {STREAM}: 3 partitions" in text
    workers[0].kill()
    workers[1].kill()
    until(lambda: not world.json("scale", "status", code=1)["workers"], "the claims ended")
    assert "nobody applies" in world.command("scale", "status", code=1)
    part(world, "worker").wait_ready()
    world.law()


def test_scale_plan_says_what_the_file_would_run(world: World, node: NatsNode) -> None:
    over_log(world, node)
    told = world.command("scale", "plan")
    assert "relay outbox_bridge_bus reads source" in told
    assert f"{PARTITIONS[0]} ... {PARTITIONS[2]}" in told
    assert "64 MiB" in told
    plan = world.json("scale", "plan")
    assert plan["relays"][0]["relay"] == "outbox_bridge_bus"
    assert [one["stream"] for one in plan["targets"]] == [STREAM]
    world.bridge().start().wait_ready()
    until(lambda: streaming(world), "all partitions stream")
    for side, database in (("source", world.source), ("target", world.target)):
        sessions = database.value(
            "select count(*) from pg_stat_activity where datname = current_database() and usename = 'outbox_bridge'"
        )
        assert sessions <= plan["connections"][side], side
    without_log(world)
    assert "no log" in world.command("scale", "plan")


def test_the_page_shows_relay_and_partitions(world: World, bridge: BridgeProcess) -> None:
    until(lambda: world.json("status")["streams"][0]["relay"]["log_limit_bytes"], "the log was asked")
    code, page = bridge.get("/")
    assert code == 200
    assert "3 partitions here, to warehouse" in page
    assert '<th scope="row">2of3</th>' in page
    assert "events put into the log" in page
    assert "behind the relay" in page
    lags = [f'outbox_bridge_partition_lag_bytes{{stream="{name}"}}' for name in PARTITIONS]
    until(lambda: all(lag in bridge.get("/metrics")[1] for lag in lags), "each partition has confirmed")
    metrics = bridge.get("/metrics")[1]
    assert 'outbox_bridge_log_rows_total{stream="outbox_bridge_bus"}' in metrics
    for row_name in PARTITIONS:
        assert f'outbox_bridge_slot_retained_wal_bytes{{stream="{row_name}"}}' not in metrics


@pytest.mark.slow
def test_an_outbox_is_adopted_partition_by_partition(world: World, bridge: BridgeProcess) -> None:
    assert bridge.terminate() == 0
    with world.producer("late") as producer:
        producer.transaction(6)
    before = {
        name: [
            event
            for (event,) in world.source.execute("select id::text from outbox.event")
            if row(world, event) == name
        ]
        for name in PARTITIONS
    }
    told = world.command("recover", "--adopt-outbox")
    for name in PARTITIONS:
        assert f"stream {name}:" in told
        listed = world.target.value(
            "select coalesce(sum(upper(r) - lower(r)), 0) from bridge.applied a, unnest(a.seqs) as r where stream = %s",
            [name],
        )
        assert listed <= len(before[name])  # none of another partition's
    world.bridge().start().wait_ready()
    world.caught_up()
    world.law()


def test_a_partition_that_is_misspelt_is_told(world: World, node: NatsNode) -> None:
    over_log(world, node)
    ran = world.run("worker", "--stream", f"{STREAM}.1of4")
    assert ran.returncode == 2
    assert f"did you mean {STREAM}.1of3?" in ran.stderr
