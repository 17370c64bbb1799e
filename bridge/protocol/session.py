"""The exactly-once protocol of one stream, from fence to confirmation, as one pure generator.

It yields requests (requests.py) and is sent answers. It never waits, reads a clock or touches a socket, so the model
drives the same code that runs in production. There is no error handling on purpose: a request that fails ends the
session, and the next session starts at the fence. A crash and an error are handled in the same way.
docs/guarantees.md has the argument and the invariants I1 to I6.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from typing import Any

from bridge.errors import Halt, Retry, StandBy
from bridge.protocol import requests as to
from bridge.protocol.chain import Origin, covers
from bridge.protocol.events import (
    NOTHING,
    NULL,
    ZERO,
    Batch,
    Done,
    Lsn,
    Snapshot,
    after,
    intersection,
    located,
)
from bridge.protocol.evidence import UNMARKED, check_strays, find_witness, foreign_xids, not_in_wal
from bridge.protocol.facts import BEFORE_ALL, Goal, Ledger, Mode, Registration, SourceFacts, TargetFacts
from bridge.protocol.preflight import (
    StreamSettings,
    check_identity,
    check_layout,
    check_not_pruned,
    check_not_renamed,
    check_registration,
    facts,
    first_look,
    is_first_catch_up,
    judge,
    slot_wanted,
    stand_by,
)
from bridge.protocol.requests import Asking, Observation, Request, ask

__all__ = ["POLLED", "session"]

POLLED = 0
"""The incarnation under which `applied` lists rows that polling applied while a slot was being created."""


def session(settings: StreamSettings) -> Generator[Request[Any], Any, None]:
    """One life of a stream: fence, preflight, catch up, then stream (or poll) until asked to stop."""
    target = yield from ask(to.ReadTarget())
    registration = yield from ask(to.ReadRegistration())
    check_registration(registration, target)
    source = yield from ask(first_look(settings, target))
    check_identity(settings.stream, target, source, registration)
    if source.moving:
        raise StandBy("the streams of this source are being divided anew: bridge scale repartition")
    yield from stand_by(settings, target, source, registration)
    if target.ledger is None:
        check_layout(settings.stream, target.divided)
    if registration is None and target.ledger is None:
        check_not_renamed(settings.stream, (yield from ask(to.ReadFormer())))
    fence = to.Fence(settings.session, source.identity, create=registration is None, since=settings.since)
    ledger = yield from ask(fence)
    if ledger is None and registration is None:
        raise Retry("another division of the stream has begun in this target", reason="partitions_differ")
    if ledger is None:
        raise Halt(
            f"stream {settings.stream} is registered at the source, but this target has no ledger "
            "row for it: the ledger was wiped, or this is another database",
            reason="ledger_missing",
            hint="restore the ledger with the target, or start again: bridge recover --restart-stream",
        )
    registration = yield from ask(to.ReadRegistration())
    source = yield from ask(facts(settings, ledger))
    from_slot = slot_wanted(settings, source)
    judgement = judge(
        ledger,
        source,
        registration,
        slot_wanted=from_slot,
        has_xid=settings.has_xid,
        partitions=settings.partitions,
    )
    known = ledger
    if not judgement.unproven:  # another source must not leave its timeline in the ledger
        known = judgement.ledger
        yield from ask(to.Save(ledger, known, forget_above=judgement.forget_above))
    life = Life(settings, known, target, registration)
    # From here on prune respects our floor. If the stream may have been further before, the registry must keep that
    # fact when it takes our floor: it stores a position one above ours.
    first = is_first_catch_up(ledger, registration)
    yield from life.register(ZERO if first else Lsn(ledger.snapshot_lsn + 1))
    if judgement.catch_up is not None and settings.has_xid:
        check_not_pruned(ledger, registration, (yield from ask(to.ReadPruned())))
    if not from_slot:
        yield from life.poll()
        return
    if judgement.catch_up is not None:
        yield from life.catch_up(source, judgement.catch_up)
    yield from life.stream(source, unproven=judgement.ledger if judgement.unproven else None)


@dataclass(slots=True)
class _Look:
    """The state of the stream loop between two observations of the source."""

    position: Lsn  # everything up to here was received and handed out
    inside: bool = False  # chunks of a huge transaction are open in the target
    dirty: bool = True  # events were applied since the candidate was read
    candidate: Observation | None = None  # becomes the floor once its LSN is covered
    steps: deque[Asking[None]] = field(default_factory=deque)  # what is left of the last look


class Life:
    """One session's operations on the ledger; `ledger` is the row that is durable in the target."""

    def __init__(
        self,
        settings: StreamSettings,
        ledger: Ledger,
        target: TargetFacts,
        registration: Registration | None,
    ) -> None:
        self.settings = settings
        self.ledger = ledger
        self.target = target
        self.holder = registration.session if registration else None  # of the row in the registry
        self.sent: Ledger | None = None  # becomes `ledger` when what was sent is durable
        self.held: Snapshot | None = None  # the floor before a slot is made: its snapshot shows no less
        # What prune may take for applied. Of an outbox without xids the ledger has no floor; its table is not pruned.
        self.passed = registration.floor if registration else NOTHING
        self.shared = settings.partitions is not None  # its rows come over a log: the slot is a relay's

    # --- the ledger ---------------------------------------------------------------------------

    def save(self, after: Ledger, *, thin: Snapshot | None = None) -> Asking[None]:
        """Write the row while no batch is in flight. thin: rows visible in this snapshot need not be listed."""
        yield from ask(to.Save(self.ledger, after, thin=thin))
        self.ledger = after

    def apply(
        self,
        batch: Batch,
        after: Ledger,
        *,
        list_as: int | None = None,
        thin: Snapshot | None = None,
        reached: Lsn | None = None,
    ) -> Asking[None]:
        """Plan and encode while the previous commit is in flight, wait for that commit, then send. reached: the
        stream's position with it."""
        yield from ask(to.Prepare(batch))
        yield from self.settle()
        changes: dict[str, Any] = {} if reached is None else {"applied_lsn": reached, "safe_lsn": reached}
        last = next((event for event in reversed(batch.events) if event.id != NULL), None)
        if last is not None:
            changes |= {"witness_id": last.id.decode(), "witness_xid": int(last.xid)}
        after = replace(after, **changes)
        yield from ask(to.Apply(batch, self.ledger, after, list_as=list_as, thin=thin))
        if batch.whole:
            self.sent = after

    def settle(self) -> Asking[None]:
        if self.sent is not None:
            yield from ask(to.Settle())
            self.ledger, self.sent = self.sent, None

    def register(self, reached: Lsn = ZERO) -> Asking[None]:
        """Register this stream's position at the source, for prune and for the next start. reached: the ledger will
        rely on a snapshot that was taken before this position."""
        incarnation, goal = self.ledger.incarnation, self.ledger.next
        floor = (self.held or self.ledger.floor) if self.settings.has_xid else self.passed
        if goal is not None and goal.from_slot:  # the next floor may be an older one
            floor = intersection([floor, goal.snapshot])
        streams = incarnation and self.ledger.mode is not Mode.POLL
        registration = Registration(
            stream=self.settings.stream,
            target_system=self.target.system_identifier,
            target_database=self.target.database,
            slot=self.settings.slot_name(incarnation) if streams and not self.shared else None,
            floor=floor,
            witness_id=self.ledger.witness_id,
            reached=max(reached, self.ledger.snapshot_lsn),
            session=self.settings.session,
            relay=self.settings.slot if streams and self.shared else None,
            incarnation=incarnation if streams and self.shared else 0,
        )
        yield from ask(to.Register(registration, self.holder))
        self.holder = self.settings.session

    # --- from the table -----------------------------------------------------------------------

    def catch_up(self, source: SourceFacts, reason: str) -> Asking[None]:
        """Catch up until the floor meets a slot: afterwards the slot alone delivers the missing events."""
        if not self.settings.has_xid:
            yield from self.without_table(source, reason)
            return
        slot_good = reason == "catchup"  # the slot that the stored goal came with starts where it did
        while True:
            if (goal := self.ledger.next) is not None:
                streams = goal.from_slot and slot_good
                yield from self.finish(goal, Mode.STREAM if streams else Mode.CATCHUP)
                if streams:
                    return
            if self.shared:
                yield from self.join(source)
            else:
                yield from self.new_slot(source, poll=True)
            slot_good = True

    def new_slot(self, source: SourceFacts, *, poll: bool) -> Asking[Goal]:
        """Create a slot. Its name is durable before the slot exists, and its snapshot is durable before it is read.
        poll: events flow from the table while the slot waits for open transactions."""
        old = self.ledger
        number = old.incarnation + 1
        while self.settings.slot_name(number) in source.taken:
            number += (
                1  # the name is another's: a slot's name is the cluster's, the registry is the database's
            )
        after = replace(old, mode=Mode.CATCHUP, incarnation=number, publication=source.publication)
        yield from self.save(after)
        yield from self.register()
        if old.incarnation:
            yield from ask(to.DropSlot(self.settings.slot_name(old.incarnation)))
        self.held = self.ledger.floor
        yield from ask(to.BeginSlot(self.settings.slot_name(number)))
        while (made := (yield from ask(to.SlotMade()))) is None:
            if poll:
                yield from self.poll_once(Mode.CATCHUP, listing=True)
        lsn, snapshot = made
        goal = Goal(snapshot, lsn, from_slot=True)
        yield from self.register(lsn)
        yield from self.save(replace(self.ledger, next=goal))
        return goal

    def join(self, source: SourceFacts) -> Asking[None]:
        """Find a place in the relay's chain. What one of its looks shows is the goal: afterwards the chain brings the
        rest, from where that look was. Events flow from the table until there is one.

        A goal must show whatever the floor shows. So once the relay is heard, the floor rises no more than to goals
        before its next look, and what is applied above it is listed.
        """
        known: int | None = None
        while True:
            seen = yield from ask(to.FindLook(self.origin(source, known or 0)))
            relay, look = seen.relay, seen.look
            if relay is None or relay.partitions != self.settings.partitions:
                look = None
            elif relay.incarnation != known:
                known, look = relay.incarnation, None
                after = replace(self.ledger, incarnation=known, publication=relay.publication)
                yield from self.save(replace(after, mode=Mode.CATCHUP))
                yield from self.register()
            if look is None:
                self.held = None
            elif self.held is None:
                self.held = self.ledger.floor
            elif covers(look.snapshot, self.held):
                break
            yield from self.poll_once(Mode.CATCHUP, listing=self.held is not None)
        yield from self.register(look.insert_lsn)
        relied = max(self.ledger.floor_lsn, look.insert_lsn)
        goal = Goal(look.snapshot, look.lsn, from_slot=True)
        yield from self.save(replace(self.ledger, floor_lsn=relied, next=goal))
        yield from ask(to.Confirm(look.lsn))  # what is before it comes from the table

    def origin(self, source: SourceFacts, incarnation: int) -> Origin:
        """Of the frames that say something about this source."""
        return Origin(incarnation, source.life, self.settings.partitions or 1)

    def without_table(self, source: SourceFacts, reason: str) -> Asking[None]:
        """An outbox without xids: a new stream starts with its slot; after a lost slot an operator must decide."""
        if reason not in ("new", "catchup"):
            raise Halt(
                f"the slot cannot continue ({reason}), and the outbox table has no xid column, "
                "which catch-up needs",
                reason="no_catch_up",
                hint="continue without the events that only the lost slot had: bridge recover "
                "--accept-source (bridge doctor shows how to add xid)",
            )
        goal = yield from self.new_slot(source, poll=False)
        yield from self.save(replace(_raised(self.ledger, goal, Mode.STREAM), floor=NOTHING))

    def finish(self, goal: Goal, mode: Mode, *, listing: bool = False) -> Asking[None]:
        """Apply the rows that are visible in the goal and not yet applied; then the goal becomes the floor. A stored
        goal is always finished before another one is stored.

        listing: see poll_once. (A session that resumes here need not list, because its slot is created later than
        this goal.)
        """
        while goal.from_slot and (yield from ask(to.StillRunning(goal.snapshot))):
            pass  # WAL runs ahead of visibility
        floor, since = self.ledger.floor, self.ledger.since
        done = Done((yield from ask(to.ReadApplied())), floor)
        seq, more, inside, sent = goal.seq, True, False, False
        while more:
            missing = yield from self.missing(to.ReadMissing(floor, goal.snapshot, seq, since, inside))
            seq, more, inside = missing.last_seq, missing.more, not missing.batch.whole
            batch = done.without(located(missing.batch, goal.lsn))
            if batch.events or sent:
                after = replace(self.sent or self.ledger, next=replace(goal, seq=seq))
                list_as = POLLED if listing else None
                yield from self.apply(batch, after, list_as=list_as)
                sent = inside  # chunks of one seq are open in the target
        yield from self.settle()
        thin = None if listing else goal.snapshot
        yield from self.save(_raised(self.ledger, goal, mode), thin=thin)
        self.held = None if goal.from_slot else self.held
        yield from self.register()

    def missing(self, request: to.ReadMissing) -> Asking[to.MissingRows]:
        """Rows of the table; none of them before every row of it has an xid that a snapshot can place."""
        missing = yield from ask(request)
        if missing.foreign is not None:
            raise foreign_xids(missing.foreign)
        return missing

    def poll(self) -> Asking[None]:
        """Poll: capture without a slot, from snapshot to snapshot, until asked to stop."""
        if (goal := self.ledger.next) is not None:
            yield from self.finish(goal, Mode.POLL)
        if self.ledger.mode is not Mode.POLL:
            incarnation = self.ledger.incarnation
            yield from self.save(replace(self.ledger, mode=Mode.POLL))
            if incarnation and not self.shared:
                yield from ask(to.DropSlot(self.settings.slot_name(incarnation)))
        yield from self.register()
        while True:
            more = yield from self.poll_once(Mode.POLL)
            if not more and (yield from ask(to.Wait())):
                return

    def poll_once(self, mode: Mode, *, listing: bool = False) -> Asking[bool]:
        """Apply everything that is visible now and not in the floor. True: there were rows.

        listing: a slot is being created whose snapshot may be older than this one, so list the applied rows and thin
        nothing.
        """
        snapshot, lsn = yield from ask(to.TakeSnapshot())
        goal = Goal(snapshot, lsn)
        before = self.ledger
        done = Done((yield from ask(to.ReadApplied())), before.floor)
        missing = yield from self.missing(to.ReadMissing(before.floor, snapshot, BEFORE_ALL, before.since))
        batch = done.without(located(missing.batch, lsn))
        if not missing.batch.events and before.since is None:
            return False
        yield from self.register(lsn)
        thin, list_as = (None, POLLED) if listing else (snapshot, None)
        if not batch.events and not missing.more:  # a slot brought it all; or, for a stream that starts
            yield from self.save(_raised(before, goal, mode), thin=thin)  # now, what is there is not its own
            return False
        if missing.more:
            yield from self.save(replace(before, mode=mode, next=goal))
            yield from self.finish(goal, mode, listing=listing)
            return True
        after = _raised(before, goal, mode)
        yield from self.apply(batch, after, list_as=list_as, thin=thin)
        yield from self.settle()
        return True

    # --- from the slot ------------------------------------------------------------------------

    def stream(self, source: SourceFacts, *, unproven: Ledger | None = None) -> Asking[None]:
        """Stream transactions in commit order, one target transaction per batch. The next batch is read and planned
        while the previous one commits.

        unproven: the ledger to go on from, of a history whose witness is not in the table. Then start where the slot
        is, before applied_lsn, and write nothing before the stream has brought the witness again.
        """
        incarnation = self.ledger.incarnation
        applied = self.ledger.applied_lsn
        # A slot begins where it is confirmed to; a log may not.
        start = self.ledger.safe_lsn if self.shared else applied
        if (
            unproven is not None
            and (slot := (yield from ask(facts(self.settings, self.ledger))).slot) is not None
        ):
            start = min(applied, slot.confirmed_flush)
        origin = self.origin(source, incarnation) if self.shared else None
        yield from ask(to.OpenStream(self.settings.slot_name(incarnation), start, origin))
        # Nobody can move the slot now that we hold it. Before, another session could: START_REPLICATION would skip
        # ahead.
        source = yield from ask(facts(self.settings, self.ledger))
        slot = source.slot
        if slot is None or slot.confirmed_flush > self.ledger.safe_lsn:
            raise Retry("the slot was moved between preflight and start", reason="slot_advanced")
        # A slot brings nothing again that it brought before applied_lsn. Into a chain, a stream may come back earlier.
        ours = None if self.shared else incarnation
        listed = yield from ask(to.ReadApplied(except_incarnation=ours))
        done = Done(listed, self.ledger.floor)
        look = _Look(start)
        while True:
            received = yield from ask(to.Receive(wait=look.inside or not look.steps))
            if received.settled:
                yield from self.settle()
            if received.gap:
                yield from self.heal(look)
            if received.batch is not None and unproven is not None:
                if find_witness(received.batch, self.ledger):
                    yield from self.save(unproven)
                    unproven = None
                received = replace(received, batch=after(received.batch, applied))
            elif self.shared:
                received = _beyond(received, look.position)
            if unproven is not None and received.position >= applied:
                raise not_in_wal(self.ledger)
            if (batch := received.batch) is not None:
                yield from self.judge_strays(batch, partitioned=source.partitioned)
                yield from self.bring(done.without(batch) if self.settings.has_xid else batch, look)
            look.position = max(look.position, received.position)  # a frame that overlaps goes back
            if unproven is None:
                yield from self.look_on(look, tick=received.tick, stop=received.stop)
            if received.stop:
                return

    def look_on(self, look: _Look, *, tick: bool, stop: bool) -> Asking[None]:
        """One step of a look at the source; before the end, a whole one. Not while the target's transaction is open."""
        if look.inside:
            return
        while look.steps:
            yield from look.steps.popleft()
            if not stop:
                return
        if tick or stop:
            yield from self.look_at_source(look)
        while stop and look.steps:
            yield from look.steps.popleft()

    def heal(self, look: _Look) -> Asking[None]:
        """Rows of the log are missing: the relay reads them from its slot again, unless the slot is past them."""
        slot = (yield from ask(facts(self.settings, self.ledger))).slot
        if slot is None or slot.confirmed_flush > look.position:
            raise Retry(
                "rows are missing in the log, and the relay's slot is past them: catching up from the table",
                reason="log_gap",
            )
        yield from ask(to.AskAgain(look.position))

    def judge_strays(self, batch: Batch, *, partitioned: bool) -> Asking[None]:
        """Rows that say another xid than their transaction's: applied before, or nobody knows."""
        if not batch.strays:
            return
        yield from self.settle()
        done = Done((yield from ask(to.ReadApplied())), self.ledger.floor)
        check_strays(batch.strays, done, may_move=partitioned and not batch.replicated)

    def bring(self, batch: Batch, look: _Look) -> Asking[None]:
        """Send what is not applied yet."""
        look.inside = yield from self.take(batch, inside=look.inside)
        look.dirty = look.dirty or bool(batch.events)

    def take(self, batch: Batch, *, inside: bool) -> Asking[bool]:
        """Send one batch. `inside`, and the returned value: chunks of a huge transaction are open in the target."""
        if not batch.events and not inside:
            return False
        list_as = self.ledger.incarnation if self.settings.has_xid else None
        reached = batch.end_lsn if batch.whole else None
        yield from self.apply(batch, self.sent or self.ledger, list_as=list_as, reached=reached)
        return not batch.whole

    def look_at_source(self, look: _Look) -> Asking[None]:
        """At a tick: is the publication unchanged, may the floor rise, and what may the slot be told? What follows is
        left to `look.steps`: between two of them, events that have come go first.

        The check runs after `position` was received, so it covers that position. The floor rises to a snapshot S
        when everything up to L, a WAL position read after S, has been received, applied and covered.
        """
        seen = yield from ask(to.Observe(look.position))
        if seen.publication != self.ledger.publication:
            raise Retry(
                "the publication was changed: catching up from the table", reason="publication_changed"
            )
        if self.shared and seen.incarnation != self.ledger.incarnation:
            raise Retry("the relay has begun again with another slot", reason="other_chain")
        verified = look.position
        raised = look.candidate
        if raised is not None and verified < raised.insert_lsn:
            raised = None
        if raised is not None:
            look.candidate = None
            look.steps.append(self.register(raised.insert_lsn))
        if raised is not None or seen.idle_write_due:
            look.steps.append(self.note(verified, raised))
        if look.candidate is None and look.dirty:
            look.candidate, look.dirty = seen, False
        look.steps.append(self.tell_slot(verified))

    def note(self, verified: Lsn, raised: Observation | None) -> Asking[None]:
        """Write down that everything up to `verified` is applied, and the floor that follows."""
        yield from self.settle()
        after = replace(self.ledger, safe_lsn=max(self.ledger.safe_lsn, verified))
        if raised is not None:
            after = self.on_floor(after, raised.snapshot, raised.insert_lsn)
        yield from self.save(after, thin=raised.snapshot if raised else None)

    def tell_slot(self, verified: Lsn) -> Asking[None]:
        yield from self.settle()
        yield from ask(to.Confirm(self.confirmable(verified)))

    def on_floor(self, after: Ledger, snapshot: Snapshot, lsn: Lsn) -> Ledger:
        """Everything that the snapshot shows is applied. Of an outbox without xids only the LSN is kept."""
        if not self.settings.has_xid:
            self.passed = snapshot
            return replace(after, floor_lsn=lsn)
        if after.witness_xid == UNMARKED:  # from before the outbox had xids: no witness of a floor
            after = replace(after, witness_id=None, witness_xid=None)
        return replace(after, floor=snapshot, floor_lsn=lsn)

    def confirmable(self, verified: Lsn) -> Lsn:
        """The only function that decides what the slot may be told: a position that is durable in the target and
        covered by a check of the publication that ran after it was received."""
        return min(self.ledger.safe_lsn, verified)


def _beyond(received: to.Received, position: Lsn) -> to.Received:
    """Without the transactions up to a position that was reached before: frames may overlap."""
    if received.batch is None or not received.batch.whole:
        return received
    batch = after(received.batch, position)
    return replace(received, batch=batch, position=max(received.position, batch.end_lsn))


def _raised(now: Ledger, goal: Goal, mode: Mode) -> Ledger:
    """The ledger after `goal` is applied completely. floor_lsn is an upper bound of what is visible in the floor."""
    floor_lsn = max(now.floor_lsn, goal.lsn)
    after = replace(now, mode=mode, floor=goal.snapshot, floor_lsn=floor_lsn, next=None, since=None)
    if mode is Mode.STREAM:
        after = replace(after, applied_lsn=goal.lsn, safe_lsn=goal.lsn)
    return after
