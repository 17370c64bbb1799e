"""The servers around a log: a source restarted, promoted, restored; a slot or a publication gone; a target that is away
for long; a transaction larger than everything."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import make_conninfo

from tests.support.nats import NatsNode
from tests.support.producers import Traffic
from tests.support.proxy import FaultProxy
from tests.support.scaled import Scaled, prefixes
from tests.support.servers import Database, EmbeddedServer
from tests.support.truth import Unit, conservation
from tests.support.world import World, make_database, until

pytestmark = pytest.mark.timeout(300)

_REMAKE = """
    create publication outbox_bridge for table outbox.event
    with (publish = 'insert', publish_via_partition_root = true)"""


@pytest.fixture
def scaled(world: World, tmp_path: Path) -> Iterator[Scaled]:
    with NatsNode(tmp_path) as node:
        made = Scaled(world, node.url)
        yield made
        made.close()


def flows(scaled: Scaled, events: int = 200) -> None:
    before = scaled.world.applied()
    until(lambda: scaled.world.applied() > before + events, "events flow", 90)


@pytest.mark.fault(111)
@pytest.mark.slow
def test_a_source_that_crashes_and_starts_again_has_another_life(
    world: World, source_cluster: EmbeddedServer, scaled: Scaled
) -> None:
    scaled.relay()
    scaled.worker()
    with Traffic(world.source.dsn, burst=2000):
        scaled.streaming()
        for how in ("crash", "fast", "crash"):
            if how == "crash":
                source_cluster.crash()
                source_cluster.start()
            else:
                source_cluster.restart()
            flows(scaled)
    scaled.law()


@pytest.mark.fault(111)
@pytest.mark.data_directory
def test_after_a_promotion_the_partitions_go_on(
    world: World, source_cluster: EmbeddedServer, scaled: Scaled
) -> None:
    parts = [scaled.relay(), scaled.worker()]
    standby = source_cluster.standby()
    try:
        standby.start()
        with world.producer() as producer:
            producer.burst(2000)
            scaled.streaming()
            scaled.settled()
            parts[1].kill()
            for _ in range(30):
                producer.transaction(3)
            time.sleep(0.5)  # these are in the log
            parts[0].kill()
            producer.burst(500)
        end = world.source.value("select pg_current_wal_lsn()::text")
        until(
            lambda: standby.execute("select pg_last_wal_replay_lsn() >= %s::pg_lsn", [end]) == [(True,)],
            "the standby has everything",
        )
        source_cluster.crash()
        world.source = Database(standby, world.source.name)
        standby.promote()
        parts += [scaled.relay(), scaled.worker()]
        with Traffic(world.source.dsn, burst=500):
            flows(scaled)
        assert scaled.law().expected > 2590
    finally:
        for part in parts:
            part.close()
        standby.discard()


@pytest.mark.fault(111)
@pytest.mark.slow
@pytest.mark.data_directory
def test_a_source_restored_from_an_older_copy_halts_every_partition(
    world: World, source_cluster: EmbeddedServer, scaled: Scaled
) -> None:
    relay, worker = scaled.relay(), scaled.worker()
    with world.producer() as producer:
        scaled.streaming()
        producer.transaction(50)
        scaled.settled()
    for part in (worker, relay):
        part.terminate()
    source_cluster.stop()
    copy = source_cluster.clone_at(source_cluster.directory / "copy")
    source_cluster.start()
    relay.start()
    worker.start()
    with world.producer("two") as producer:
        scaled.streaming()
        for _ in range(100):
            producer.transaction(3)
        producer.burst(300)
        scaled.settled()
    before = world.applied()
    source_cluster.crash()
    source_cluster.restore(copy)
    source_cluster.start()
    worker.wait_readyz(lambda _, body: "source_behind" in body or "history_diverged" in body, 60)
    with world.producer("three") as producer:  # the same positions hold other transactions
        end = world.target.value("select max(applied_lsn)::text from bridge.checkpoint")
        while not world.source.value("select pg_current_wal_lsn() > %s::pg_lsn", [end]):
            producer.burst(200)
    worker.wait_readyz(lambda _, body: "history_diverged" in body, 60)
    assert world.applied() == before


@pytest.mark.fault(112)
@pytest.mark.slow
@pytest.mark.parametrize("gone", ["slot", "publication"])
def test_a_slot_or_publication_that_is_dropped_under_load(world: World, scaled: Scaled, gone: str) -> None:
    scaled.relay()
    scaled.worker()
    with Traffic(world.source.dsn, burst=2000):
        scaled.streaming()
        for _ in range(3):
            if gone == "slot":
                scaled.drop_slot()
            else:  # in one transaction: no row is withheld
                world.source.execute(f"drop publication outbox_bridge; {_REMAKE}")
            flows(scaled)
    scaled.law()


@pytest.mark.fault(112)
@pytest.mark.slow
def test_a_publication_away_for_a_while_withholds_nothing_for_good(world: World, scaled: Scaled) -> None:
    scaled.relay()
    scaled.worker()
    with world.producer() as producer:
        scaled.streaming()
        producer.transaction(20)
        scaled.settled()
        world.source.execute("drop publication outbox_bridge")
        for _ in range(20):
            producer.transaction(3)
        world.source.execute(_REMAKE)
        for _ in range(20):
            producer.transaction(3)
        scaled.settled()
    world.law(Unit(ordered=False))  # what was withheld comes later than its neighbours (docs/guarantees.md)


@pytest.mark.fault(111)
@pytest.mark.slow
def test_a_source_that_is_paused_goes_on(
    world: World, scaled: Scaled, proxy_to: Callable[[str], FaultProxy]
) -> None:
    link = proxy_to(world.source.bridge_dsn)
    scaled.relay(source=link.dsn)
    scaled.worker(source=link.dsn)
    with Traffic(world.source.dsn, burst=2000):
        scaled.streaming()
        for fault in (link.blackhole, link.refuse, link.reset_all):
            fault()
            time.sleep(3)
            link.clear()
            flows(scaled)
    scaled.law()


@pytest.mark.fault(114)
@pytest.mark.slow
def test_a_huge_transaction_in_parts_while_relay_and_worker_are_killed(world: World, scaled: Scaled) -> None:
    relay, worker = scaled.relay(), scaled.worker()
    scaled.streaming()
    with world.producer() as producer:
        producer.burst(100_000, padding=20)
        for part in (relay, worker, relay, worker, worker, relay):
            time.sleep(0.7)
            part.kill()
            part.start()
        producer.transaction(10)
        scaled.law(240)


@pytest.mark.fault(113)
@pytest.mark.slow
def test_one_target_down_for_long_is_given_up_and_comes_back(world: World, scaled: Scaled) -> None:
    """The others go on, the slot does not hold the WAL back for it, and it catches up from the table."""
    server = world.target.server
    other = make_database(server, f"{world.target.name}_other", "target")
    gate = FaultProxy(other.bridge_dsn)

    def two(document: dict[str, Any]) -> None:
        document["connections"]["second"] = {"type": "postgres", "dsn": make_conninfo(gate.dsn)}
        [pipeline] = document["pipelines"].values()
        pipeline["destinations"]["copy"] = {**pipeline["destinations"]["events"], "connection": "second"}
        document["source"]["max_retained_wal"] = "32MiB"

    world.configure(two)
    try:
        scaled.relay()
        scaled.worker()
        begun = "select count(*) from outbox.stream where confirmed is not null"
        until(lambda: world.source.value(begun) >= 2 * scaled.partitions, "all partitions stream", 60)
        gate.refuse()
        gate.reset_all()
        retained = (
            "select pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) from pg_replication_slots"
            " where slot_name = %s"
        )
        with world.producer() as producer:
            for _ in range(40):
                producer.burst(4000, padding=400)
        before = world.source.value("select pg_current_wal_lsn()::text")
        until(
            lambda: world.source.value(
                "select confirmed_flush_lsn > %s::pg_lsn from pg_replication_slots where slot_name = %s",
                [before, scaled.slot],
            ),
            "the slot goes on without it",
            120,
        )
        scaled.settled(200)
        until(
            lambda: any(size < 64 << 20 for (size,) in world.source.execute(retained, [scaled.slot])),
            "the WAL is not held back",
            60,
        )
        gate.clear()
        wanted = world.source.value("select count(*) from rig.truth")
        until(lambda: other.value("select count(*) from rig.effects") >= wanted, "it has caught up", 200)
        with Traffic(world.source.dsn, burst=500):
            flows(scaled)
        scaled.law()
        wanted = world.source.value("select count(*) from rig.truth")
        until(lambda: other.value("select count(*) from rig.effects") >= wanted, "it has the rest", 100)
        verdict = conservation(world.source.dsn, other.dsn, Unit(destination="copy"))
        assert verdict.holds, str(verdict)
        assert prefixes(world.source, other, scaled.partitions) == []
    finally:
        world.close()
        gate.close()
