"""What can happen in the simulation with a log, beside what faults.py has."""

from __future__ import annotations

from bridge.protocol.chain import Frame, Origin
from bridge.protocol.events import ZERO, Lsn
from tests.model import faults
from tests.model.lanes import Lane, Member
from tests.model.log import Entry
from tests.model.simulation import Simulation


def _log(name: str, words: str) -> faults.Act:
    def act(simulation: Simulation) -> None:
        assert isinstance(simulation, Member)
        if getattr(simulation.site.log, name)(simulation.rng):
            simulation.counts[words] += 1

    act.__name__ = name
    return act


drop_frame = _log("drop", "frame dropped")
repeat_frames = _log("repeat", "frames repeated")
reorder_frames = _log("reorder", "frames out of order")
rewind_log = _log("rewind", "the log went back")
expire_frames = _log("expire", "the log's first frames expired")


def forget_log(simulation: Simulation) -> None:
    assert isinstance(simulation, Member)
    if simulation.site.log.forget():
        simulation.counts["the log forgot everything"] += 1


def switch_capture(simulation: Simulation) -> None:
    """One stream reads the table for a while."""
    if isinstance(simulation, Lane):
        faults.switch_capture(simulation)


def lagging_promotion(simulation: Simulation) -> None:
    """A standby that lacks only what was applied a moment ago takes over."""
    assert isinstance(simulation, Member)
    standby = simulation.source.clone()
    faults.emit(simulation)
    for _ in range(40):
        member = simulation.rng.choice(simulation.site.members)
        if member.bridges:
            member.step(member.bridges[0])
            faults.target_progress(member)
    faults.take_over(simulation, standby)


def crash_everything(simulation: Simulation) -> None:
    """Every process, as when all of it runs on one machine."""
    assert isinstance(simulation, Member)
    for member in simulation.site.members:
        for bridge in list(member.bridges):
            member.crash(bridge)


def huge(simulation: Simulation) -> None:
    """A transaction that comes in parts."""
    simulation.source.next_xid += -simulation.source.next_xid % 3
    simulation.emit(*(simulation.rng.choice((1, 2, -1)) for _ in range(6)))


def misroute(simulation: Simulation) -> None:
    """Frames of one partition come where another one's are."""
    assert isinstance(simulation, Member)
    entries = simulation.site.log.entries
    one, other = simulation.rng.sample(sorted(entries), 2)
    entries[other] += entries[one][-2:]
    simulation.counts["frames in another partition's place"] += bool(entries[one])


def other_division(simulation: Simulation) -> None:
    """A relay that divides the rows otherwise puts a frame into the same log."""
    assert isinstance(simulation, Member)
    source, log = simulation.source, simulation.site.log
    if source.relay is None:
        return
    origin = Origin(source.relay.incarnation, source.life, source.relay.partitions + 1)
    for partition, entries in log.entries.items():
        prev = entries[-1].frame.end if entries else ZERO
        if prev < source.flushed:
            log.publish(Entry(Frame(origin, partition, prev, Lsn(source.flushed)), ()))
            simulation.counts["a frame of another division"] += 1


def drop_slot_of_a_relay(simulation: Simulation) -> None:
    """Its connection is lost, and before it is back the slot is dropped. Rows are written before there is another."""
    slots = simulation.source.slots
    if slots:
        slot = slots.pop(simulation.rng.choice(sorted(slots)))
        slot.reader = None
        simulation.counts["the slot was dropped under its reader"] += 1
        faults.emit(simulation)


def brake(simulation: Simulation) -> None:
    """The slot retains more than it may, for some ticks."""
    assert isinstance(simulation, Member)
    simulation.site.shared["brake"] = simulation.rng.randint(1, 4)


def back_up(simulation: Simulation) -> None:
    """Copies of all servers, of one moment. The log is not among them."""
    assert isinstance(simulation, Member)
    lanes = simulation.site.lanes
    copies = simulation.site.shared.setdefault("backups", [])
    copies.append((simulation.source.clone(), [lane.target.clone() for lane in lanes]))
    del copies[:-4]


def restore_all(simulation: Simulation) -> None:
    assert isinstance(simulation, Member)
    copies = simulation.site.shared.get("backups")
    if not copies:
        return
    del copies[simulation.rng.randrange(len(copies)) + 1 :]
    source, targets = copies[-1]
    for lane, target in zip(simulation.site.lanes, targets, strict=True):
        lane.replace_target(target.clone())
        lane.target_copies.clear()  # they may be of a history that is no more
        lane.target_restored = True
        lane.ledger_wiped = target.ledger is None
    simulation.replace_source(source.clone().crash(), lost=True)
    simulation.source_copies.clear()
    simulation.counts["everything restored but the log"] += 1
    for _ in range(simulation.rng.choice((0, 3, 9))):
        faults.emit(simulation)


WORK: dict[faults.Act, float] = dict(faults.WORK)
_EXCLUDED = (
    faults.stranger,
    faults.another_source,
    faults.switch_capture,
)
FAULTS: dict[faults.Act, float] = {
    **{act: weight for act, weight in faults.FAULTS.items() if act not in _EXCLUDED},
    **{drop_frame: 2, repeat_frames: 2, reorder_frames: 2, rewind_log: 1, expire_frames: 1, forget_log: 0.7},
    **{switch_capture: 0.4, crash_everything: 0.3, drop_slot_of_a_relay: 0.7, brake: 0.4},
    **{huge: 1, misroute: 0.5, other_division: 0.3},
}
HISTORY: dict[faults.Act, float] = {
    **{act: weight for act, weight in faults.HISTORY.items() if act is not faults.lagging_promotion},
    lagging_promotion: 0.5,
    back_up: 2.5,
    restore_all: 0.5,
}
