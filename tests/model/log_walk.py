"""Random walks of the simulation with a log, each ending at rest with the promise checked for every partition."""

from __future__ import annotations

from collections import Counter
from random import Random

from bridge.protocol.facts import Mode
from tests.model import checks, faults, log_faults
from tests.model.lanes import Lane, Member, Site
from tests.model.relays import Relays
from tests.model.simulation import Bridge

MUST_HAPPEN = (
    *("act failed", "commit answer lost", "bridge crashed", "second bridge beside a live one"),
    *("died with a batch in flight", "zombie's batch fenced", "target crashed", "pruned"),
    *("target restored to an older copy", "slot dropped", "the slot was dropped under its reader"),
    *("slot advanced by somebody", "slot recreated by somebody", "slot invalidated", "capture switched"),
    *("publication toggled", "publication dropped", "publication recreated"),
    *("rows that the publication withheld", "a row moved to another partition"),
    *("source crashed", "confirmed_flush went back", "source restored from a disk copy"),
    *("promoted with a failover slot", "promoted without a slot", "everything restored but the log"),
    *("committed before an older xid", "decodable before it is visible", "prepared transaction committed"),
    *("a relay's incarnation began", "a relay read again", "asked the relay to read again"),
    *("frame: take", "frame: skip", "frame: gap", "frame: void", "a frame overlaps what was taken"),
    *("a part was taken", "a part was lost", "a transaction in parts", "frame dropped", "frames repeated"),
    *(
        "frames out of order",
        "the log went back",
        "the log's first frames expired",
        "the log lied about its end",
    ),
    *("the log forgot everything", "a frame did not get into the log", "frames in another partition's place"),
    *("a frame of another division", "the slot went past a stream", "the slot followed the streams"),
    *("ended: wal_brake", "ended: other_chain", "ended: slot_advanced", "ended: publication_changed"),
    *("ended: fenced", "ended: history_diverged", "ended: stand_by", "waited for a look"),
)


def new_site(rng: Random, focus: tuple[faults.Act, ...] = ()) -> tuple[Site, dict[faults.Act, float]]:
    """Every walk has its own settings and its own mixture of faults; those in `focus` happen often."""
    site = Site(rng, rng.choice((2, 2, 3)))
    since = rng.choice((None, None, None, None, "infinity", "20"))
    for target in ("a", "b")[: rng.choice((1, 1, 2))]:
        for partition in range(1, site.partitions + 1):
            Lane(site, target, partition, since=since)
    relays = Relays(site)
    relays.failing = rng.choice((0.0, 0.01, 0.05))
    relays.two_phase = rng.random() < 0.5
    relays.stopping = rng.choice((0.0, 0.01))
    relays.source.decoder_raises = rng.random() < 0.5
    relays.source.partitioned = rng.random() < 0.5
    if rng.random() < 0.1:
        site.lanes[0].capture = "poll"
    acts = dict(log_faults.WORK)
    severity = rng.choice((0.0, 0.5, 1.0, 2.0))
    for act, weight in log_faults.FAULTS.items():
        if rng.random() < 0.7:
            acts[act] = weight * severity
    if rng.random() < 0.35:
        acts |= log_faults.HISTORY
    acts |= dict.fromkeys(focus, 4.0)
    return site, acts


def drive(site: Site, acts: dict[faults.Act, float], steps: int) -> None:
    """Interleave relays, streams, producers and faults."""
    rng = site.rng
    suspended: Bridge | None = None
    for act in rng.choices(list(acts), list(acts.values()), k=steps):
        for member in site.members:
            if not member.bridges and member.halted is None:
                member.start_bridge()
        for _ in range(rng.choice((0, 2, 4, 8, 16))):
            members = [each for each in site.members if each.bridges]
            if not members:
                break
            relays = site.members[-1]
            member = relays if relays in members and rng.random() < 0.3 else rng.choice(members)
            bridge = rng.choice(member.bridges)
            if rng.random() < 0.01:
                suspended = bridge
            elif rng.random() < 0.01:
                suspended = None
            if bridge is not suspended:
                member.step(bridge)
        act(rng.choice(site.members))


def rest(site: Site) -> None:
    """Faults are over: transactions end, one process of each runs until it has nothing to do. Then the promise."""
    relays = site.members[-1]
    relays.failing, relays.stopping, relays.calm = 0.0, 0.0, True
    end_what_runs(site)
    for _ in range(2):
        faults.recreate_publication(relays)
        run_until_idle(site)
        for lane in site.lanes:
            if lane.halted is None:
                checks.promise(lane)
                ledger = lane.target.ledger
                checks.require(
                    ledger is not None and ledger.mode is Mode.STREAM, "no place in the chain:", ledger
                )
        relays.emit(1, 2, -1, -1)
        relays.source.flush()


def end_what_runs(site: Site) -> None:
    """Transactions end, and what was in flight; one process of each member may stay, and hears nothing of it."""
    rng, relays = site.rng, site.members[-1]
    for member in site.members:
        if member.capture == "poll":
            member.capture = "slot"
            crash_all(member)
        stays = rng.random() < 0.5  # nobody tells it that the faults are over
        for bridge in member.bridges[stays:]:
            member.crash(bridge)
        while member.orphans:
            sent = member.orphans.pop()
            if member.chance(0.5):
                member.progress(sent)
                member.progress(sent)
            member.target.roll_back(sent)
    while relays.dead_readers:
        faults.reader_noticed(relays)
    for transaction in list(relays.source.running.values()):
        if transaction.recorded:
            relays.source.leave(transaction)
        elif relays.chance(0.5):
            relays.record(transaction)
            relays.source.leave(transaction)
        else:
            relays.source.abort(transaction)
    relays.source.flush()


def crash_all(member: Member) -> None:
    for bridge in list(member.bridges):
        member.crash(bridge)


def run_until_idle(site: Site, limit: int = 20000) -> None:
    working = [member for member in site.members if member.halted is None]
    for member in working:
        for bridge in member.bridges:
            bridge.idle = 0
    for number in range(limit):
        member = working[number % len(working)]
        faults.reader_noticed(member)
        if not member.bridges:
            member.start_bridge()
        member.step(member.bridges[0])
        if member.halted is not None:
            working.remove(member)
        if all(map(is_idle, working)):
            return
    raise checks.Violation(
        f"never came to rest: {[(m.stream, b.request, b.idle) for m in working for b in m.bridges]} "
        f"{[lane.target.ledger for lane in site.lanes]}"
    )


def is_idle(member: Member) -> bool:
    return bool(member.bridges) and all(
        bridge.idle > 12 and bridge.sent is None and member.reads_on(bridge) for bridge in member.bridges
    )


def walk_log(
    seed: str, counts: Counter[str] | None = None, steps: int = 120, focus: tuple[faults.Act, ...] = ()
) -> Site:
    """One walk. Raises checks.Violation."""
    site, acts = new_site(Random(seed), focus)
    try:
        drive(site, acts, steps)
        rest(site)
    finally:
        if counts is not None:
            counts.update(site.counts)
            counts["steps"] += site.shared["clock"]
            counts["walks"] += 1
            counts["events"] += site.shared["serial"]
            counts["walks that ended in a halt"] += any(lane.halted is not None for lane in site.lanes)
    return site
