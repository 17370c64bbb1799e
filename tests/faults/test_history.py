"""Servers that lost a part of their past, where the ledger's own memory decides: the floor, `applied`, the registry.
Each ends in the law, where recovery is promised, or in the halt that has its name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from bridge.errors import Fenced, Retry
from bridge.postgres.outbox import Outbox
from bridge.postgres.source import Source
from bridge.protocol.events import NOTHING, Snapshot
from bridge.protocol.facts import Registration
from tests.support.servers import Database, EmbeddedServer
from tests.support.truth import conservation
from tests.support.world import STREAM, World, until

data_directory = pytest.mark.data_directory


@pytest.fixture
def standby(source_cluster: EmbeddedServer, source: Database) -> Iterator[EmbeddedServer]:
    """A streaming standby of the source, without slots; promotions that lose commits can be recovered from."""
    source_cluster.configure(max_prepared_transactions=0)
    source_cluster.restart()
    made = source_cluster.standby(max_prepared_transactions=0).start()
    yield made
    made.discard()


def replayed(world: World, standby: EmbeddedServer) -> None:
    end = world.source.value("select pg_current_wal_flush_lsn()::text")
    until(
        lambda: standby.execute("select pg_last_wal_replay_lsn() >= %s::pg_lsn", [end]) == [(True,)],
        "the standby has it all",
    )


def take_over(world: World, standby: EmbeddedServer) -> None:
    """The standby is the source from now on."""
    standby.promote()
    world.source = Database(standby, world.source.name)


def apply_and_die(world: World) -> list[str]:
    """Events that are applied and confirmed to nobody: the bridge dies with the commit, no floor has risen."""
    with world.producer("tail") as producer:
        lost = [str(event) for _ in range(4) for event in producer.transaction(2)]
    world.bridge(failpoints="settle.durable=kill@1").start().wait()
    until(lambda: world.target.value(_HAVE, [lost]) == len(lost), "the tail is applied")
    return lost


_HAVE = "select count(*) from rig.effects where row ->> 'event_id' = any(%s)"


@data_directory
@pytest.mark.fault(37)
def test_a_promotion_that_lost_what_was_just_applied_is_recovered_from(
    world: World, source_cluster: EmbeddedServer, standby: EmbeddedServer
) -> None:
    world.applied_some()
    replayed(world, standby)
    standby.stop()
    lost = apply_and_die(world)
    source_cluster.crash()
    take_over(world, standby.start())
    with world.producer("after") as producer:  # these are given the xids of the lost ones
        for _ in range(12):
            producer.transaction(2)
    bridge = world.bridge().start()
    bridge.wait_log("streaming")
    world.caught_up()
    verdict = conservation(world.source.dsn, world.target.dsn)
    assert sorted(map(str, verdict.unexpected)) == sorted(lost)  # what the source lost stays in the target
    assert replace(verdict, unexpected=[]).holds, verdict
    world.check_confirmed()


@data_directory
@pytest.mark.fault(37)
def test_a_promotion_from_before_the_floor_halts(
    world: World, source_cluster: EmbeddedServer, standby: EmbeddedServer
) -> None:
    world.applied_some()
    replayed(world, standby)
    standby.stop()
    floor = world.checkpoint("floor_lsn")
    bridge = world.bridge().start()
    with world.producer("tail") as producer:
        producer.transaction(3)
        world.caught_up()
    until(lambda: world.checkpoint("floor_lsn") != floor, "the floor has risen")
    before = world.applied()
    source_cluster.crash()
    take_over(world, standby.start())
    bridge.terminate()
    with world.producer("after") as producer:
        producer.transaction(3)
    assert "bridge recover" in world.bridge().start().wait_halted("promotion_diverged")
    assert world.applied() == before


def write_past(world: World, lsn: str) -> None:
    """WAL of other tables, until the source's is longer than this."""
    with world.source.connect() as somebody:
        somebody.execute("create table public.noise (n int)")
        while somebody.execute("select pg_current_wal_lsn() <= %s::pg_lsn + 65536", [lsn]).fetchone() == (
            True,
        ):
            somebody.execute("insert into public.noise select generate_series(1, 1000)")
            somebody.execute("select pg_switch_wal()")
        somebody.execute("drop table public.noise")


@data_directory
@pytest.mark.fault("36b")
def test_a_source_restored_between_the_last_event_and_the_floor_halts(
    world: World, source_cluster: EmbeddedServer
) -> None:
    """The witness is there, the WAL is long enough, and xids that the floor shows are given out again: only the
    registry tells."""
    world.applied_some()
    source_cluster.stop()
    copy = source_cluster.clone_at(source_cluster.directory / "copy")
    source_cluster.start()
    for _ in range(20):
        world.source.execute("select pg_current_xact_id()")
    floor = world.checkpoint("floor_lsn")
    bridge = world.bridge().start()
    until(lambda: world.checkpoint("floor_lsn") != floor, "the floor has risen over xids of nobody's events")
    bridge.terminate()
    before, risen = world.applied(), str(world.checkpoint("floor_lsn"))
    source_cluster.stop()
    source_cluster.restore(copy)
    source_cluster.start()
    with world.producer("again") as producer:
        for _ in range(5):
            producer.transaction(2)
    write_past(world, risen)
    assert "registry" in bridge.start().wait_halted("history_diverged")
    assert world.applied() == before


@data_directory
@pytest.mark.fault(22)
def test_a_target_restored_while_no_bridge_ran_is_brought_up_from_the_outbox(
    world: World, target_cluster: EmbeddedServer
) -> None:
    world.applied_some()
    target_cluster.stop()
    copy = target_cluster.clone_at(target_cluster.directory / "copy")
    target_cluster.start()
    world.applied_some(20)
    target_cluster.stop()
    target_cluster.restore(copy)
    target_cluster.start()
    world.bridge().start().wait_log("streaming")
    verdict = world.law()
    assert verdict.expected >= 25


@pytest.mark.fault(22)
def test_a_session_that_another_took_over_from_cannot_register(world: World) -> None:
    def source() -> Source:
        return Source(world.source.bridge_dsn, STREAM, Outbox(), "outbox_bridge")

    def by(session: str, floor: Snapshot = NOTHING) -> Registration:
        return Registration(STREAM, "1", "target", None, floor, None, session=session)

    one, other = source(), source()
    one.register(by("one"), None)
    one.register(by("one", Snapshot(9, 9)), "one")
    assert other.registration() == by("one", Snapshot(9, 9))
    with pytest.raises(Retry):
        other.register(by("other"), None)  # there is a row meanwhile
    other.register(by("other"), "one")
    with pytest.raises(Fenced):
        one.register(by("one", Snapshot(99, 99)), "one")  # sent long ago
    with pytest.raises(Retry):
        one.register(by("third"), "one")
    assert one.registration() == by("other")
    one.close()
    other.close()
