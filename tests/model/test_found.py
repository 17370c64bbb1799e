"""What the model found in the protocol, each as the shortest story that tells it."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

from bridge.errors import BridgeError
from bridge.protocol.requests import (
    BeginSlot,
    OpenStream,
    ReadPruned,
    ReadSource,
    Register,
    Request,
    Settle,
    TakeSnapshot,
)
from tests.model import checks, faults, walk
from tests.model.world import Bridge, World

T = TypeVar("T")


class Steady(Random):
    """No luck: nothing fails, every batch is whole, a slot is made as soon as nothing is in its way."""

    batch = 3

    def random(self) -> float:
        return 0.5

    def randint(self, a: int, b: int) -> int:
        return min(b, self.batch)

    def choice(self, seq: Sequence[T]) -> T:  # type: ignore[override]
        return seq[0]


def steady(**more: str) -> World:
    return World(Steady(), **more)  # type: ignore[arg-type]


def run_to(world: World, bridge: Bridge, request: type[Request[object]]) -> None:
    """Until the bridge is about to ask this."""
    for _ in range(200):
        if isinstance(bridge.request, request):
            return
        world.step(bridge)
        assert bridge.ended is None, bridge.ended
    raise AssertionError(f"never asked {request}")


def at_rest(world: World) -> None:
    walk.run_until_idle(world)
    assert world.halted is None
    checks.promise(world)


def reason(bridge: Bridge) -> str:
    assert isinstance(bridge.ended, BridgeError)
    return bridge.ended.reason


def test_a_crash_amid_a_poll_does_not_take_half_a_transaction_for_the_whole() -> None:
    world = steady()
    world.rng.batch = 1  # type: ignore[attr-defined]
    in_the_way = world.source.begin()  # the slot waits for it, and events flow from the table
    world.emit(1, 2, -1)
    bridge = world.start_bridge()
    run_to(world, bridge, Settle)
    world.step(bridge)
    assert len(world.target.effects) == 1
    world.crash(bridge)
    world.source.abort(in_the_way)
    at_rest(world)


def test_a_slot_moved_between_preflight_and_start_is_noticed() -> None:
    world = steady()
    world.emit(1)
    at_rest(world)
    world.crash(world.bridges[0])
    world.emit(2)
    bridge = world.start_bridge()
    run_to(world, bridge, OpenStream)
    faults.advance_slot(world)
    while bridge.ended is None:
        world.step(bridge)
    assert reason(bridge) == "slot_advanced"
    at_rest(world)


def test_a_restored_source_whose_xids_are_used_again_is_noticed_though_the_witness_is_there() -> None:
    world = steady()
    at_rest(world)
    world.emit(1)
    copy = world.source.clone()
    world.source.other_wal(64)  # takes an xid, as any table's writer does
    at_rest(world)
    assert world.target.ledger is not None
    assert world.target.ledger.floor.shows(copy.next_xid)
    world.replace_source(copy.crash(), lost=True)
    world.emit(2)
    world.source.other_wal(4000)
    walk.run_until_idle(world)
    assert world.halted is not None
    assert world.halted.reason == "history_diverged"


def test_a_goal_stored_before_the_source_was_restored_is_not_finished_after_it() -> None:
    world = steady(capture="poll")
    world.rng.batch = 1  # type: ignore[attr-defined]
    copy = world.source.clone()
    world.emit(1, 1)
    bridge = world.start_bridge()
    run_to(world, bridge, Settle)
    world.step(bridge)
    assert world.target.ledger is not None
    assert world.target.ledger.next is not None
    world.crash(bridge)
    world.replace_source(copy.crash(), lost=True)
    world.emit(2, 2, 2)
    world.source.other_wal(4000)
    walk.run_until_idle(world)
    assert world.halted is not None
    assert world.halted.reason == "history_diverged"


def test_a_prepared_transaction_committed_before_and_after_a_promotion_is_not_applied_twice() -> None:
    world = steady()
    world.two_phase = True
    at_rest(world)
    prepared = world.source.begin()
    world.insert(prepared, 1)
    prepared.prepared = True
    standby = world.source.clone()
    world.record(prepared)
    world.source.leave(prepared)
    bridge = world.bridges[0]
    while not world.target.effects:
        world.step(bridge)
    world.replace_source(standby.promote(failover_slots=False), lost=True)
    again = next(iter(world.source.running.values()))
    world.record(again)
    world.source.leave(again)
    walk.run_until_idle(world)
    assert world.halted is not None
    assert world.halted.reason == "history_diverged"


def test_a_target_restored_to_its_first_catch_up_does_not_pass_a_prune() -> None:
    world = steady()
    world.rng.batch = 1  # type: ignore[attr-defined]
    world.emit(1, 2, -1)
    bridge = world.start_bridge()
    while world.target.ledger is None or world.target.ledger.next is None:
        world.step(bridge)
    copy = world.target.clone()
    at_rest(world)
    world.crash(world.bridges[0])
    assert world.source.prune() > 0
    world.replace_target(copy)
    world.target_restored = True
    for _ in range(2):  # the halt stays, however often it is tried
        world.halted = None
        walk.run_until_idle(world)
        assert world.halted is not None
        assert world.halted.reason == "outbox_pruned"


def test_prune_between_preflight_and_registration_is_noticed_after_a_target_restore() -> None:
    world = steady()
    world.emit(1)
    at_rest(world)
    copy = world.target.clone()
    world.emit(2, -1)
    at_rest(world)
    world.crash(world.bridges[0])
    world.start_bridge()
    at_rest(world)  # its registration is of the newer floor
    world.crash(world.bridges[0])
    faults.drop_slot(world)
    world.replace_target(copy)
    world.target_restored = True
    bridge = world.start_bridge()
    run_to(world, bridge, ReadPruned)  # too late: the floor is registered, prune respects it
    assert world.source.prune() == 0
    world.crash(bridge)
    at_rest(world)


def test_a_target_restored_under_an_open_session_that_polls_is_noticed() -> None:
    world = steady(capture="poll")
    world.emit(1)
    at_rest(world)
    copy = world.target.clone()
    world.emit(2)
    at_rest(world)
    bridge = world.bridges[0]
    world.replace_target(copy, connections_survive=True)
    world.target_restored = True
    world.emit(-1)
    while bridge.ended is None:
        world.step(bridge)
    assert reason(bridge) == "fenced"
    at_rest(world)


def test_two_first_starts_at_once_do_not_call_each_others_slot_foreign() -> None:
    world = steady()
    one, other = world.start_bridge(), world.start_bridge()
    world.step(other)
    world.step(other)
    assert isinstance(other.request, ReadSource)
    run_to(world, one, BeginSlot)
    while not world.source.slots:
        world.step(one)
    while other.ended is None:
        world.step(other)
    assert reason(other) == "stand_by"


def test_a_floor_that_goes_back_to_the_slots_snapshot_was_never_given_to_prune() -> None:
    world = steady()
    in_the_way = world.source.begin()
    bridge = world.start_bridge()
    run_to(world, bridge, TakeSnapshot)
    assert bridge.making is not None
    world.source.abort(in_the_way)
    while not world.source.advance_making(bridge.making):
        pass
    late = world.emit(1)[0]  # after the slot's snapshot, and in the poll's
    while (ledger := world.target.ledger) is None or ledger.next is None:
        world.step(bridge)
    assert ledger.floor.shows(late.xid)
    assert not ledger.next.snapshot.shows(late.xid)
    assert world.source.registration is not None
    assert not world.source.registration.floor.shows(late.xid)
    at_rest(world)


def test_rows_that_a_publication_withheld_in_the_middle_of_a_transaction_are_read_from_the_table() -> None:
    world = steady()
    bridge = world.start_bridge()
    at_rest(world)
    transaction = world.source.begin()
    world.insert(transaction, 1)
    faults.toggle_publish(world)
    world.insert(transaction, 1)
    faults.toggle_publish(world)
    world.insert(transaction, 1)
    world.record(transaction)
    world.source.leave(transaction)
    while len(world.target.effects) < 2:
        world.step(bridge)
    assert [event.seq for event in world.target.effects] == [b"1", b"3"]
    at_rest(world)
    assert [event.seq for event in world.target.effects][:3] == [b"1", b"3", b"2"]


def test_a_registration_sent_before_a_target_restore_does_not_land_after_it() -> None:
    world = steady(capture="poll")
    world.emit(1)
    at_rest(world)
    world.emit(2)
    copy = world.target.clone()
    frozen = world.bridges[0]
    run_to(world, frozen, Register)  # of a floor that shows the second event
    world.replace_target(copy)
    world.target_restored = True
    other = world.start_bridge()
    run_to(world, other, TakeSnapshot)
    world.step(frozen)
    assert reason(frozen) == "fenced"
    assert world.source.prune() == 0  # the second event is still to come
    at_rest(world)


def test_a_session_that_was_overtaken_at_the_registry_reads_it_again() -> None:
    world = steady()
    at_rest(world)
    world.crash(world.bridges[0])
    fenced, other = world.start_bridge(), world.start_bridge()
    run_to(world, fenced, Register)
    run_to(world, other, Register)
    world.step(fenced)
    world.step(other)
    assert reason(other) == "registry_taken"
    at_rest(world)
