"""An application that deletes its rows, at once or nightly: a restart must prove its history without them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.servers import EmbeddedServer
from tests.support.variants import first_fast
from tests.support.world import World, until

_AT_ONCE = """
    create function rig.delete_at_once() returns trigger language plpgsql security definer set search_path = '' as $$
    begin delete from outbox.event where id = new.id; return null; end $$;
    create constraint trigger delete_at_once after insert on outbox.event deferrable initially deferred
        for each row execute function rig.delete_at_once()"""


def _covered(world: World) -> bool:
    """The floor is past the last event."""
    return world.checkpoint("(floor_lsn >= applied_lsn)") == "true"


@pytest.mark.fault(83)
@pytest.mark.parametrize("xid", [True, False], ids=["with xid", "without xid"])
@pytest.mark.parametrize("kill", first_fast(True, False), ids=["killed at once", "stopped"])
def test_rows_that_are_deleted_at_once_are_delivered_over_restarts(
    world: World, *, xid: bool, kill: bool
) -> None:
    if not xid:
        columns = dict.fromkeys(("id", "type", "key", "payload", "idempotency_key", "headers", "occurred_at"))
        world.configure(lambda c: c["source"].update(columns={name: name for name in columns}))
        world.source.execute("alter table outbox.event alter column xid drop not null")
    world.source.execute(_AT_ONCE)
    bridge = world.bridge().start()
    bridge.wait_log("streaming")
    with world.producer() as producer:
        for _ in range(3):
            producer.transaction(4)
            world.caught_up()
            if kill:
                bridge.kill()
            else:
                assert bridge.terminate() == 0
            producer.transaction(2)
            bridge.start().wait_ready()
    world.law()


@pytest.mark.fault(83)
def test_rows_that_are_deleted_at_night_are_delivered_over_restarts(world: World) -> None:
    """The housekeeping of every outbox that is not ours; polling too."""
    for capture in ("slot", "poll", "slot"):
        world.configure(lambda c, to=capture: c["source"].update(capture=to))  # type: ignore[misc]
        bridge = world.bridge().start()
        bridge.wait_log("polling" if capture == "poll" else "streaming")
        with world.producer(capture) as producer:
            producer.transaction(5)
            world.caught_up()
        if capture == "slot":
            until(lambda: _covered(world), "the floor has risen")
        assert bridge.terminate() == 0
        world.source.execute("delete from outbox.event")
    world.bridge().start().wait_ready()
    world.law()


def _with_its_slot(world: World) -> None:
    """As the copy has it."""


def _without_its_slot(world: World) -> None:
    world.drop_slot()


@pytest.mark.data_directory
@pytest.mark.fault("36b", 83)
@pytest.mark.parametrize(
    ("prepare", "reason"), [(_with_its_slot, "history_diverged"), (_without_its_slot, "witness_missing")]
)
def test_a_deleted_row_does_not_hide_a_source_that_was_restored(
    world: World, source_cluster: EmbeddedServer, prepare: Callable[[World], None], reason: str
) -> None:
    world.applied_some()
    source_cluster.stop()
    copy = source_cluster.clone_at(source_cluster.directory / "copy")
    source_cluster.start()
    dying = world.bridge(failpoints="settle.durable=kill").start()
    dying.wait_log("streaming")
    with world.producer("gone") as producer:
        producer.transaction(3)
        until(lambda: not dying.running, "it dies with the event applied, before the floor can rise")
    before, applied = world.applied(), str(world.checkpoint("applied_lsn"))
    assert not _covered(world)
    source_cluster.stop()
    source_cluster.restore(copy)
    source_cluster.start()
    with world.producer("again") as producer:
        producer.transaction(2)
    _write_past(world, applied)
    prepare(world)
    world.bridge().start().wait_halted(reason)
    assert world.applied() == before


def _write_past(world: World, lsn: str) -> None:
    with world.source.connect() as somebody:
        somebody.execute("create table public.noise (n int)")
        while somebody.execute("select pg_current_wal_lsn() <= %s::pg_lsn", [lsn]).fetchone() == (True,):
            somebody.execute("insert into public.noise select generate_series(1, 1000)")
        somebody.execute("select pg_switch_wal()")
