"""What can happen in the simulation besides the bridge: producers at work, and every class of fault, by name.

Each act draws what it needs from the simulation's own random source, counts itself where it really changed
something, and is a no-op where it cannot happen. Apart from simulation.py so that the walk and the hypothesis
machine share one list.
"""

from __future__ import annotations

from collections.abc import Callable

from bridge.protocol.events import NOTHING
from bridge.protocol.requests import Receive, Register, SlotMade, TakeSnapshot, Wait
from tests.model.simulation import KEYS, OTHERS, SLOT, Bridge, Simulation
from tests.model.source import Making, Slot, Source

Act = Callable[[Simulation], None]


# --- producers --------------------------------------------------------------------------------------


def emit(simulation: Simulation) -> None:
    simulation.emit(*(simulation.rng.choice(KEYS) for _ in range(simulation.rng.choice((1, 1, 1, 2, 4)))))


def begin(simulation: Simulation) -> None:
    if len(simulation.source.running) < 4:
        simulation.source.begin()


def insert(simulation: Simulation) -> None:
    at_work = [t for t in simulation.source.running.values() if not t.recorded and not t.prepared]
    if at_work:
        simulation.insert(simulation.rng.choice(at_work), simulation.rng.choice(KEYS))


def record(simulation: Simulation) -> None:
    """Commit, in another order than the xids'; seen at once or later; sometimes not flushed."""
    at_work = [t for t in simulation.source.running.values() if not t.recorded]
    if not at_work:
        return
    transaction = simulation.rng.choice(at_work)
    if transaction.xid > min(simulation.source.running):
        simulation.counts["committed before an older xid"] += 1
    flush = not simulation.chance(0.1)
    simulation.counts["commit not flushed"] += not flush
    simulation.counts["prepared transaction committed"] += transaction.prepared
    simulation.record(transaction, flush=flush)
    if simulation.chance(0.5):
        simulation.source.leave(transaction)
    else:
        simulation.counts["decodable before it is visible"] += 1


def leave(simulation: Simulation) -> None:
    recorded = [t for t in simulation.source.running.values() if t.recorded]
    if recorded:
        simulation.source.leave(simulation.rng.choice(recorded))


def roll_back(simulation: Simulation) -> None:
    at_work = [t for t in simulation.source.running.values() if not t.recorded]
    if at_work:
        transaction = simulation.rng.choice(at_work)
        simulation.counts["rolled back with rows"] += bool(transaction.rows)
        simulation.source.abort(transaction)


def prepare(simulation: Simulation) -> None:
    at_work = [t for t in simulation.source.running.values() if not t.recorded and not t.prepared]
    if at_work and simulation.two_phase:
        simulation.rng.choice(at_work).prepared = True
        simulation.source.flush()


def other_wal(simulation: Simulation) -> None:
    simulation.source.other_wal(simulation.rng.choice((8, 64, 400)))


def flush(simulation: Simulation) -> None:
    simulation.source.flush()


# --- bridges ----------------------------------------------------------------------------------------


def crash_bridge(simulation: Simulation) -> None:
    if simulation.bridges:
        bridge = simulation.rng.choice(simulation.bridges)
        simulation.counts[f"crash before {type(bridge.request).__name__}"] += 1
        simulation.counts["bridge crashed"] += 1
        simulation.crash(bridge)


def second_bridge(simulation: Simulation) -> None:
    """The one before goes on, or is suspended and resumed later."""
    if 0 < len(simulation.bridges) < 3:
        simulation.counts["second bridge beside a live one"] += 1
        simulation.start_bridge()


def another_source(simulation: Simulation) -> None:
    """A second source whose stream has the same name: each of its requests at another moment."""
    of, copied = simulation.rng.choice(OTHERS), simulation.chance(0.3)
    if len(simulation.others) < 2 and not (copied and simulation.registration is None):
        simulation.counts["a bridge of another source"] += 1
        simulation.start_bridge(of, copied=copied)
    for bridge in list(simulation.others):
        for _ in range(simulation.rng.randint(0, 3)):
            if bridge in simulation.others:
                simulation.step(bridge)


def reader_noticed(simulation: Simulation) -> None:
    """The server notices that the reader of a slot is gone."""
    if simulation.dead_readers:
        simulation.dead_readers.pop().reader = None


def switch_capture(simulation: Simulation) -> None:
    simulation.capture = "poll" if simulation.capture == "slot" else "slot"
    simulation.counts["capture switched"] += 1


def target_progress(simulation: Simulation) -> None:
    sent = [b.sent for b in simulation.bridges if b.sent is not None] + simulation.orphans
    if sent:
        simulation.progress(simulation.rng.choice(sent))
    simulation.orphans = [s for s in simulation.orphans if s.state in ("sent", "locked")]


def connection_lost(simulation: Simulation) -> None:
    """The server ends a backend that has not committed."""
    sent = [b.sent for b in simulation.bridges if b.sent is not None] + simulation.orphans
    alive = [s for s in sent if s.state in ("sent", "locked")]
    if alive:
        simulation.target.roll_back(simulation.rng.choice(alive))
        simulation.counts["batch rolled back by the server"] += 1


def advance_making(simulation: Simulation) -> None:
    for bridge in simulation.bridges:
        if (
            bridge.making is not None
            and not bridge.making.broken
            and bridge.source_generation == (simulation.source_generation)
        ):
            if bridge.making.made is None and bridge.making.name not in simulation.source.slots:
                simulation.source.advance_making(bridge.making)
            return


def _unhindered(simulation: Simulation) -> Making | None:
    """A slot that is being made, with nothing in its way any more."""
    for bridge in simulation.bridges:
        making = bridge.making
        usable = making is not None and making.made is None and not making.broken
        if not usable or bridge.source_generation != simulation.source_generation:
            continue
        assert making is not None
        if making.name in simulation.source.slots:
            continue
        for transaction in list(simulation.source.running.values()):
            if transaction.recorded:
                simulation.source.leave(transaction)
            else:
                simulation.source.abort(transaction)
        return making
    return None


def slot_ahead_of_visibility(simulation: Simulation) -> None:
    """The slot's snapshot shows a transaction that is still in the running set."""
    making = _unhindered(simulation)
    if making is None:
        return
    simulation.source.advance_making(making)
    transaction = simulation.source.begin()
    simulation.insert(transaction, simulation.rng.choice(KEYS))
    simulation.record(transaction)
    simulation.source.advance_making(making)


def slot_behind_a_poll(simulation: Simulation) -> None:
    """The slot is made, nobody has noticed, and the poll under way takes a younger snapshot."""
    if not any(isinstance(bridge.request, TakeSnapshot) and bridge.making for bridge in simulation.bridges):
        return
    making = _unhindered(simulation)
    if making is not None:
        while not simulation.source.advance_making(making):
            pass
        emit(simulation)


# --- the target -------------------------------------------------------------------------------------


def crash_target(simulation: Simulation) -> None:
    simulation.replace_target(simulation.target.clone())
    simulation.counts["target crashed"] += 1


def copy_target(simulation: Simulation) -> None:
    simulation.target_copies.append(simulation.target.clone())


def restore_target(simulation: Simulation) -> None:
    if not simulation.target_copies:
        return
    copy = simulation.rng.choice(simulation.target_copies).clone()
    if copy.ledger is None and simulation.since is not None:
        return
    if copy.ledger == simulation.target.ledger:
        return
    in_place = simulation.target.lock is None and simulation.chance(0.4)  # or behind a pooler
    simulation.replace_target(copy, connections_survive=in_place)
    simulation.counts["target restored to an older copy"] += 1
    simulation.counts["target restored under open connections"] += in_place
    simulation.target_restored = True
    simulation.ledger_wiped = copy.ledger is None


# --- the source: slots and publication --------------------------------------------------------------


def persist_slots(simulation: Simulation) -> None:
    for slot in simulation.source.slots.values():
        slot.on_disk = slot.confirmed


def _pick_slot(simulation: Simulation, *, idle: bool) -> Slot | None:
    slots = [s for s in simulation.source.slots.values() if not idle or s.reader is None]
    return simulation.rng.choice(slots) if slots else None


def drop_slot(simulation: Simulation) -> None:
    slot = _pick_slot(simulation, idle=True)
    if slot is not None:
        del simulation.source.slots[slot.name]
        simulation.counts["slot dropped"] += 1


def advance_slot(simulation: Simulation) -> None:
    """pg_replication_slot_advance by somebody."""
    slot = _pick_slot(simulation, idle=True)
    if slot is not None and slot.confirmed < simulation.source.flushed:
        slot.confirmed = simulation.source.flushed
        simulation.counts["slot advanced by somebody"] += 1


def recreate_slot(simulation: Simulation) -> None:
    """Dropped and made again under the same name by somebody."""
    slot = _pick_slot(simulation, idle=True)
    if slot is not None:
        _foreign(simulation, slot.name)
        simulation.counts["slot recreated by somebody"] += 1


def foreign_slot(simulation: Simulation) -> None:
    """Somebody's slot has our next name, or our first."""
    ledger = simulation.target.ledger
    name = f"{SLOT}_{(ledger.incarnation if ledger else 0) + 1}"
    if name not in simulation.source.slots:
        _foreign(simulation, name)
        simulation.counts["somebody made a slot of our name"] += 1


def _foreign(simulation: Simulation, name: str) -> None:
    simulation.births += 1
    lsn = simulation.source.lsn
    simulation.source.flush()
    simulation.source.slots[name] = Slot(name, lsn, lsn, simulation.births)


def lose_slot(simulation: Simulation) -> None:
    slot = _pick_slot(simulation, idle=False)
    if slot is not None:
        slot.lost = True
        simulation.counts["slot invalidated"] += 1


def _new_identity(simulation: Simulation) -> str:
    simulation.births += 1
    simulation.source.other_wal(8)
    return f"pub-{simulation.births}"


def toggle_publish(simulation: Simulation) -> None:
    """alter publication .. set (publish = ..): off, or on again."""
    source = simulation.source
    if source.publication is not None:
        source.publishes = not source.publishes
        source.publication = _new_identity(simulation)
        simulation.counts["publication toggled"] += 1


def drop_publication(simulation: Simulation) -> None:
    if simulation.source.publication is not None:
        simulation.source.publication = None
        simulation.source.other_wal(8)
        simulation.counts["publication dropped"] += 1


def recreate_publication(simulation: Simulation) -> None:
    if simulation.source.publication is None or not simulation.source.publishes:
        simulation.source.publication, simulation.source.publishes = _new_identity(simulation), True
        simulation.counts["publication recreated"] += 1


def off_and_on(simulation: Simulation) -> None:
    """Between two checks: rows were written meanwhile."""
    toggle_publish(simulation)
    emit(simulation)
    recreate_publication(simulation)


def gone_and_back(simulation: Simulation) -> None:
    """Dropped and recreated between two checks: what was written meanwhile never arrives, and on 17 and
    older it stops the decoder."""
    drop_publication(simulation)
    emit(simulation)
    recreate_publication(simulation)


def alter_amid_a_transaction(simulation: Simulation) -> None:
    """A transaction writes before, while and after the publication withholds, and a slot brings its parts."""
    reading = [bridge for bridge in simulation.bridges if bridge.stream is not None]
    if not reading or simulation.source.identity() is None:
        return
    transaction = simulation.source.begin()
    for act in (toggle_publish, toggle_publish, drop_publication, recreate_publication):
        if simulation.chance(0.7):
            simulation.insert(transaction, -1)
        if act is not drop_publication or simulation.chance(0.2):
            act(simulation)
    if simulation.chance(0.7):
        simulation.insert(transaction, -1)
    simulation.record(transaction)
    simulation.source.leave(transaction)
    _step(simulation, reading[0])


def _step(simulation: Simulation, bridge: Bridge) -> None:
    for _ in range(8):
        if bridge in simulation.bridges:
            simulation.step(bridge)
            target_progress(simulation)


def prune_at_a_start(simulation: Simulation) -> None:
    """Between the look at what was pruned and the registration that holds prune back."""
    if any(isinstance(bridge.request, Register) and bridge.stream is None for bridge in simulation.bridges):
        prune(simulation)


def late_registration(simulation: Simulation) -> None:
    """A session is frozen when it is about to register. The target goes back, another session begins, and
    then the first one's registration arrives."""
    frozen = next((bridge for bridge in simulation.bridges if isinstance(bridge.request, Register)), None)
    if frozen is None or not simulation.target_copies:
        return
    restore_target(simulation)
    if frozen.stream is not None:
        frozen.stream.slot.reader = None
    other = simulation.start_bridge()
    for _ in range(60):
        if other not in simulation.bridges or isinstance(other.request, Receive | Wait | SlotMade):
            break
        simulation.step(other)
    if frozen in simulation.bridges:
        simulation.step(frozen)
        prune(simulation)


def prune(simulation: Simulation) -> None:
    if simulation.source.prune():
        simulation.counts["pruned"] += 1


def delete_the_witness(simulation: Simulation) -> None:
    """The application deletes a row that was applied. A target that is restored to before that cannot have it again."""
    ledger, source = simulation.target.ledger, simulation.source
    row = source.table.get(ledger.witness_id or "") if ledger is not None else None
    if row is not None and source.seen(row):
        del source.table[row.id]
        source.lsn += 8
        simulation.deleted.add(row.id)
        simulation.counts["the application deleted the witness"] += 1
        if simulation.chance(0.5):
            for bridge in list(simulation.bridges):
                simulation.crash(bridge)


# --- rows with other xids ----------------------------------------------------------------------------


def stranger(simulation: Simulation) -> None:
    """Beside a stream that has begun, a row comes without an xid, or with one that is not given out yet."""
    ledger = simulation.target.ledger
    if ledger is None or ledger.floor == NOTHING:
        return
    source = simulation.source
    transaction = source.begin()
    if simulation.chance(0.5):
        simulation.insert(transaction, -1)
    simulation.serial += 1
    says = simulation.rng.choice((None, transaction.xid + 40))
    row = source.insert_stranger(transaction, f"e{simulation.serial}", says, simulation.clock)
    simulation.strangers = True
    simulation.counts["a stranger came by the stream"] += row.published == "yes"
    if simulation.chance(0.3):
        return  # it ends later
    simulation.record(transaction)
    source.leave(transaction)


def move_row(simulation: Simulation) -> None:
    """An update moves a row that was published to another partition."""
    source = simulation.source
    rows = [
        row
        for row in source.table.values()
        if row.published == "yes" and not row.is_stranger and source.seen(row)
    ]
    if source.partitioned and source.identity() is not None and rows:
        source.move(simulation.rng.choice(rows))
        simulation.counts["a row moved to another partition"] += 1


# --- the source: history ----------------------------------------------------------------------------


def crash_source(simulation: Simulation) -> None:
    before = simulation.source
    after = before.crash()
    lost = len(after.wal) < len(before.wal)
    for slot in after.slots.values():
        old = before.slots.get(slot.name)
        simulation.counts["confirmed_flush went back"] += old is not None and slot.confirmed < old.confirmed
    simulation.counts["source crashed"] += 1
    simulation.counts["source crash lost commits"] += lost
    simulation.replace_source(after, lost=after.lsn < before.lsn)


def copy_source(simulation: Simulation) -> None:
    simulation.source_copies.append(simulation.source.clone())
    del simulation.source_copies[:-6]


def restore_source(simulation: Simulation) -> None:
    """A disk copy comes up on the same timeline; its WAL may pass the checkpoint before a bridge looks."""
    if simulation.source_copies:
        lost = simulation.source.lsn
        number = simulation.rng.randrange(len(simulation.source_copies))
        del simulation.source_copies[number + 1 :]  # of a history that is no more
        simulation.replace_source(simulation.source_copies[number].clone().crash(), lost=True)
        simulation.counts["source restored from a disk copy"] += 1
        for _ in range(simulation.rng.choice((0, 3, 9))):
            emit(simulation)
        if simulation.chance(0.5):
            simulation.source.other_wal(max(8, lost - simulation.source.lsn))
        simulation.counts["restored source passed the old WAL"] += simulation.source.lsn >= lost


def promote(simulation: Simulation) -> None:
    """A standby takes over; it has everything, or lacks the tail."""
    before = simulation.source
    behind = bool(simulation.source_copies) and simulation.chance(0.6)
    copies = simulation.source_copies[-1:] if simulation.chance(0.7) else simulation.source_copies
    base = (simulation.rng.choice(copies) if behind else before).clone()
    if base.timeline == before.timeline:
        take_over(simulation, base)


def lagging_promotion(simulation: Simulation) -> None:
    """A standby that lacks only what was applied a moment ago takes over."""
    reading = [b for b in simulation.bridges if b.stream is not None]
    if not reading:
        return
    standby = simulation.source.clone()
    emit(simulation)
    _step(simulation, reading[0])
    take_over(simulation, standby)


def take_over(simulation: Simulation, base: Source) -> None:
    before = simulation.source
    slots = simulation.chance(0.5)
    after = base.promote(failover_slots=slots)
    simulation.counts["promoted with a failover slot" if after.slots else "promoted without a slot"] += 1
    simulation.counts["promotion lost commits"] += len(after.wal) < len(before.wal)
    simulation.replace_source(after, lost=True)
    simulation.source_copies.clear()
    for _ in range(simulation.rng.choice((0, 2, 6))):
        emit(simulation)


WORK: dict[Act, float] = {
    emit: 6, begin: 4, insert: 6, record: 5, leave: 5, roll_back: 1, prepare: 0.5, other_wal: 1, flush: 1,
    target_progress: 6, advance_making: 3, reader_noticed: 2, persist_slots: 1,
    slot_ahead_of_visibility: 0.5, slot_behind_a_poll: 0.5,
}  # fmt: skip
FAULTS: dict[Act, float] = {
    move_row: 2, stranger: 0.05, another_source: 1.5,
    crash_bridge: 2, second_bridge: 1, switch_capture: 0.6, connection_lost: 1, crash_target: 0.7,
    copy_target: 1.5, restore_target: 0.7, drop_slot: 0.7, advance_slot: 1.5, recreate_slot: 0.6,
    foreign_slot: 0.1, lose_slot: 0.7, toggle_publish: 0.4, drop_publication: 0.2, recreate_publication: 2,
    off_and_on: 0.8, alter_amid_a_transaction: 1.5,
    late_registration: 0.4, gone_and_back: 1.0, prune: 1.5, prune_at_a_start: 0.5, crash_source: 0.8,
}  # fmt: skip
HISTORY: dict[Act, float] = {copy_source: 2.5, restore_source: 0.5, promote: 0.6, lagging_promotion: 0.5}
