"""What can happen in the simulation with a log, beside what faults.py has."""

from __future__ import annotations

from bridge.protocol.chain import Frame, Origin
from bridge.protocol.events import ZERO, Lsn
from bridge.protocol.requests import FindLook, Observe, Read
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
        _crash(simulation)


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


# --- stories, told faster than chance would ----------------------------------------------------------


def _steps(member: Member, count: int) -> None:
    """Its newest process alone."""
    for _ in range(count):
        if member.halted is None and not member.bridges:
            member.start_bridge()
        if member.bridges:
            member.step(member.bridges[-1])
            faults.target_progress(member)


def _crash(member: Member) -> None:
    for bridge in list(member.bridges):
        member.crash(bridge)


def lose_a_part(simulation: Simulation) -> None:
    """One of the parts of a transaction is lost in the log."""
    assert isinstance(simulation, Member)
    for entries in simulation.site.log.entries.values():
        parts = [at for at, entry in enumerate(entries) if entry.frame.is_open and entry.frame.offset]
        if parts:
            del entries[parts[-1]]
            simulation.counts["a part was lost"] += 1


def publication_changed_under_a_relay(simulation: Simulation) -> None:
    """A row is withheld. Before the relay looks at the publication, a stream begins and the relay reads past it."""
    assert isinstance(simulation, Member)
    relays, lane = simulation.site.members[-1], simulation.rng.choice(simulation.site.lanes)
    reading = [bridge for bridge in relays.bridges if isinstance(bridge.request, Read)]
    if not reading or simulation.source.identity() is None:
        return
    _crash(lane)
    withheld = simulation.source.begin()
    faults.toggle_publish(simulation)
    simulation.insert(withheld, -1)
    simulation.insert(withheld, -1)
    faults.toggle_publish(simulation)
    _steps(lane, 60)
    if withheld.xid not in simulation.source.running:
        return
    simulation.record(withheld)
    simulation.source.leave(withheld)
    simulation.emit(1, 2, -1, -1)
    for _ in range(30):
        if reading[0] not in relays.bridges or isinstance(reading[0].request, Observe):
            break
        relays.step(reading[0])
    _steps(lane, 60)


def source_restored_amid_a_join(simulation: Simulation) -> None:
    """A copy of the source is from between a relay's look and the stream that found it."""
    assert isinstance(simulation, Member)
    relays = simulation.site.members[-1]
    joining = [
        lane
        for lane in simulation.site.lanes
        if any(isinstance(bridge.request, FindLook) for bridge in lane.bridges)
    ]
    if not joining:
        return
    lane = joining[0]
    hidden = simulation.source.begin()  # what is not visible holds the look's position back
    simulation.insert(hidden, -1)
    simulation.record(hidden)
    _steps(lane, 8)
    copy = simulation.source.clone()
    for _ in range(3):
        simulation.emit(1, 2, -1)
    _steps(relays, 24)
    if hidden.xid in simulation.source.running:
        simulation.source.leave(hidden)
    for _ in range(40):
        ledger = lane.target.ledger
        if ledger is not None and ledger.next is not None and ledger.next.from_slot:
            simulation.counts["a copy from amid a join"] += 1
            break
        _steps(lane, 1)
    _crash(lane)
    simulation.replace_source(copy.crash(), lost=True)
    simulation.source_copies.clear()
    simulation.emit(1, 2, -1)
    simulation.source.other_wal(4000)


def source_restored_behind_an_idle_stream(simulation: Simulation) -> None:
    """A stream's safe_lsn is of a history that is lost; the slot goes past it without the stream."""
    assert isinstance(simulation, Member)
    site, lane = simulation.site, simulation.rng.choice(simulation.site.lanes)
    relays = site.members[-1]
    for other in site.lanes:
        if other is not lane:
            _crash(other)
    copy = simulation.source.clone()
    simulation.source.other_wal(400)
    for _ in range(12):
        _steps(relays, 8)
        _steps(lane, 6)
    _crash(lane)
    simulation.replace_source(copy.crash(), lost=True)
    simulation.source_copies.clear()
    for _ in range(3):
        simulation.emit(1, 2, -1, -1)
    for _ in range(20):
        brake(simulation)
        _steps(relays, 12)
        for other in site.lanes:
            if other is not lane:
                _steps(other, 8)
    simulation.source.other_wal(400)


def one_stream_given_up_and_back(simulation: Simulation) -> None:
    """It does not run, the brake goes past it, and it runs again."""
    assert isinstance(simulation, Member)
    site, lane = simulation.site, simulation.rng.choice(simulation.site.lanes)
    for runs, brakes in ((False, 0), (False, 2), (True, 0), (False, 0)):
        site.shared["brake"] = brakes
        if not runs:
            _crash(lane)
        for _ in range(12):
            faults.emit(simulation)
            _steps(site.members[-1], 8)
            for other in site.lanes:
                if other is not lane or runs:
                    _steps(other, 10)


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
    **{huge: 1, misroute: 0.5, other_division: 0.3, lose_a_part: 0.5},
    **{publication_changed_under_a_relay: 0.2, one_stream_given_up_and_back: 0.1},
}
HISTORY: dict[faults.Act, float] = {
    **{act: weight for act, weight in faults.HISTORY.items() if act is not faults.lagging_promotion},
    lagging_promotion: 0.5,
    back_up: 2.5,
    restore_all: 0.5,
    source_restored_amid_a_join: 0.3,
    source_restored_behind_an_idle_stream: 0.2,
}
