"""A target that is down while WAL flows: the slot is given up before the source's disk fills, and nothing is lost."""

from __future__ import annotations

import pytest

from tests.support.servers import RestartableServer
from tests.support.world import World, until

MIB = 1 << 20


def _retained(world: World) -> int:
    return int(
        world.source.value(
            "select coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)), 0)::bigint"
            " from pg_replication_slots where database = current_database()"
        )
    )


def _flow(world: World, mebibytes: int) -> None:
    """WAL of somebody else's: what fills a disk is seldom the outbox."""
    world.source.execute("create table if not exists public.other (filler text)")
    for _ in range(mebibytes):
        world.source.execute(
            "insert into public.other select repeat(md5(n::text), 32) from generate_series(1, 1000) as n"
        )


@pytest.mark.fault(33, 49)
def test_a_slot_past_its_limit_is_given_up_and_nothing_is_lost(
    target_cluster: RestartableServer, world: World
) -> None:
    world.configure(lambda c: c["source"].update(max_retained_wal="24MiB"))
    bridge = world.bridge().start()
    bridge.wait_log("streaming")
    with world.producer() as producer:
        for _ in range(20):
            producer.transaction(2)
        world.caught_up()
        target_cluster.stop("immediate")
        for _ in range(20):
            producer.transaction(2)
        before = world.source.value("select pg_current_wal_lsn()::text")
        _flow(world, 40)
        flowed = world.source.value("select pg_wal_lsn_diff(pg_current_wal_lsn(), %s::pg_lsn)", [before])
        assert flowed > 24 * MIB, "enough to pass the limit"  # by now the slot may be gone already
        bridge.wait_log("wal brake: slot dropped", deadline=60)
        until(lambda: _retained(world) == 0, "no slot holds WAL any more")
        producer.burst(500)
        target_cluster.start()
        producer.transaction(1)
        world.law(deadline=60)
    assert bridge.running


@pytest.mark.fault(33)
def test_a_slot_that_the_server_takes_away_first_loses_nothing_either(
    source_cluster: RestartableServer, target_cluster: RestartableServer, world: World
) -> None:
    world.source.execute("alter system set max_slot_wal_keep_size = '32MB'")
    world.source.execute("alter system set max_wal_size = '64MB'")
    world.source.execute("select pg_reload_conf()")
    bridge = world.bridge().start()
    bridge.wait_log("streaming")
    with world.producer() as producer:
        producer.transaction(5)
        world.caught_up()
        target_cluster.stop("immediate")
        producer.burst(300)
        until(
            lambda: not world.source.value("select bool_or(active) from pg_replication_slots"),
            "nobody streams",
        )
        for _ in range(4):
            _flow(world, 40)
            world.source.execute("select pg_switch_wal()")
            world.source.execute("checkpoint")
        assert world.source.value("select wal_status from pg_replication_slots") == "lost"
        target_cluster.start()
        producer.transaction(1)
        world.law(deadline=60)
