"""The source is another one than it was: restored, promoted, replaced. What was applied must still be its past."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.demo.servers import Workspace
from tests.support.producers import Traffic
from tests.support.servers import Database, EmbeddedServer
from tests.support.world import World, make_database, until

pytestmark = pytest.mark.data_directory


def _confirmed(world: World) -> None:
    """Wait until the slot is confirmed behind everything that was applied."""
    query = "select confirmed_flush_lsn >= %s::pg_lsn from pg_replication_slots where slot_name = %s"
    until(
        lambda: world.source.value(query, [world.checkpoint("applied_lsn"), world.slot]),
        "the slot is confirmed",
    )


@pytest.mark.fault(36, "36b")
def test_a_source_restored_from_an_older_copy_halts_whatever_its_wal_says(
    world: World, source_cluster: EmbeddedServer
) -> None:
    bridge = world.bridge().start().wait_ready()
    with world.producer() as producer:
        producer.transaction(5)
        world.caught_up()
    bridge.terminate()
    source_cluster.stop()
    copy = source_cluster.clone_at(source_cluster.directory / "copy")
    source_cluster.start()
    bridge.start().wait_ready()
    with world.producer("two") as producer:
        producer.burst(300)
        world.caught_up()
    _confirmed(world)
    before = world.applied()
    source_cluster.crash()
    source_cluster.restore(copy)
    source_cluster.start()
    body = bridge.wait_readyz(lambda _, body: "source_behind" in body or "history_diverged" in body)
    assert "bridge recover" in body
    bridge.terminate()
    # Its WAL goes on, past the position that the target has applied: the same LSNs hold other transactions.
    with world.producer("three") as producer:
        end = world.checkpoint("applied_lsn")
        while not world.source.value("select pg_current_wal_lsn() > %s::pg_lsn", [end]):
            producer.burst(200)
    bridge.start().wait_halted("history_diverged")
    assert world.applied() == before


@pytest.mark.fault(37)
def test_after_a_promotion_the_missing_events_come_from_the_table(
    world: World, source_cluster: EmbeddedServer, tmp_path: Path
) -> None:
    bridge = world.bridge().start().wait_ready()
    standby = source_cluster.standby()
    try:
        standby.start()
        with world.producer() as producer:
            producer.burst(100)
            world.caught_up()
            bridge.kill()
            producer.burst(50)  # applied by nobody yet
        end = world.source.value("select pg_current_wal_lsn()::text")
        until(
            lambda: standby.execute("select pg_last_wal_replay_lsn() >= %s::pg_lsn", [end]) == [(True,)],
            "the standby has everything",
        )
        source_cluster.crash()
        # While it is a standby still, the bridge waits.
        promoted = Database(standby, world.source.name)
        world.source = promoted
        bridge = world.bridge().start()
        bridge.wait_readyz(lambda status, body: status == 503 and "standby" in body)
        standby.promote()
        with world.producer("later") as producer:
            producer.transaction(3)
        bridge.wait_ready(60)
        verdict = world.law()
        assert verdict.expected > 150
        assert int(world.checkpoint("timeline")) == 2
    finally:
        bridge.close()
        standby.discard()


@pytest.mark.fault(38)
@pytest.mark.parametrize(
    "synchronized",
    [
        pytest.param(True, id="the standby has the slot"),
        pytest.param(False, id="a copy without it", marks=pytest.mark.slow),
    ],
)
def test_a_promotion_under_load_keeps_a_slot_that_the_standby_synchronizes(
    world: World, source_cluster: EmbeddedServer, synchronized: bool
) -> None:
    """Producers write until the primary dies, and go on at once on the promoted standby. Where it has the slot, the
    stream goes on from it; where nobody synchronized it, the table fills the gap. The primary sends nothing to the
    bridge that the standby has not got, so that nothing is applied of what the promotion loses."""
    source_cluster.execute("select pg_create_physical_replication_slot('standby')")
    source_cluster.configure(synchronized_standby_slots="standby")
    world.configure(lambda c: c["source"].update(failover=True))
    standby = source_cluster.standby(
        primary_slot_name="standby",
        sync_replication_slots="on" if synchronized else "off",
    )
    try:
        standby.start()
        bridge = world.bridge().start()
        bridge.wait_log("streaming")
        slot = str(world.slot)
        with Traffic(world.source.dsn, producers=2, burst=100, pause=0.01):
            world.caught_up()
            if synchronized:
                until(lambda: standby.execute(_SYNCHRONIZED, [slot]) == [(True,)], "the slot is there", 60)
            floor = world.checkpoint("floor_lsn")
            until(lambda: world.checkpoint("floor_lsn") != floor, "events flow")
            source_cluster.crash()
        bridge.kill()
        standby.promote()
        standby.configure(synchronized_standby_slots="")
        world.source = Database(standby, world.source.name)
        with Traffic(world.source.dsn, producers=2, burst=100, pause=0.01, seed=2):
            bridge = world.bridge().start()
            bridge.wait_ready(60)
            world.caught_up()
        verdict = world.law(deadline=60)
        assert verdict.expected > 100
        assert verdict.in_dead_letters == 0
        assert int(world.checkpoint("timeline")) == 2
        assert (world.slot == slot) == synchronized
        assert any("creating a slot" in line for line in bridge.lines) != synchronized
    finally:
        bridge.close()
        standby.discard()


_SYNCHRONIZED = "select synced and not temporary from pg_replication_slots where slot_name = %s"


@pytest.mark.fault(39)
def test_another_cluster_is_not_taken_for_the_source(world: World) -> None:
    """Whatever else does not fit either: it has neither the witness nor, later, a publication."""
    bridge = world.bridge().start().wait_ready()
    with world.producer() as producer:
        producer.transaction(5)
        world.caught_up()
    bridge.terminate()
    before = world.applied()
    with Workspace() as elsewhere:  # an initdb of its own: the rig's other clusters are copies of one
        cluster = EmbeddedServer(elsewhere, "another").init().start()
        other = make_database(cluster, "another", "source")
        with other.connect() as connection:
            for _ in range(3):
                stranger = world.bridge(source=other.bridge_dsn).start()
                assert "belongs to another source" in stranger.wait_halted("stream_name_taken")
                stranger.close()
                connection.execute("drop publication if exists outbox_bridge")
    assert world.applied() == before
    bridge.start().wait_ready()
    world.law()


@pytest.mark.fault(39)
def test_a_copy_of_the_source_from_before_the_bridge_has_another_history(
    world: World, source_cluster: EmbeddedServer
) -> None:
    """A copy has the system identifier of its original: here the witness and the registry tell."""
    source_cluster.stop()
    copy = source_cluster.clone_at(source_cluster.directory / "copy")
    source_cluster.start()
    bridge = world.bridge().start().wait_ready()
    with world.producer() as producer:
        producer.transaction(5)
        world.caught_up()
    bridge.terminate()
    before = world.applied()
    other = source_cluster.clone(copy, "other").start()
    try:
        stranger = world.bridge(source=other.dsn(world.source.name, user="outbox_bridge")).start()
        stranger.wait_readyz(
            lambda status, body: status == 503 and ("source_behind" in body or "history_diverged" in body)
        )
        assert "other_system" not in stranger.get("/readyz")[1]
        stranger.close()
        assert world.applied() == before
    finally:
        other.discard()
    bridge.start().wait_ready()
    world.law()
