"""The exactly-once protocol of one stream, from fence to confirmation, as one pure generator.

It yields requests (requests.py) and is sent answers; it never waits, reads a clock or touches a socket,
so the model checker drives the same code that runs in production. There is no error handling here on
purpose: an act that fails ends the session, and the next session starts over at the fence. A crash and
an error are the same thing. docs/guarantees.md gives the argument and names the invariants I1 to I6.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

from bridge.errors import Halt, Retry
from bridge.protocol import requests as to
from bridge.protocol.events import ZERO, Batch, Done, Lsn, Snapshot, intersection, located
from bridge.protocol.facts import Goal, Ledger, Mode, Registration, SourceFacts, TargetFacts
from bridge.protocol.preflight import (
    StreamSettings,
    check_not_pruned,
    check_registration,
    facts,
    is_first_catch_up,
    judge,
    slot_wanted,
    stand_by,
)
from bridge.protocol.requests import Asking, Observation, Request, ask

__all__ = ["POLLED", "session"]

POLLED = 0
"""The incarnation under which `applied` lists what polling applied while a slot was being made."""


def session(settings: StreamSettings) -> Generator[Request[Any], Any, None]:
    """One life of a stream: fence, preflight, catch up, then stream (or poll) until asked to stop."""
    target = yield from ask(to.ReadTarget())
    registration = yield from ask(to.ReadRegistration())
    check_registration(registration, target)
    yield from stand_by(settings, target, registration)
    ledger = yield from ask(to.Fence(settings.session, create=registration is None, since=settings.since))
    if ledger is None:
        raise Halt(
            f"stream {settings.stream} is registered at the source but this target has no ledger row for it: "
            "the ledger was wiped, or this is another database",
            reason="ledger_missing",
            hint="restore the ledger with the target; or begin anew: bridge recover --restart-stream",
        )
    registration = yield from ask(to.ReadRegistration())
    source = yield from ask(facts(settings, ledger))
    from_slot = slot_wanted(settings, source)
    judgement = judge(ledger, source, registration, slot_wanted=from_slot)
    yield from ask(to.Save(ledger, judgement.ledger, forget_above=judgement.forget_above))
    life = _Life(settings, judgement.ledger, target, registration)
    # From here on prune respects our floor. If it may have gone further before, the registry must not
    # forget that when it takes our floor: a position one above our own says so.
    first = is_first_catch_up(ledger, registration)
    yield from life.register(ZERO if first else Lsn(ledger.snapshot_lsn + 1))
    if judgement.catch_up is not None and settings.has_xid:
        check_not_pruned(ledger, registration, (yield from ask(to.ReadPruned())))
    if not from_slot:
        yield from life.poll()
        return
    if judgement.catch_up is not None:
        yield from life.catch_up(source, judgement.catch_up)
    yield from life.stream()


@dataclass(slots=True)
class _Look:
    """What the stream loop knows between two looks at the source."""

    position: Lsn  # everything up to here was received and handed out
    inside: bool = False  # chunks of a huge transaction are open in the target
    dirty: bool = True  # events were applied since the candidate was read
    candidate: Observation | None = None  # becomes the floor once its LSN is covered


class _Life:
    """The ledger as it is durable in the target (`ledger`), and what one session does with it."""

    def __init__(
        self, settings: StreamSettings, ledger: Ledger, target: TargetFacts, registration: Registration | None
    ) -> None:
        self.settings = settings
        self.ledger = ledger
        self.target = target
        self.holder = registration.session if registration else None  # of the row in the registry
        self.sent: Ledger | None = None  # becomes `ledger` when what was sent is durable
        self.held: Snapshot | None = None  # the floor before a slot is made: its snapshot shows no less

    # --- the ledger ---------------------------------------------------------------------------

    def save(self, after: Ledger, *, thin: Snapshot | None = None) -> Asking[None]:
        """Write the row; nothing is in flight. thin: what this snapshot shows need not be listed."""
        yield from ask(to.Save(self.ledger, after, thin=thin))
        self.ledger = after

    def apply(
        self, batch: Batch, after: Ledger, *, list_as: int | None = None, thin: Snapshot | None = None
    ) -> Asking[None]:
        """Plan and encode while the commit before is still in flight; then wait for it; then send."""
        yield from ask(to.Prepare(batch))
        yield from self.settle()
        if batch.events:
            last = batch.events[-1]
            after = replace(after, witness_id=last.id.decode(), witness_xid=int(last.xid))
        yield from ask(to.Apply(batch, self.ledger, after, list_as=list_as, thin=thin))
        if batch.whole:
            self.sent = after

    def settle(self) -> Asking[None]:
        if self.sent is not None:
            yield from ask(to.Settle())
            self.ledger, self.sent = self.sent, None

    def register(self, reached: Lsn = ZERO) -> Asking[None]:
        """Tell the source how far this stream is, for prune and for the next start. reached: the ledger is
        about to rely on a snapshot that was taken before this position."""
        incarnation, goal = self.ledger.incarnation, self.ledger.next
        floor = self.held or self.ledger.floor
        if goal is not None and goal.from_slot:  # the next floor may be an older one
            floor = intersection([floor, goal.snapshot])
        streams = incarnation and self.ledger.mode is not Mode.POLL
        registration = Registration(
            stream=self.settings.stream,
            target_system=self.target.system_identifier,
            target_database=self.target.database,
            slot=self.settings.slot_name(incarnation) if streams else None,
            floor=floor,
            witness_id=self.ledger.witness_id,
            reached=max(reached, self.ledger.snapshot_lsn),
            session=self.settings.session,
        )
        yield from ask(to.Register(registration, self.holder))
        self.holder = self.settings.session

    # --- from the table -----------------------------------------------------------------------

    def catch_up(self, source: SourceFacts, reason: str) -> Asking[None]:
        """Make the floor and a slot meet: afterwards the slot alone brings what is missing."""
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
            yield from self.new_slot(source, poll=True)
            slot_good = True

    def new_slot(self, source: SourceFacts, *, poll: bool) -> Asking[Goal]:
        """The name is durable before the slot exists; its snapshot is durable before it is read. poll:
        events flow from the table while the slot waits for open transactions."""
        old = self.ledger
        number = old.incarnation + 1
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

    def without_table(self, source: SourceFacts, reason: str) -> Asking[None]:
        """An outbox without xids: a new stream starts with its slot; a lost slot needs a person."""
        if reason not in ("new", "catchup"):
            raise Halt(
                f"the slot cannot go on ({reason}), and the outbox table has no xid column to catch up by",
                reason="no_catch_up",
                hint="go on without what it held back: bridge recover --accept-source (bridge doctor: how to add xid)",
            )
        goal = yield from self.new_slot(source, poll=False)
        yield from self.save(_raised(self.ledger, goal, Mode.STREAM))

    def finish(self, goal: Goal, mode: Mode, *, listing: bool = False) -> Asking[None]:
        """Apply what is visible in the goal and not yet applied; then it is the floor. A stored goal is
        always finished before another one is stored. listing: see poll_once. (A session that resumes here
        need not list: its slot is made later than this goal.)
        """
        while goal.from_slot and (yield from ask(to.StillRunning(goal.snapshot))):
            pass  # WAL runs ahead of visibility
        floor, since = self.ledger.floor, self.ledger.since
        done = Done((yield from ask(to.ReadApplied())), floor)
        seq, more = goal.seq, True
        while more:
            missing = yield from ask(to.ReadMissing(floor, goal.snapshot, seq, since))
            seq, more = missing.last_seq, missing.more
            batch = done.without(located(missing.batch, goal.lsn))
            if batch.events:
                after = replace(self.sent or self.ledger, next=replace(goal, seq=seq))
                list_as = POLLED if listing else None
                yield from self.apply(batch, after, list_as=list_as)
        yield from self.settle()
        thin = None if listing else goal.snapshot
        yield from self.save(_raised(self.ledger, goal, mode), thin=thin)
        self.held = None if goal.from_slot else self.held
        yield from self.register()

    def poll(self) -> Asking[None]:
        """Capture without a slot: from snapshot to snapshot, until asked to stop."""
        if (goal := self.ledger.next) is not None:
            yield from self.finish(goal, Mode.POLL)
        if self.ledger.mode is not Mode.POLL:
            incarnation = self.ledger.incarnation
            yield from self.save(replace(self.ledger, mode=Mode.POLL))
            if incarnation:
                yield from ask(to.DropSlot(self.settings.slot_name(incarnation)))
        yield from self.register()
        while True:
            more = yield from self.poll_once(Mode.POLL)
            if not more and (yield from ask(to.Wait())):
                return

    def poll_once(self, mode: Mode, *, listing: bool = False) -> Asking[bool]:
        """All that is visible now and not in the floor. True: there was something.

        listing: a slot is being made, whose snapshot may be older than this one; so list what is
        applied, and thin nothing.
        """
        snapshot, lsn = yield from ask(to.TakeSnapshot())
        goal = Goal(snapshot, lsn)
        before = self.ledger
        done = Done((yield from ask(to.ReadApplied())), before.floor)
        missing = yield from ask(to.ReadMissing(before.floor, snapshot, 0, before.since))
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

    def stream(self) -> Asking[None]:
        """Transactions in commit order, one target transaction a batch, the next batch read and prepared
        while the one before commits."""
        incarnation = self.ledger.incarnation
        yield from ask(to.OpenStream(self.settings.slot_name(incarnation), self.ledger.applied_lsn))
        # Now that the slot is ours nobody moves it. Before, somebody could: the start would be skipped ahead.
        slot = (yield from ask(facts(self.settings, self.ledger))).slot
        if slot is None or slot.confirmed_flush > self.ledger.safe_lsn:
            raise Retry("the slot was moved between preflight and start", reason="slot_advanced")
        listed = yield from ask(to.ReadApplied(except_incarnation=incarnation))
        done = Done(listed, self.ledger.floor)
        look = _Look(self.ledger.applied_lsn)
        while True:
            received = yield from ask(to.Receive())
            if received.settled:
                yield from self.settle()
            if received.batch is not None:
                batch = done.without(received.batch) if self.settings.has_xid else received.batch
                look.inside = yield from self.take(batch, inside=look.inside)
                look.dirty = look.dirty or bool(batch.events)
            look.position = received.position
            if (received.tick or received.stop) and not look.inside:
                yield from self.look_at_source(look)
            if received.stop:
                return

    def take(self, batch: Batch, *, inside: bool) -> Asking[bool]:
        """Send one batch. inside, and the answer: chunks of a huge transaction are open in the target."""
        if not batch.events and not inside:
            return False
        after = self.sent or self.ledger
        if batch.whole:
            after = replace(after, applied_lsn=batch.end_lsn, safe_lsn=batch.end_lsn)
        list_as = self.ledger.incarnation if self.settings.has_xid else None
        yield from self.apply(batch, after, list_as=list_as)
        return not batch.whole

    def look_at_source(self, look: _Look) -> Asking[None]:
        """About once a second, with nothing in flight: is the publication still the one that we know; may
        the floor rise; what may the slot be told.

        The check runs after `position` was received, so it covers it. The floor rises to a snapshot S
        when everything up to L, a WAL position read after S, has been received, applied and covered.
        """
        yield from self.settle()
        seen = yield from ask(to.Observe(look.position))
        if seen.publication != self.ledger.publication:
            raise Retry(
                "the publication was changed: catching up from the table", reason="publication_changed"
            )
        verified = look.position
        raised = look.candidate
        if raised is not None and verified < raised.insert_lsn:
            raised = None
        if raised is not None or seen.idle_write_due:
            after = replace(self.ledger, safe_lsn=max(self.ledger.safe_lsn, verified))
            if raised is not None:
                after = replace(after, floor=raised.snapshot, floor_lsn=raised.insert_lsn)
                look.candidate = None
                yield from self.register(raised.insert_lsn)
            yield from self.save(after, thin=raised.snapshot if raised else None)
        if look.candidate is None and look.dirty:
            look.candidate, look.dirty = seen, False
        yield from ask(to.Confirm(self.confirmable(verified)))

    def confirmable(self, verified: Lsn) -> Lsn:
        """The only place that says what the slot may be told: durable in the target, and covered by a
        check of the publication that ran after it was received."""
        return min(self.ledger.safe_lsn, verified)


def _raised(now: Ledger, goal: Goal, mode: Mode) -> Ledger:
    """The ledger once `goal` is applied completely. floor_lsn only bounds what the floor can know."""
    floor_lsn = max(now.floor_lsn, goal.lsn)
    after = replace(now, mode=mode, floor=goal.snapshot, floor_lsn=floor_lsn, next=None, since=None)
    if mode is Mode.STREAM:
        after = replace(after, applied_lsn=goal.lsn, safe_lsn=goal.lsn)
    return after
