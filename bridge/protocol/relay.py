"""A relay's part of the protocol, as one pure generator like session.py: read the slot once, cut what it brings into a
chain of frames for each partition, and confirm the slot to what every stream has applied.

Nothing that a relay says is believed: a stream compares each frame with its ledger (chain.py). A relay that is frozen,
doubled or late can cost time, and no event. docs/guarantees.md, "Frames over a log".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bridge.errors import Halt, Retry, StandBy
from bridge.protocol import requests as to
from bridge.protocol.chain import Frame, Look, Origin
from bridge.protocol.events import ZERO, Lsn, Snapshot
from bridge.protocol.facts import RelayFacts, SlotFacts, SourceFacts
from bridge.protocol.requests import Asking, Piece, Request, ask

KEPT_LOOKS = 5
"""The slot stays behind the looks of so many ticks (seconds), so that a stream which has found one comes to it in
time."""

STUCK_LOOKS = 3
"""A stream that has not moved for so many looks is what the slot waits for. While it moves, a slot that retains much is
a source that writes much."""


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """relay: the slots' prefix, and the relay's name at the source. partitions: of a relay that begins; one that is
    known keeps its number."""

    relay: str
    session: str
    partitions: int

    def slot_name(self, incarnation: int) -> str:
        return f"{self.relay}_{incarnation}"


def relay(settings: RelaySettings) -> Generator[Request[Any], Any, None]:
    """One life of a relay, until it is asked to stop."""
    source = yield from _facts(settings, None)
    known = source.relay
    if known is not None:
        source = yield from _facts(settings, known)
        stand_by(source.slot)
    check_source(source)
    mine = replace(known or RelayFacts(0, settings.partitions, None), session=settings.session)
    yield from ask(to.SaveRelay(known, mine))
    begins = source.slot.confirmed_flush if source.slot else ZERO
    if known is None or not _goes_on(known, source):
        mine, begins = yield from _begin(settings, mine, source)
    yield from _Relay(settings, mine).run(begins)


def stand_by(slot: SlotFacts | None) -> None:
    """Only one process reads a slot. Raises StandBy, or Halt where the reader is no bridge."""
    if slot is None or not slot.active or not slot.ours:
        return
    if slot.reader:
        raise Halt(
            f"slot {slot.name} is being read by something that is no bridge: {slot.reader}",
            reason="slot_in_use",
            hint="end it (at the source): select pg_terminate_backend(active_pid) from pg_replication_slots "
            f"where slot_name = '{slot.name}'",
        )
    raise StandBy(f"another relay reads slot {slot.name}")


def check_source(source: SourceFacts) -> None:
    """Raises Halt where no slot can be had, or Retry on a standby."""
    if source.in_recovery:
        raise Retry("the source is in recovery (a standby): waiting for a primary")
    if source.slot_refused is not None:
        refused = source.slot_refused
        raise Halt(
            f"the source cannot provide a replication slot: {refused.message}",
            reason=refused.reason,
            hint=refused.fix,
        )
    if source.publication is None:
        raise Halt(
            "the publication does not exist on the source, or does not publish every insert into the outbox "
            "(no row filter, no column list, publish_via_partition_root)",
            reason="publication_missing",
            hint="bridge install",
        )


def _facts(settings: RelaySettings, known: RelayFacts | None) -> Asking[SourceFacts]:
    slot = settings.slot_name(known.incarnation) if known and known.incarnation else None
    return (yield from ask(to.ReadSource(slot, None, None)))


def _goes_on(known: RelayFacts, source: SourceFacts) -> bool:
    """May frames of this incarnation go on where its slot is?"""
    slot = source.slot
    return known.ready and slot is not None and slot.usable and known.publication == source.publication


def _begin(settings: RelaySettings, known: RelayFacts, source: SourceFacts) -> Asking[tuple[RelayFacts, Lsn]]:
    """A new incarnation, and where its slot begins. It is written down before its slot exists, and ready with it."""
    number = known.incarnation + 1
    while settings.slot_name(number) in source.taken:
        number += 1
    after = replace(known, incarnation=number, publication=source.publication, ready=False)
    yield from ask(to.SaveRelay(known, after))
    if known.incarnation:
        yield from ask(to.DropSlot(settings.slot_name(known.incarnation)))
    yield from ask(to.BeginSlot(settings.slot_name(number)))
    while (made := (yield from ask(to.SlotMade()))) is None:
        pass
    ready = replace(after, ready=True)
    yield from ask(to.SaveRelay(after, ready))
    return ready, made[0]


class _Relay:
    """One session that reads its slot."""

    def __init__(self, settings: RelaySettings, facts: RelayFacts) -> None:
        self.settings = settings
        self.facts = facts
        self.slot = settings.slot_name(facts.incarnation)
        self.origin = Origin(facts.incarnation, "", facts.partitions)
        self.published: dict[int, Lsn] = {}  # by partition: where its chain ends
        self.open: set[int] = set()  # partitions that have parts of a transaction without its end
        # Transactions that were read and may not be visible yet; xids that may have ended before what the slot brings,
        # and be hidden.
        self.unseen: deque[tuple[Lsn, int]] = deque()
        self.older: frozenset[int] = frozenset()
        self.shown = ZERO  # everything that ends up to here is visible, once `older` is empty
        self.looks: deque[Lsn] = deque(maxlen=KEPT_LOOKS)
        self.confirmed = ZERO
        self.last = ZERO  # where the stream is that is furthest behind,
        self.looks_without = 0  # and for how many looks it has been there
        self.given_up: dict[str, Lsn] = {}  # streams that are not waited for, and where they were

    def run(self, begins: Lsn) -> Asking[None]:
        """begins: where the slot stood before our session was written into outbox.relay. Whatever ended before that
        has an xid below that write's, so a snapshot shows it or lists it. (Whoever moves a slot does not ask what is
        visible.)"""
        source = yield from _facts(self.settings, self.facts)
        if source.slot is None:
            raise Retry("the slot was dropped between two looks", reason="slot_missing")
        if source.slot.confirmed_flush != begins:
            raise Retry("the slot was moved between two looks", reason="slot_advanced")
        self.older = (yield from ask(to.Observe(begins))).snapshot.xip
        self.origin = replace(self.origin, life=source.life)
        self.confirmed = self.shown = source.slot.confirmed_flush
        tails = yield from ask(to.ReadTails(self.origin))
        for partition in range(1, self.facts.partitions + 1):
            tail = tails.get(partition, ZERO)
            believable = self.confirmed <= tail <= source.flush_lsn
            self.published[partition] = tail if believable else self.confirmed
        yield from self.open_stream()
        while True:
            got = yield from ask(to.Read())
            self.unseen.extend(zip(got.ends, got.xids, strict=True))
            for piece in got.pieces:
                yield from self.carry(piece)
            if got.tick:
                yield from self.look_at_source(got.position)
                yield from self.confirm(got.position)
            if got.stop:
                return
            if got.again and self.takes_back(got.again):
                yield from self.open_stream()

    def open_stream(self) -> Asking[None]:
        """Read from where the shortest chain ends, or what was read may not be visible."""
        start = min(self.shown, *self.published.values())
        self.open.clear()
        self.unseen.clear()
        yield from ask(to.OpenStream(self.slot, start, self.origin))
        # Nobody can move the slot now that we hold it. Before, another session could: the server would skip ahead.
        source = yield from _facts(self.settings, self.facts)
        if source.slot is None or source.slot.confirmed_flush > start:
            raise Retry("the slot was moved between a look and the start", reason="slot_advanced")
        if source.life != self.origin.life:
            raise Retry("the source was started again between two looks", reason="source_restarted")

    def carry(self, piece: Piece) -> Asking[None]:
        """Put it behind the chain of its partition; what the chain has already is left out."""
        partition = piece.partition
        prev = self.published[partition]
        if piece.commit < prev if piece.is_open else piece.end <= prev:
            return
        frame = Frame(
            self.origin,
            partition,
            prev,
            piece.end,
            rows=piece.rows,
            commit=piece.commit,
            offset=piece.offset,
            is_open=piece.is_open,
        )
        yield from ask(to.Publish(frame, piece.body))
        if piece.is_open:
            self.open.add(partition)
        else:
            self.open.discard(partition)
            self.published[partition] = piece.end

    def look_at_source(self, position: Lsn) -> Asking[None]:
        """Is the publication unchanged? Then say how far everything was read, also to partitions that got no rows, with
        what is visible now. The check runs after `position` was read, so it covers that position."""
        seen = yield from ask(to.Observe(position))
        if seen.publication != self.facts.publication:
            raise Retry("the publication was changed: a new slot is made", reason="publication_changed")
        self.older = frozenset(xid for xid in self.older if not seen.snapshot.shows(xid))
        shown = self.visible(seen.snapshot, position)
        look = None if self.older else Look(seen.snapshot, shown, seen.insert_lsn)
        if look is not None:
            self.looks.append(look.lsn)
        for partition, prev in self.published.items():
            if partition not in self.open:
                end = max(prev, position)
                yield from ask(to.Publish(Frame(self.origin, partition, prev, end, look=look), b""))
                self.published[partition] = end

    def visible(self, snapshot: Snapshot, position: Lsn) -> Lsn:
        """Up to where every transaction that was read is visible. WAL runs ahead of visibility."""
        while self.unseen and snapshot.shows(self.unseen[0][1]):
            self.shown = max(self.shown, self.unseen.popleft()[0])
        if not self.unseen:
            self.shown = max(self.shown, position)
        return self.shown

    def confirm(self, position: Lsn) -> Asking[None]:
        """Tell the slot what every stream has applied, as they wrote it at the source.

        A stream that is behind the slot, or has no place in the chain, is not waited for: it catches up from the table.
        """
        shared = yield from ask(to.ReadShare(self.facts.incarnation))
        if shared.session != self.settings.session:
            raise StandBy(f"relay {self.settings.relay} was taken over by another one")
        waits = {
            stream: lsn
            for stream, lsn in shared.applied.items()
            if lsn is not None and lsn >= self.confirmed and not self.is_given_up(stream)
        }
        last = min(waits.values(), default=self.confirmed)
        self.looks_without = self.looks_without + 1 if last == self.last else 0
        self.last = last
        if shared.braked and self.looks_without >= STUCK_LOOKS:
            self.give_up(waits)
        lowest = min([*waits.values(), self.looks[0] if self.looks else self.confirmed, position])
        self.confirmed = max(self.confirmed, lowest)
        yield from ask(to.Confirm(self.confirmed))

    def is_given_up(self, stream: str) -> bool:
        """Until the slot is past where it was: then it is behind, or has found another place."""
        return self.confirmed <= self.given_up.get(stream, Lsn(-1))

    def give_up(self, waits: dict[str, Lsn]) -> None:
        """The slot retains more than it may. Those that are furthest behind are not waited for any more; where nobody
        is behind, the log is: the slot itself is given up."""
        ahead = max(waits.values(), default=ZERO)
        lowest = min(waits.values(), default=ZERO)
        if lowest == ahead:
            raise Retry(f"slot {self.slot} retains more WAL than source.max_retained_wal", reason="wal_brake")
        for stream in [stream for stream, lsn in waits.items() if lsn == lowest]:
            self.given_up[stream] = waits.pop(stream)

    def takes_back(self, again: Mapping[int, Lsn]) -> bool:
        """End the chains of these partitions where their readers miss rows. False: none of them goes beyond that.

        A reader asks until it has what it misses. So a chain that was taken back, and has not come further yet, goes
        on: otherwise reading to the missing part of a huge transaction would begin again every second.
        """
        back = {
            partition: max(self.confirmed, at)
            for partition, at in again.items()
            if partition in self.published and max(self.confirmed, at) < self.published[partition]
        }
        self.published |= back
        return bool(back)


__all__ = ["KEPT_LOOKS", "RelaySettings", "check_source", "relay", "stand_by"]
