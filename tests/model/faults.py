"""What can happen in the world besides the bridge: producers at work, and every class of fault, by name.

Each act draws what it needs from the world's own random source, counts itself where it really changed
something, and is a no-op where it cannot happen. Apart from world.py so that the walk and the hypothesis
machine share one list.
"""

from __future__ import annotations

from collections.abc import Callable

from bridge.protocol.requests import Receive, Register, SlotMade, TakeSnapshot, Wait
from tests.model.source import Making, Slot, Source
from tests.model.world import KEYS, SLOT, Bridge, World

Act = Callable[[World], None]


# --- producers --------------------------------------------------------------------------------------


def emit(world: World) -> None:
    world.emit(*(world.rng.choice(KEYS) for _ in range(world.rng.choice((1, 1, 1, 2, 4)))))


def begin(world: World) -> None:
    if len(world.source.running) < 4:
        world.source.begin()


def insert(world: World) -> None:
    at_work = [t for t in world.source.running.values() if not t.recorded and not t.prepared]
    if at_work:
        world.insert(world.rng.choice(at_work), world.rng.choice(KEYS))


def record(world: World) -> None:
    """Commit, in another order than the xids'; seen at once or later; sometimes not flushed."""
    at_work = [t for t in world.source.running.values() if not t.recorded]
    if not at_work:
        return
    transaction = world.rng.choice(at_work)
    if transaction.xid > min(world.source.running):
        world.counts["committed before an older xid"] += 1
    flush = not world.chance(0.1)
    world.counts["commit not flushed"] += not flush
    world.counts["prepared transaction committed"] += transaction.prepared
    world.record(transaction, flush=flush)
    if world.chance(0.5):
        world.source.leave(transaction)
    else:
        world.counts["decodable before it is visible"] += 1


def leave(world: World) -> None:
    recorded = [t for t in world.source.running.values() if t.recorded]
    if recorded:
        world.source.leave(world.rng.choice(recorded))


def roll_back(world: World) -> None:
    at_work = [t for t in world.source.running.values() if not t.recorded]
    if at_work:
        transaction = world.rng.choice(at_work)
        world.counts["rolled back with rows"] += bool(transaction.rows)
        world.source.abort(transaction)


def prepare(world: World) -> None:
    at_work = [t for t in world.source.running.values() if not t.recorded and not t.prepared]
    if at_work and world.two_phase:
        world.rng.choice(at_work).prepared = True
        world.source.flush()


def other_wal(world: World) -> None:
    world.source.other_wal(world.rng.choice((8, 64, 400)))


def flush(world: World) -> None:
    world.source.flush()


# --- bridges ----------------------------------------------------------------------------------------


def crash_bridge(world: World) -> None:
    if world.bridges:
        bridge = world.rng.choice(world.bridges)
        world.counts[f"crash before {type(bridge.request).__name__}"] += 1
        world.counts["bridge crashed"] += 1
        world.crash(bridge)


def second_bridge(world: World) -> None:
    """The one before goes on, or is suspended and resumed later."""
    if 0 < len(world.bridges) < 3:
        world.counts["second bridge beside a live one"] += 1
        world.start_bridge()


def reader_noticed(world: World) -> None:
    """The server notices that the reader of a slot is gone."""
    if world.dead_readers:
        world.dead_readers.pop().reader = None


def switch_capture(world: World) -> None:
    world.capture = "poll" if world.capture == "slot" else "slot"
    world.counts["capture switched"] += 1


def target_progress(world: World) -> None:
    sent = [b.sent for b in world.bridges if b.sent is not None] + world.orphans
    if sent:
        world.progress(world.rng.choice(sent))
    world.orphans = [s for s in world.orphans if s.state in ("sent", "locked")]


def connection_lost(world: World) -> None:
    """The server ends a backend that has not committed."""
    sent = [b.sent for b in world.bridges if b.sent is not None] + world.orphans
    alive = [s for s in sent if s.state in ("sent", "locked")]
    if alive:
        world.target.roll_back(world.rng.choice(alive))
        world.counts["batch rolled back by the server"] += 1


def advance_making(world: World) -> None:
    for bridge in world.bridges:
        if (
            bridge.making is not None
            and not bridge.making.broken
            and bridge.source_generation == (world.source_generation)
        ):
            if bridge.making.made is None and bridge.making.name not in world.source.slots:
                world.source.advance_making(bridge.making)
            return


def _unhindered(world: World) -> Making | None:
    """A slot that is being made, with nothing in its way any more."""
    for bridge in world.bridges:
        making = bridge.making
        usable = making is not None and making.made is None and not making.broken
        if not usable or bridge.source_generation != world.source_generation:
            continue
        assert making is not None
        if making.name in world.source.slots:
            continue
        for transaction in list(world.source.running.values()):
            if transaction.recorded:
                world.source.leave(transaction)
            else:
                world.source.abort(transaction)
        return making
    return None


def slot_ahead_of_visibility(world: World) -> None:
    """The slot's snapshot shows a transaction that is still in the running set."""
    making = _unhindered(world)
    if making is None:
        return
    world.source.advance_making(making)
    transaction = world.source.begin()
    world.insert(transaction, world.rng.choice(KEYS))
    world.record(transaction)
    world.source.advance_making(making)


def slot_behind_a_poll(world: World) -> None:
    """The slot is made, nobody has noticed, and the poll under way takes a younger snapshot."""
    if not any(isinstance(bridge.request, TakeSnapshot) and bridge.making for bridge in world.bridges):
        return
    making = _unhindered(world)
    if making is not None:
        while not world.source.advance_making(making):
            pass
        emit(world)


# --- the target -------------------------------------------------------------------------------------


def crash_target(world: World) -> None:
    world.replace_target(world.target.clone())
    world.counts["target crashed"] += 1


def copy_target(world: World) -> None:
    world.target_copies.append(world.target.clone())


def restore_target(world: World) -> None:
    if not world.target_copies:
        return
    copy = world.rng.choice(world.target_copies).clone()
    if copy.ledger is None and world.since is not None:
        return
    if copy.ledger == world.target.ledger:
        return
    in_place = world.target.lock is None and world.chance(0.4)  # or behind a pooler
    world.replace_target(copy, connections_survive=in_place)
    world.counts["target restored to an older copy"] += 1
    world.counts["target restored under open connections"] += in_place
    world.target_restored = True
    world.ledger_wiped = copy.ledger is None


# --- the source: slots and publication --------------------------------------------------------------


def persist_slots(world: World) -> None:
    for slot in world.source.slots.values():
        slot.on_disk = slot.confirmed


def _pick_slot(world: World, *, idle: bool) -> Slot | None:
    slots = [s for s in world.source.slots.values() if not idle or s.reader is None]
    return world.rng.choice(slots) if slots else None


def drop_slot(world: World) -> None:
    slot = _pick_slot(world, idle=True)
    if slot is not None:
        del world.source.slots[slot.name]
        world.counts["slot dropped"] += 1


def advance_slot(world: World) -> None:
    """pg_replication_slot_advance by somebody."""
    slot = _pick_slot(world, idle=True)
    if slot is not None and slot.confirmed < world.source.flushed:
        slot.confirmed = world.source.flushed
        world.counts["slot advanced by somebody"] += 1


def recreate_slot(world: World) -> None:
    """Dropped and made again under the same name by somebody."""
    slot = _pick_slot(world, idle=True)
    if slot is not None:
        _foreign(world, slot.name)
        world.counts["slot recreated by somebody"] += 1


def foreign_slot(world: World) -> None:
    """Somebody's slot has our next name, or our first."""
    ledger = world.target.ledger
    name = f"{SLOT}_{(ledger.incarnation if ledger else 0) + 1}"
    if name not in world.source.slots:
        _foreign(world, name)
        world.counts["somebody made a slot of our name"] += 1


def _foreign(world: World, name: str) -> None:
    world.births += 1
    lsn = world.source.lsn
    world.source.flush()
    world.source.slots[name] = Slot(name, lsn, lsn, world.births)


def lose_slot(world: World) -> None:
    slot = _pick_slot(world, idle=False)
    if slot is not None:
        slot.lost = True
        world.counts["slot invalidated"] += 1


def _new_identity(world: World) -> str:
    world.births += 1
    world.source.other_wal(8)
    return f"pub-{world.births}"


def toggle_publish(world: World) -> None:
    """alter publication .. set (publish = ..): off, or on again."""
    source = world.source
    if source.publication is not None:
        source.publishes = not source.publishes
        source.publication = _new_identity(world)
        world.counts["publication toggled"] += 1


def drop_publication(world: World) -> None:
    if world.source.publication is not None:
        world.source.publication = None
        world.source.other_wal(8)
        world.counts["publication dropped"] += 1


def recreate_publication(world: World) -> None:
    if world.source.publication is None or not world.source.publishes:
        world.source.publication, world.source.publishes = _new_identity(world), True
        world.counts["publication recreated"] += 1


def off_and_on(world: World) -> None:
    """Between two checks: rows were written meanwhile."""
    toggle_publish(world)
    emit(world)
    recreate_publication(world)


def gone_and_back(world: World) -> None:
    """Dropped and recreated between two checks: what was written meanwhile never arrives, and on 17 and
    older it stops the decoder."""
    drop_publication(world)
    emit(world)
    recreate_publication(world)


def alter_amid_a_transaction(world: World) -> None:
    """A transaction writes before, while and after the publication withholds, and a slot brings its parts."""
    reading = [bridge for bridge in world.bridges if bridge.stream is not None]
    if not reading or world.source.identity() is None:
        return
    transaction = world.source.begin()
    for act in (toggle_publish, toggle_publish, drop_publication, recreate_publication):
        if world.chance(0.7):
            world.insert(transaction, -1)
        if act is not drop_publication or world.chance(0.2):
            act(world)
    if world.chance(0.7):
        world.insert(transaction, -1)
    world.record(transaction)
    world.source.leave(transaction)
    _step(world, reading[0])


def _step(world: World, bridge: Bridge) -> None:
    for _ in range(8):
        if bridge in world.bridges:
            world.step(bridge)
            target_progress(world)


def prune_at_a_start(world: World) -> None:
    """Between the look at what was pruned and the registration that holds prune back."""
    if any(isinstance(bridge.request, Register) and bridge.stream is None for bridge in world.bridges):
        prune(world)


def late_registration(world: World) -> None:
    """A session is frozen when it is about to register. The target goes back, another session begins, and
    then the first one's registration arrives."""
    frozen = next((bridge for bridge in world.bridges if isinstance(bridge.request, Register)), None)
    if frozen is None or not world.target_copies:
        return
    restore_target(world)
    if frozen.stream is not None:
        frozen.stream.slot.reader = None
    other = world.start_bridge()
    for _ in range(60):
        if other not in world.bridges or isinstance(other.request, Receive | Wait | SlotMade):
            break
        world.step(other)
    if frozen in world.bridges:
        world.step(frozen)
        prune(world)


def prune(world: World) -> None:
    if world.source.prune():
        world.counts["pruned"] += 1


# --- the source: history ----------------------------------------------------------------------------


def crash_source(world: World) -> None:
    before = world.source
    after = before.crash()
    lost = len(after.wal) < len(before.wal)
    for slot in after.slots.values():
        old = before.slots.get(slot.name)
        world.counts["confirmed_flush went back"] += old is not None and slot.confirmed < old.confirmed
    world.counts["source crashed"] += 1
    world.counts["source crash lost commits"] += lost
    world.replace_source(after, lost=after.lsn < before.lsn)


def copy_source(world: World) -> None:
    world.source_copies.append(world.source.clone())
    del world.source_copies[:-6]


def restore_source(world: World) -> None:
    """A disk copy comes up on the same timeline; its WAL may pass the checkpoint before a bridge looks."""
    if world.source_copies:
        lost = world.source.lsn
        number = world.rng.randrange(len(world.source_copies))
        del world.source_copies[number + 1 :]  # of a history that is no more
        world.replace_source(world.source_copies[number].clone().crash(), lost=True)
        world.counts["source restored from a disk copy"] += 1
        for _ in range(world.rng.choice((0, 3, 9))):
            emit(world)
        if world.chance(0.5):
            world.source.other_wal(max(8, lost - world.source.lsn))
        world.counts["restored source passed the old WAL"] += world.source.lsn >= lost


def promote(world: World) -> None:
    """A standby takes over; it has everything, or lacks the tail."""
    before = world.source
    behind = bool(world.source_copies) and world.chance(0.6)
    copies = world.source_copies[-1:] if world.chance(0.7) else world.source_copies
    base = (world.rng.choice(copies) if behind else before).clone()
    if base.timeline == before.timeline:
        _take_over(world, base)


def lagging_promotion(world: World) -> None:
    """A standby that lacks only what was applied a moment ago takes over."""
    reading = [b for b in world.bridges if b.stream is not None]
    if not reading:
        return
    standby = world.source.clone()
    emit(world)
    _step(world, reading[0])
    _take_over(world, standby)


def _take_over(world: World, base: Source) -> None:
    before = world.source
    slots = world.chance(0.5)
    after = base.promote(failover_slots=slots)
    world.counts["promoted with a failover slot" if after.slots else "promoted without a slot"] += 1
    world.counts["promotion lost commits"] += len(after.wal) < len(before.wal)
    world.replace_source(after, lost=True)
    world.source_copies = []
    for _ in range(world.rng.choice((0, 2, 6))):
        emit(world)


WORK: dict[Act, float] = {
    emit: 6, begin: 4, insert: 6, record: 5, leave: 5, roll_back: 1, prepare: 0.5, other_wal: 1, flush: 1,
    target_progress: 6, advance_making: 3, reader_noticed: 2, persist_slots: 1,
    slot_ahead_of_visibility: 0.5, slot_behind_a_poll: 0.5,
}  # fmt: skip
FAULTS: dict[Act, float] = {
    crash_bridge: 2, second_bridge: 1, switch_capture: 0.6, connection_lost: 1, crash_target: 0.7,
    copy_target: 1.5, restore_target: 0.7, drop_slot: 0.7, advance_slot: 1.5, recreate_slot: 0.6,
    foreign_slot: 0.1, lose_slot: 0.7, toggle_publish: 0.4, drop_publication: 0.2, recreate_publication: 2,
    off_and_on: 0.8, alter_amid_a_transaction: 1.5,
    late_registration: 0.4, gone_and_back: 1.0, prune: 1.5, prune_at_a_start: 0.5, crash_source: 0.8,
}  # fmt: skip
HISTORY: dict[Act, float] = {copy_source: 2.5, restore_source: 0.5, promote: 0.6, lagging_promotion: 0.5}
