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
from tests.model.simulation import Bridge, Simulation

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


def steady(**more: str) -> Simulation:
    return Simulation(Steady(), **more)  # type: ignore[arg-type]


def run_to(simulation: Simulation, bridge: Bridge, request: type[Request[object]]) -> None:
    """Until the bridge is about to ask this."""
    for _ in range(200):
        if isinstance(bridge.request, request):
            return
        simulation.step(bridge)
        assert bridge.ended is None, bridge.ended
    raise AssertionError(f"never asked {request}")


def at_rest(simulation: Simulation) -> None:
    walk.run_until_idle(simulation)
    assert simulation.halted is None
    checks.promise(simulation)


def reason(bridge: Bridge) -> str:
    assert isinstance(bridge.ended, BridgeError)
    return bridge.ended.reason


def test_a_crash_amid_a_poll_does_not_take_half_a_transaction_for_the_whole() -> None:
    simulation = steady()
    simulation.rng.batch = 1  # type: ignore[attr-defined]
    in_the_way = simulation.source.begin()  # the slot waits for it, and events flow from the table
    simulation.emit(1, 2, -1)
    bridge = simulation.start_bridge()
    run_to(simulation, bridge, Settle)
    simulation.step(bridge)
    assert len(simulation.target.effects) == 1
    simulation.crash(bridge)
    simulation.source.abort(in_the_way)
    at_rest(simulation)


def test_a_slot_moved_between_preflight_and_start_is_noticed() -> None:
    simulation = steady()
    simulation.emit(1)
    at_rest(simulation)
    simulation.crash(simulation.bridges[0])
    simulation.emit(2)
    bridge = simulation.start_bridge()
    run_to(simulation, bridge, OpenStream)
    faults.advance_slot(simulation)
    while bridge.ended is None:
        simulation.step(bridge)
    assert reason(bridge) == "slot_advanced"
    at_rest(simulation)


def test_reused_xids_of_a_restored_source_are_noticed_despite_the_witness() -> None:
    simulation = steady()
    at_rest(simulation)
    simulation.emit(1)
    copy = simulation.source.clone()
    simulation.source.other_wal(64)  # takes an xid, as any table's writer does
    at_rest(simulation)
    assert simulation.target.ledger is not None
    assert simulation.target.ledger.floor.shows(copy.next_xid)
    simulation.replace_source(copy.crash(), lost=True)
    simulation.emit(2)
    simulation.source.other_wal(4000)
    walk.run_until_idle(simulation)
    assert simulation.halted is not None
    assert simulation.halted.reason == "history_diverged"


def test_a_goal_stored_before_a_source_restore_is_not_finished_after_it() -> None:
    simulation = steady(capture="poll")
    simulation.rng.batch = 1  # type: ignore[attr-defined]
    copy = simulation.source.clone()
    simulation.emit(1, 1)
    bridge = simulation.start_bridge()
    run_to(simulation, bridge, Settle)
    simulation.step(bridge)
    assert simulation.target.ledger is not None
    assert simulation.target.ledger.next is not None
    simulation.crash(bridge)
    simulation.replace_source(copy.crash(), lost=True)
    simulation.emit(2, 2, 2)
    simulation.source.other_wal(4000)
    walk.run_until_idle(simulation)
    assert simulation.halted is not None
    assert simulation.halted.reason == "history_diverged"


def test_a_prepared_transaction_committed_twice_over_a_promotion_counts_once() -> None:
    simulation = steady()
    simulation.two_phase = True
    at_rest(simulation)
    prepared = simulation.source.begin()
    simulation.insert(prepared, 1)
    prepared.prepared = True
    standby = simulation.source.clone()
    simulation.record(prepared)
    simulation.source.leave(prepared)
    bridge = simulation.bridges[0]
    while not simulation.target.effects:
        simulation.step(bridge)
    simulation.replace_source(standby.promote(failover_slots=False), lost=True)
    again = next(iter(simulation.source.running.values()))
    simulation.record(again)
    simulation.source.leave(again)
    walk.run_until_idle(simulation)
    assert simulation.halted is not None
    assert simulation.halted.reason == "promotion_diverged"


def test_a_target_restored_to_its_first_catch_up_does_not_pass_a_prune() -> None:
    simulation = steady()
    simulation.rng.batch = 1  # type: ignore[attr-defined]
    simulation.emit(1, 2, -1)
    bridge = simulation.start_bridge()
    while simulation.target.ledger is None or simulation.target.ledger.next is None:
        simulation.step(bridge)
    copy = simulation.target.clone()
    at_rest(simulation)
    simulation.crash(simulation.bridges[0])
    assert simulation.source.prune() > 0
    simulation.replace_target(copy)
    simulation.target_restored = True
    for _ in range(2):  # the halt stays, however often it is tried
        simulation.halted = None
        walk.run_until_idle(simulation)
        assert simulation.halted is not None
        assert simulation.halted.reason == "outbox_pruned"


def test_prune_before_registration_is_noticed_after_a_target_restore() -> None:
    simulation = steady()
    simulation.emit(1)
    at_rest(simulation)
    copy = simulation.target.clone()
    simulation.emit(2, -1)
    at_rest(simulation)
    simulation.crash(simulation.bridges[0])
    simulation.start_bridge()
    at_rest(simulation)  # its registration is of the newer floor
    simulation.crash(simulation.bridges[0])
    faults.drop_slot(simulation)
    simulation.replace_target(copy)
    simulation.target_restored = True
    bridge = simulation.start_bridge()
    run_to(simulation, bridge, ReadPruned)  # too late: the floor is registered, prune respects it
    assert simulation.source.prune() == 0
    simulation.crash(bridge)
    at_rest(simulation)


def test_a_target_restored_under_an_open_session_that_polls_is_noticed() -> None:
    simulation = steady(capture="poll")
    simulation.emit(1)
    at_rest(simulation)
    copy = simulation.target.clone()
    simulation.emit(2)
    at_rest(simulation)
    bridge = simulation.bridges[0]
    simulation.replace_target(copy, connections_survive=True)
    simulation.target_restored = True
    simulation.emit(-1)
    while bridge.ended is None:
        simulation.step(bridge)
    assert reason(bridge) == "fenced"
    at_rest(simulation)


def test_two_first_starts_at_once_do_not_call_each_others_slot_foreign() -> None:
    simulation = steady()
    one, other = simulation.start_bridge(), simulation.start_bridge()
    simulation.step(other)
    simulation.step(other)
    assert isinstance(other.request, ReadSource)
    run_to(simulation, one, BeginSlot)
    while not simulation.source.slots:
        simulation.step(one)
    while other.ended is None:
        simulation.step(other)
    assert reason(other) == "stand_by"


def test_prune_is_never_given_a_floor_that_may_go_back_to_the_slots_snapshot() -> None:
    simulation = steady()
    in_the_way = simulation.source.begin()
    bridge = simulation.start_bridge()
    run_to(simulation, bridge, TakeSnapshot)
    assert bridge.making is not None
    simulation.source.abort(in_the_way)
    while not simulation.source.advance_making(bridge.making):
        pass
    late = simulation.emit(1)[0]  # after the slot's snapshot, and in the poll's
    while (ledger := simulation.target.ledger) is None or ledger.next is None:
        simulation.step(bridge)
    assert ledger.floor.shows(late.xid)
    assert not ledger.next.snapshot.shows(late.xid)
    assert simulation.registration is not None
    assert not simulation.registration.floor.shows(late.xid)
    at_rest(simulation)


def test_rows_that_a_publication_withheld_amid_a_transaction_come_late() -> None:
    simulation = steady()
    bridge = simulation.start_bridge()
    at_rest(simulation)
    transaction = simulation.source.begin()
    simulation.insert(transaction, 1)
    faults.toggle_publish(simulation)
    simulation.insert(transaction, 1)
    faults.toggle_publish(simulation)
    simulation.insert(transaction, 1)
    simulation.record(transaction)
    simulation.source.leave(transaction)
    while len(simulation.target.effects) < 2:
        simulation.step(bridge)
    assert [event.seq for event in simulation.target.effects] == [b"1", b"3"]
    at_rest(simulation)
    assert [event.seq for event in simulation.target.effects][:3] == [b"1", b"3", b"2"]


def test_a_registration_sent_before_a_target_restore_does_not_land_after_it() -> None:
    simulation = steady(capture="poll")
    simulation.emit(1)
    at_rest(simulation)
    simulation.emit(2)
    copy = simulation.target.clone()
    frozen = simulation.bridges[0]
    run_to(simulation, frozen, Register)  # of a floor that shows the second event
    simulation.replace_target(copy)
    simulation.target_restored = True
    other = simulation.start_bridge()
    run_to(simulation, other, TakeSnapshot)
    simulation.step(frozen)
    assert reason(frozen) == "fenced"
    assert simulation.source.prune() == 0  # the second event is still to come
    at_rest(simulation)


def test_a_session_that_was_overtaken_at_the_registry_reads_it_again() -> None:
    simulation = steady()
    at_rest(simulation)
    simulation.crash(simulation.bridges[0])
    fenced, other = simulation.start_bridge(), simulation.start_bridge()
    run_to(simulation, fenced, Register)
    run_to(simulation, other, Register)
    simulation.step(fenced)
    simulation.step(other)
    assert reason(other) == "registry_taken"
    at_rest(simulation)
