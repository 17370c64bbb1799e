"""`bridge recover`: each choice, at the halt that it is for, ends in the law again, or in exactly the loss that it
names. What a person gets wrong with it changes nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from tests.support.bridge_process import BridgeProcess
from tests.support.fixes import line_in
from tests.support.servers import Database, EmbeddedServer, create_database, drop_database
from tests.support.truth import conservation
from tests.support.world import STREAM, World, until


def recover(like: BridgeProcess, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`bridge recover` with this bridge's configuration."""
    return like.command("recover", *arguments, **environment)


def decide(world: World, said: str, way: str) -> None:
    """Type what was printed: `bridge recover`, with this way of it."""
    assert STREAM in world.typed(line_in(said, f"bridge recover {way}"))


def state(world: World) -> list[tuple[object, ...]]:
    """Both servers' rows of the stream."""
    return [
        *world.source.execute("select * from outbox.stream"),
        *world.target.execute("select * from bridge.checkpoint"),
        *world.target.execute("select * from bridge.applied"),
    ]


@contextmanager
def copied(database: Database) -> Iterator[Database]:
    """A copy of a database beside it, on the same server."""
    copy = create_database(database.server, f"{database.name}_copy", database.name)
    try:
        yield copy
    finally:
        drop_database(copy)


@pytest.mark.data_directory
@pytest.mark.fault(36, "36b")
def test_an_older_copy_of_the_source_is_accepted_and_what_follows_comes_once(
    world: World, source_cluster: EmbeddedServer
) -> None:
    world.applied_some()
    source_cluster.stop()
    copy = source_cluster.clone_at(source_cluster.directory / "copy")
    source_cluster.start()
    bridge = world.applied_some(20)
    forgotten = world.applied()
    source_cluster.stop()
    source_cluster.restore(copy)
    source_cluster.start()
    forgotten -= world.source.value("select count(*) from outbox.event")
    assert forgotten > 0
    said = bridge.start().wait_readyz(lambda _, body: "source_behind" in body or "history_diverged" in body)
    bridge.terminate()
    decide(world, said, "--accept-source")
    with world.producer("after") as producer:
        producer.transaction(30)  # while no bridge runs, after the decision; their xids were given out before
    bridge.start()
    world.caught_up()
    verdict = conservation(world.source.dsn, world.target.dsn)
    assert len(verdict.unexpected) == forgotten  # of a history that is no more: named, not undone
    verdict.unexpected.clear()
    assert verdict.holds, verdict
    world.check_confirmed()


def test_accepting_the_source_from_a_time_brings_what_occurred_since(world: World) -> None:
    bridge = world.applied_some()
    world.source.execute("update outbox.stream set reached = '0/0'")  # as an older copy has it
    since = world.source.value(
        "select to_char(clock_timestamp() at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
    )
    with world.producer("halted") as producer:
        producer.transaction(7)
    bridge.start().wait_halted("history_diverged")
    bridge.terminate()
    done = recover(bridge, "--accept-source", "--since", since)
    assert (done.returncode, STREAM in done.stdout) == (0, True), done.stderr
    bridge.start().wait_ready()
    world.law()


def test_a_target_that_was_moved_is_accepted_and_caught_up(world: World) -> None:
    world.applied_some()
    with copied(world.target) as copy:
        with world.producer("meanwhile") as producer:
            producer.transaction(4)
        world.target = copy
        moved = world.bridge().start()
        said = moved.wait_halted("other_target")
        moved.terminate()
        decide(world, said, "--accept-target")
        moved.start().wait_ready()
        world.law()
        world.close()


@pytest.mark.slow
def test_a_gap_that_is_accepted_loses_what_was_pruned_and_nothing_else(world: World) -> None:
    world.applied_some()
    with copied(world.target) as backup:
        bridge = world.bridge().start().wait_ready()
        with world.producer("lost") as producer:
            producer.transaction(6)
            world.caught_up()
        doomed = [row[0] for row in world.source.execute("select id from outbox.event")]
        until(lambda: _pruned(world, bridge, doomed), "events are pruned that the backup has not")
        bridge.terminate()
        world.target = backup  # under another name on this server, and yet the one that the source knows
        world.source.execute("update outbox.stream set target_database = %s", [backup.name])
        kept = {row[0] for row in world.source.execute("select id from outbox.event")}
        restored = world.bridge().start()
        said = restored.wait_halted("outbox_pruned")
        restored.terminate()
        decide(world, said, "--accept-gap")
        restored.start().wait_ready()
        with world.producer("after") as producer:
            producer.transaction(5)
            world.caught_up()
        verdict = conservation(world.source.dsn, world.target.dsn)
        assert verdict.lost
        assert not kept & set(verdict.lost)
        verdict.lost.clear()
        assert verdict.holds, verdict
        world.close()


def _pruned(world: World, bridge: BridgeProcess, events: list[object]) -> bool:
    """Let the floors rise by one event more, delete all that they allow: are these gone?"""
    world.caught_up()
    world.configure(lambda document: document["source"].update(retention="1ms"))
    assert bridge.command("prune").returncode == 0
    world.configure(lambda document: document["source"].update(retention="7d"))
    return not world.source.execute("select 1 from outbox.event where id = any(%s)", [events])


@pytest.mark.fault(28)
def test_a_stream_whose_ledger_is_lost_starts_anew_with_a_slot_of_its_own(world: World) -> None:
    bridge = world.applied_some()
    for table in ("events.usage_limits", "rig.effects", "bridge.checkpoint", "bridge.applied"):
        world.target.execute(f"truncate {table}")  # the target was made anew, without a backup
    old = world.slot
    said = bridge.start().wait_halted("ledger_missing")
    bridge.terminate()
    decide(world, said, "--restart-stream")
    assert world.source.execute("select 1 from pg_replication_slots where slot_name = %s", [old]) == []
    bridge.start().wait_ready()
    world.law()


def test_beside_a_bridge_that_works_nothing_is_changed(world: World) -> None:
    bridge = world.bridge().start()
    bridge.wait_log("streaming")
    epoch = world.checkpoint("epoch")
    for choice in ("--accept-source", "--accept-target", "--accept-gap", "--restart-stream"):
        refused = recover(bridge, choice)
        assert refused.returncode == 1
        assert "a bridge is working on stream" in refused.stderr
        assert "fix: stop every bridge" in refused.stderr
    assert world.checkpoint("epoch") == epoch
    with world.producer() as producer:
        producer.transaction(3)
    world.law()


@pytest.mark.slow
def test_what_is_asked_for_by_mistake_changes_nothing_and_says_why(world: World) -> None:
    bridge = world.applied_some()
    before = state(world)
    for arguments, code, said in (
        ((), 2, "give exactly one decision"),
        (("--accept-source", "--accept-gap"), 2, "give exactly one decision"),
        (("--accept-source", "--since", "yesterday"), 2, "neither a time"),
        (("--accept-source", "--stream", "other"), 2, f"--stream with one of: {STREAM}"),
        (("--accept-gap",), 1, "nothing to do"),
        (("--restart-stream",), 1, "the ledger of stream"),
    ):
        done = recover(bridge, *arguments)
        assert done.returncode == code, done.stderr
        assert said in " ".join(done.stderr.split()), done.stderr
        assert "Traceback" not in done.stderr
    for unreachable in ("SOURCE_DSN", "WAREHOUSE_DSN"):
        done = recover(bridge, "--accept-source", **{unreachable: "host=127.0.0.1 port=1"})
        assert done.returncode == 3
        assert "cannot connect to the " in done.stderr
    assert state(world) == before


def test_a_server_that_refuses_half_way_leaves_the_stream_as_it_was(world: World) -> None:
    bridge = world.applied_some()
    before = state(world)
    with psycopg.connect(world.source.dsn, autocommit=True) as owner:
        owner.execute("revoke update on outbox.stream from outbox_bridge")
        done = recover(bridge, "--accept-source")
        owner.execute("grant update on outbox.stream to outbox_bridge")
    assert done.returncode == 1
    assert "42501" in done.stderr
    assert "fix: bridge doctor" in done.stderr
    assert state(world) == before
    bridge.start().wait_ready()
    world.law()
