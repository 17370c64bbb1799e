"""May this stream start, and go on from where its ledger says it is? Nothing is written before the answer.

A pure judgement over the facts of both servers. Every test compares identities, never mere presence: a slot, a
publication or a row that is there now proves nothing about what happened while nobody looked.
docs/guarantees.md, "Preflight".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bridge.errors import Halt, Retry, StandBy
from bridge.protocol.events import NOTHING, ZERO, Lsn, Snapshot, format_lsn
from bridge.protocol.evidence import UNMARKED, check_outbox, diverged, is_unmarked, witness_missing, witnessed
from bridge.protocol.facts import (
    Ledger,
    Mode,
    Pruned,
    Registration,
    SourceFacts,
    SourceIdentity,
    TargetFacts,
    same_publication,
)
from bridge.protocol.requests import Asking, ReadSource, ReadTarget, ask


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """The configuration of one stream. slot: the prefix; slots are named `<prefix>_<n>`."""

    stream: str
    slot: str
    session: str
    capture: Literal["slot", "poll", "auto"] = "slot"
    since: str | None = None  # first start only: earliest (None), a timestamp, or "infinity" for now
    has_xid: bool = True  # False: an outbox of the customer's own without xid: slot-only, no catch-up
    partitions: int | None = (
        None  # with a log: this is one of so many; `slot` is its relay's. None: a slot of its own
    )

    def slot_name(self, incarnation: int) -> str:
        return f"{self.slot}_{incarnation}"


def facts(settings: StreamSettings, ledger: Ledger) -> ReadSource:
    name = settings.slot_name(ledger.incarnation) if ledger.incarnation else None
    return ReadSource(name, ledger.witness_id, ledger.witness_xid)


def first_look(settings: StreamSettings, target: TargetFacts) -> ReadSource:
    """The source before the fence: who it is, and the slot that a bridge which works would read."""
    incarnation = target.ledger.incarnation if target.ledger else 0
    return ReadSource(settings.slot_name(incarnation or 1), None, None)


def check_identity(
    stream: str, target: TargetFacts, source: SourceFacts, registration: Registration | None
) -> None:
    """Does this ledger belong to this source? Asked before anything else: another source must neither stand by behind
    the stream's own bridge, as if it were to take over, nor fence it. Raises Halt, or Retry on a standby.

    A source that has no registration of the stream never had it, or was restored to a time before it: a cluster made
    from a copy may even have the identity of another. One that has the registration, and is not the source that the
    ledger knows, was copied or moved; it is a second one all the same while a bridge of the first is at work.
    """
    if source.in_recovery:
        raise _on_standby()
    ledger = target.ledger
    if ledger is None:
        return
    ours = belongs(ledger, source.identity)
    if ours and (registration is not None or ledger.snapshot_lsn == ZERO):
        return
    if target.busy or (registration is None and not (ours and ledger.database_oid is not None)):
        raise name_taken(stream, ledger, source.identity)
    if ours:
        raise _not_registered(ledger, ZERO)
    raise other_source(ledger, source.identity)


def belongs(ledger: Ledger, source: SourceIdentity) -> bool:
    """As far as the ledger says."""
    return ledger.system_identifier in (None, source.system) and ledger.database_oid in (None, source.oid)


def name_taken(stream: str, ledger: Ledger, source: SourceIdentity) -> Halt:
    """Two sources have one name for a stream."""
    return Halt(
        f"stream {stream} of this target belongs to another source: {ledger.owner}; this one is {source}. Nothing "
        "was changed here or there",
        reason="stream_name_taken",
        hint="give this one a name of its own: another source.slot in bridge.yaml (the stream is <slot>_<connection>), "
        "then: bridge install, and start the bridge. If the other source is gone for good: "
        f"bridge decommission {stream} --source-gone. If this one has the other's outbox by replication and takes its "
        "place: bridge recover --adopt-outbox --old-source DSN",
    )


def other_source(ledger: Ledger, source: SourceIdentity) -> Halt:
    """This one has the stream's registration, and is not where the ledger's positions are from."""
    if ledger.system_identifier != source.system:
        what = (
            f"this source is another cluster: its system identifier is {source.system}, the ledger has "
            f"{ledger.system_identifier}"
        )
    else:
        what = f"this source is another database: {source}, the ledger has {ledger.owner}"
    return Halt(
        what,
        reason="other_system",
        hint="point source.dsn back. An outbox that was moved here goes on exactly where it was: "
        "bridge recover --adopt-outbox; with another one, start again: bridge recover --accept-source. If the old one "
        "is still in use, this one is a second source: give it a source.slot of its own",
    )


def _on_standby() -> Retry:
    return Retry("the source is in recovery (a standby): waiting for a primary")


def stand_by(
    settings: StreamSettings, target: TargetFacts, source: SourceFacts, registration: Registration | None
) -> Asking[None]:
    """Do not fence a bridge that works; wait until it stops. This only avoids disturbance; the fence gives safety.
    source: of `first_look`."""
    if target.busy:
        raise StandBy(f"another bridge is applying stream {settings.stream} to this target")
    name = first_look(settings, target).slot
    if source.slot is None or settings.partitions is not None:  # with a log, the slot is the relay's
        return
    if registration is None and target.ledger is None:
        if (yield from ask(ReadTarget())).ledger is not None:
            raise StandBy(f"another bridge has just started stream {settings.stream}")
        if source.slot.ours:
            raise Halt(
                f"slot {name} exists, but neither the source nor the target knows stream "
                f"{settings.stream}: the slot belongs to something else",
                reason="slot_in_use",
                hint=f"choose another source.slot in bridge.yaml, or: select pg_drop_replication_slot('{name}')",
            )
        return
    if not source.slot.active or not source.slot.ours:
        return  # a slot of somebody else's that has our name: the next number is ours
    if source.slot.reader:
        raise Halt(
            f"slot {name} is being read by something that is no bridge: {source.slot.reader}",
            reason="slot_in_use",
            hint="end it (at the source): select pg_terminate_backend(active_pid) from pg_replication_slots "
            f"where slot_name = '{name}'",
        )
    raise StandBy(f"another bridge reads slot {name}")


def slot_wanted(settings: StreamSettings, source: SourceFacts) -> bool:
    if settings.capture == "poll":
        return False
    if source.slot_refused is None:
        return True
    if settings.capture == "auto":
        return False
    refused = source.slot_refused
    raise Halt(
        f"the source cannot provide a replication slot: {refused.message}",
        reason=refused.reason,
        hint=f"{refused.fix}   or set source.capture to poll, which needs no slot",
    )


@dataclass(frozen=True, slots=True)
class Judgement:
    """catch_up: the reason why the slot cannot continue, in a word; None: stream from `ledger`. unproven: the witness
    is gone, and the slot's WAL must show it before anything is applied."""

    ledger: Ledger
    catch_up: str | None
    forget_above: Lsn | None = None
    unproven: bool = False


def check_registration(registration: Registration | None, target: TargetFacts) -> None:
    """A registered stream belongs to one target database. Raises Halt."""
    if registration is None:
        return
    here = (target.system_identifier, target.database)
    if (registration.target_system, registration.target_database) != here:
        raise Halt(
            f"stream {registration.stream} is registered for another target: database "
            f"{registration.target_database!r} of system {registration.target_system}, "
            f"not {target.database!r} of system {target.system_identifier}",
            reason="other_target",
            hint="point the connection back, or declare this copy the target: bridge recover --accept-target",
        )


def check_layout(stream: str, divided: Sequence[str]) -> None:
    """A target's events are divided in one way at a time: another would apply all of them again. Raises Halt."""
    if divided:
        raise Halt(
            f"stream {stream} has no row in this target's ledger, which divides the same events in another way: "
            f"{', '.join(divided[:3])}{', ...' if len(divided) > 3 else ''}. Nothing was changed",
            reason="partitions_differ",
            hint="make it what the file says (scale.log, scale.partitions): bridge scale repartition; or put the file "
            "back, and restart or SIGHUP",
        )


def check_not_renamed(stream: str, former: Sequence[str]) -> None:
    """A stream that neither side knows is new, or is one of `former` whose name was changed. Raises Halt."""
    if not former:
        return
    old = former[0]
    raise Halt(
        f"stream {stream} is new, but {', '.join(former)} filled this target database from this outbox before, is not "
        "in this configuration and is served by no bridge: if a connection or source.slot was renamed, everything in "
        "the outbox would be applied again",
        reason="stream_renamed",
        hint=f"it is the same stream: bridge rename-stream {old} {stream}   or {old} has ended for good: bridge "
        f"decommission {old}   or another configuration has {old}: start its bridge",
    )


def judge(
    ledger: Ledger,
    source: SourceFacts,
    registration: Registration | None,
    *,
    slot_wanted: bool,
    has_xid: bool = True,
    partitions: int | None = None,
) -> Judgement:
    """Compare the ledger with the source. The registration must have been read after the fence. Raises Halt with a
    reason, or Retry on a standby."""
    _check_place(ledger, source, slot_wanted=slot_wanted)
    check_outbox(ledger, source, has_xid=has_xid)
    if not has_xid or (ledger.mode is Mode.STREAM and ledger.witness_xid == UNMARKED):
        # Which rows a snapshot shows is not known of rows without xids: only the slot has the position.
        ledger = replace(ledger, floor=NOTHING)
    if ledger.mode is Mode.NEW:
        fresh = replace(
            ledger.of_source(source.identity), timeline=source.timeline, publication=source.publication
        )
        check_not_pruned(ledger, registration, source.pruned)
        return Judgement(fresh, "new")
    ledger, reason, forget_above = _history(ledger, source, registration)
    ledger = ledger.of_source(source.identity)  # its name may be another, and an old ledger did not know it
    other, seen = None, source.slot.confirmed_flush if source.slot else ZERO
    if slot_wanted and partitions is not None:
        told = _told(source, registration)
        ledger = replace(ledger, safe_lsn=max(ledger.applied_lsn, min(ledger.safe_lsn, told)))
        other, seen = _log(ledger, source, partitions), min(seen, told)
    unproven = False
    if reason is None and not witnessed(ledger, source):
        unproven = seen < ledger.applied_lsn
        if (
            source.slot is None
            or (other or _slot(ledger, source, slot_wanted)) is not None
            or (unproven and source.slot.confirmed_flush >= ledger.applied_lsn)
        ):
            raise witness_missing("and no slot of ours has the WAL that would show it")
    reason = reason or other
    reason = reason or _slot(ledger, source, slot_wanted)
    if same_publication(ledger.publication, source.publication):
        ledger = replace(ledger, publication=source.publication)
    if reason is not None and has_xid and is_unmarked(ledger):
        raise Halt(
            f"the slot cannot continue ({reason}), and the table cannot take its place: the outbox got its column xid "
            "when this stream was already running, and which of the older rows were applied, the slot alone knew",
            reason="no_catch_up",
            hint="continue without the events that only the lost slot had: bridge recover --accept-source",
        )
    if reason is not None or source.slot is None:
        if has_xid:
            check_not_pruned(ledger, registration, source.pruned)
        return Judgement(ledger, reason, forget_above)
    # A stored advance of an idle slot must not let this session confirm what it has not received.
    safe = ledger.safe_lsn if partitions is not None else max(ledger.applied_lsn, source.slot.confirmed_flush)
    return Judgement(replace(ledger, safe_lsn=safe), None, unproven=unproven)


def _check_place(ledger: Ledger, source: SourceFacts, *, slot_wanted: bool) -> None:
    """Is this the source that the ledger knows, with the publication? Raises Halt, or Retry on a standby."""
    if source.in_recovery:
        raise _on_standby()
    if ledger.mode is not Mode.NEW and not belongs(ledger, source.identity):
        raise other_source(ledger, source.identity)
    if slot_wanted and source.publication is None:
        raise Halt(
            "the publication does not exist on the source, or does not publish every insert into the outbox "
            "(no row filter, no column list, publish_via_partition_root)",
            reason="publication_missing",
            hint="bridge install",
        )


def _history(
    ledger: Ledger, source: SourceFacts, registration: Registration | None
) -> tuple[Ledger, str | None, Lsn | None]:
    """Is what we applied still part of the source's history?"""
    reached = max(ledger.applied_lsn, ledger.snapshot_lsn)
    if source.timeline != ledger.timeline:
        switch = source.switch_points.get(ledger.timeline or 0)
        if switch is None:
            raise _promoted(
                f"the source is on timeline {source.timeline}, which does not descend from {ledger.timeline}"
            )
        ledger = replace(ledger, timeline=source.timeline)
        if switch < reached:
            if ledger.snapshot_lsn > switch:
                raise _promoted(
                    f"the source was promoted at {format_lsn(switch)}, before what this target "
                    f"has applied ({format_lsn(reached)}), and the last checkpoint's snapshot is "
                    "newer than the promotion"
                )
            if source.two_phase:
                raise _promoted(
                    f"the source was promoted at {format_lsn(switch)}, before what this target "
                    f"has applied ({format_lsn(reached)}); a transaction that was prepared before "
                    "and committed after it may be committed again here, and cannot be "
                    "distinguished from a new one with the same xid"
                )
            _in_registry(ledger, registration)
            # Applied events are gone from the source and their xids are used again.
            ledger = replace(ledger, applied_lsn=switch, safe_lsn=switch, witness_id=None, witness_xid=None)
            return ledger, "promoted_behind", switch
        if switch < ledger.safe_lsn:
            _in_registry(ledger, registration)
            return replace(ledger, safe_lsn=ledger.applied_lsn), "promoted", None
    elif source.flush_lsn < reached:
        raise Halt(
            f"the source's WAL ends at {format_lsn(source.flush_lsn)}, before {format_lsn(reached)}, which "
            "this target has applied: an older copy of the source was restored",
            reason="source_behind",
            hint="restore the source completely, or accept the loss: bridge recover --accept-source",
        )
    _in_registry(ledger, registration)
    return ledger, None, None


def _in_registry(ledger: Ledger, registration: Registration | None) -> None:
    """LSNs and the witness prove nothing about xids: on an older copy of the source, xids that are visible in our
    snapshots are assigned again. The registry's own position was written before we relied on them."""
    known = registration.reached if registration else ZERO
    if known < ledger.snapshot_lsn:
        raise _not_registered(ledger, known)


def _not_registered(ledger: Ledger, known: Lsn) -> Halt:
    return diverged(
        f"the source's registry has {format_lsn(known)} for this stream, but the target's "
        f"checkpoint is from {format_lsn(ledger.snapshot_lsn)}: the source was restored from "
        "a copy"
    )


def _promoted(message: str) -> Halt:
    return Halt(
        message,
        reason="promotion_diverged",
        hint="bridge prove shows the events that only the target has; then choose a way: bridge recover --help",
    )


def _slot(ledger: Ledger, source: SourceFacts, slot_wanted: bool) -> str | None:
    """Why the slot cannot continue from the ledger; None: it can."""
    slot = source.slot
    goal = ledger.next.lsn if ledger.next and ledger.next.from_slot else ledger.safe_lsn
    from_table = ledger.mode is Mode.CATCHUP
    reasons = (
        ("poll", not slot_wanted),
        ("from_poll", ledger.mode is Mode.POLL),
        ("slot_missing", slot is None),
        ("slot_lost", slot is not None and not slot.usable),
        ("publication_changed", not same_publication(ledger.publication, source.publication)),
        (
            "slot_advanced",
            slot is not None and slot.confirmed_flush > (goal if from_table else ledger.safe_lsn),
        ),
        ("catchup", from_table),
    )
    return next((reason for reason, holds in reasons if holds), None)


def _log(ledger: Ledger, source: SourceFacts, partitions: int) -> str | None:
    """Why the relay's chain cannot continue from the ledger; None: it can."""
    relay = source.relay
    if relay is None or relay.incarnation != ledger.incarnation or relay.partitions != partitions:
        return "other_chain"
    return None


def _told(source: SourceFacts, registration: Registration | None) -> Lsn:
    """How far this source knows that the stream has received the relay's frames. Others move a relay's slot, and
    safe_lsn may be of a history that the source has lost: where the slot stands says nothing about this stream."""
    if registration is None or source.slot is None or registration.confirmed is None:
        return ZERO
    its = f"{registration.relay}_{registration.incarnation}"
    return registration.confirmed if its == source.slot.name else ZERO


def is_first_catch_up(ledger: Ledger, registration: Registration | None) -> bool:
    """Has this stream never been past its first catch-up? The registry, read after the fence and before we write to
    it, is more reliable than a target that may have been restored."""
    if registration is None:
        return ledger.floor == NOTHING
    return ledger.floor == registration.floor == NOTHING and registration.reached <= ledger.snapshot_lsn


def check_not_pruned(ledger: Ledger, registration: Registration | None, pruned: Pruned | None) -> None:
    """Reading the table needs every row since the floor: halt if some may have been pruned. A stream in its first
    catch-up takes the rows that exist, and an operator may accept a gap."""
    floor = ledger.floor
    if pruned is None or (ledger.accepted_gap or 0) >= pruned.greatest_xid:
        return
    if not is_first_catch_up(ledger, registration) and may_miss(floor, pruned):
        raise Halt(
            f"rows that this target has not seen may have been pruned from the outbox (up to xid "
            f"{pruned.greatest_xid}; the target's floor is {floor.xmin}:{floor.xmax})",
            reason="outbox_pruned",
            hint="restore a newer backup of the target, or accept the gap: bridge recover --accept-gap",
        )


def may_miss(floor: Snapshot, pruned: Pruned) -> bool:
    """May prune have deleted rows that a target with this floor has not seen?"""
    end = min(pruned.floor.xmax, pruned.greatest_xid + 1)
    if floor.xmax < end:
        return True
    return any(pruned.floor.shows(xid) and xid <= pruned.greatest_xid for xid in floor.xip)
