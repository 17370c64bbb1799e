"""The simulation that the protocol talks to: two simulated servers, bridges that live and die on them, faults.

Not the tests' World (tests/support/world.py), which has real servers and real bridges: here nothing waits, nothing
runs at once, and a crash fits between any two requests. Every request of the protocol is one atomic act. Whoever
drives (walk.py, the hypothesis machine, a regression test) decides what happens next; checks.py says after each act
whether it was right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Literal

from bridge.errors import BridgeError, Fenced, Retry
from bridge.protocol import preflight, requests, session
from bridge.protocol.events import NOTHING, Batch, Event, Listed, Lsn, Snapshot
from bridge.protocol.facts import (
    Ledger,
    Mode,
    Pruned,
    Registration,
    SlotFacts,
    SourceFacts,
    SourceIdentity,
    TargetFacts,
)
from bridge.protocol.preflight import StreamSettings
from bridge.protocol.requests import MissingRows, Observation, Received, Request
from tests.model import checks
from tests.model import target as target_module
from tests.model.source import Commit, Making, Row, Slot, Source, Transaction
from tests.model.target import Sent, Target, outcome

SLOT = "outbox_bridge_t"
OWN = SourceIdentity("source", "app", 16384)
OTHERS = (SourceIdentity("source", "app", 16385), SourceIdentity("elsewhere", "app", 16384))
"""Sources whose stream has the same name: another database of the cluster, another cluster."""
KEYS = (1, 2, -1)


@dataclass(eq=False)
class Stream:
    """A replication connection. at: commits that start before it are not sent any more."""

    slot: Slot
    generation: int
    at: int
    rest: list[Row] = field(default_factory=list)  # of a huge transaction, still to come
    huge: Commit | None = None


@dataclass(eq=False)
class Bridge:
    """One session of one process: the generator, its pending request, its connections."""

    number: int
    generator: Generator[Request[Any], Any, None]
    request: Request[Any]
    source_generation: int
    target_generation: int
    target_restores: int
    sent: Sent | None = None
    stream: Stream | None = None
    making: Making | None = None
    fenced_as: Ledger | None = None
    looked: int = -1  # the source generation that this session has read the facts of
    judged: int = (
        -1
    )  # and the one that it has found to be its own: where the witness is gone, once it applies
    idle: int = 0  # requests since anything was found to do
    ended: BridgeError | str | None = None
    of: SourceIdentity = OWN  # another one's: what it asks of its source is answered by `Other`
    copied: bool = False  # and its source is a copy of ours, with the registration


class Simulation:
    """failing: how often an act fails, before or after it was done (a lost answer)."""

    stream = "s"

    def __init__(
        self,
        rng: Random,
        *,
        capture: Literal["slot", "poll", "auto"] = "slot",
        since: str | None = None,
        failing: float = 0.0,
    ) -> None:
        self.rng = rng
        self.capture = capture
        self.since = since
        self.failing = failing
        self.stopping = 0.0
        self.two_phase = False  # max_prepared_transactions > 0
        self.calm = False  # nobody commits any more
        self.source = Source()
        self.target = Target()
        self.source_generation = 0
        self.target_generation = 0
        self.target_restores = 0
        self.bridges: list[Bridge] = []
        self.others: list[Bridge] = []  # of another source, with the same name for its stream
        self.orphans: list[Sent] = []
        self.dead_readers: list[Slot] = []
        self.source_copies: list[Source] = []
        self.target_copies: list[Target] = []
        self.counts: Counter[str] = Counter()
        self.halted: BridgeError | None = None
        self.clock = 0
        self.serial = 0
        self.deleted: set[str] = set()  # rows that the application took away once they were applied
        self.births = 0  # of bridges and slots
        self.began_at = 0  # `since = infinity`: rows born later are wanted
        self.histories = 0  # how often the source lost a part of its history
        self.unjudged = False  # the source lost history, and no session has looked at it since
        self.history_lost = False
        self.target_restored = False
        self.ledger_wiped = False
        self.strangers = False  # rows came whose xid is not their own, beside a stream that had begun

    def chance(self, probability: float) -> bool:
        return probability > 0 and self.rng.random() < probability

    @property
    def registration(self) -> Registration | None:
        return self.source.registry.get(self.stream)

    def owns(self, row: Row) -> bool:
        """Is it for this stream?"""
        return True

    # --- bridges ------------------------------------------------------------------------------

    def start_bridge(self, of: SourceIdentity = OWN, *, copied: bool = False) -> Bridge:
        self.births += 1
        generator = self.protocol(f"session-{self.births}")
        bridge = Bridge(
            self.births,
            generator,
            next(generator),
            self.source_generation,
            self.target_generation,
            self.target_restores,
            of=of,
            copied=copied,
        )
        (self.bridges if of == OWN else self.others).append(bridge)
        return bridge

    def protocol(self, name: str) -> Generator[Request[Any], Any, None]:
        """A session of this name."""
        settings = StreamSettings(
            stream=self.stream, slot=SLOT, session=name, capture=self.capture, since=self.since
        )
        return session.session(settings)

    def step(self, bridge: Bridge) -> None:
        """Perform the pending request of a bridge and give it the answer."""
        self.clock += 1
        request = bridge.request
        try:
            fails = self.chance(self.failing)
            after = fails and self.chance(0.5)
            if fails and not after:
                self.counts["act failed"] += 1
                raise Retry("the act failed")
            answer = self.perform(bridge, request)
            if after:
                self.counts["answer lost"] += 1
                if isinstance(request, requests.Settle | requests.Save | requests.Fence):
                    self.counts["commit answer lost"] += 1
                raise Retry("the answer was lost")
            bridge.request = bridge.generator.send(answer)
        except StopIteration:
            self.end(bridge, "stopped")
        except BridgeError as error:
            self.end(bridge, error)

    def end(self, bridge: Bridge, why: BridgeError | str) -> None:
        """A crash, an error and an orderly end leave the same things behind."""
        bridge.generator.close()
        bridge.ended = why
        if bridge.of != OWN:
            self.others.remove(bridge)
            checks.other_end(self, bridge, why)
            return
        self.bridges.remove(bridge)
        if bridge.sent is not None and bridge.sent.state in ("sent", "locked"):
            bridge.sent.orphan = True
            self.orphans.append(bridge.sent)
            self.counts["died with a batch in flight"] += 1
        if bridge.stream is not None:
            if self.chance(0.5):
                self.dead_readers.append(bridge.stream.slot)
            else:
                bridge.stream.slot.reader = None
        if isinstance(why, BridgeError):
            self.counts[f"ended: {why.reason}"] += 1
            mine, ledger = bridge.fenced_as, self.target.ledger
            if mine is not None and ledger is not None and mine.session != ledger.session:
                self.counts["a fenced session ended by itself"] += 1
            else:
                checks.legal_end(self, why)

    def crash(self, bridge: Bridge) -> None:
        if bridge.stream is not None and bridge.stream.huge is not None:
            self.counts["died inside a huge transaction"] += 1
        self.end(bridge, "crash")

    # --- performing ---------------------------------------------------------------------------

    def perform(self, bridge: Bridge, request: Request[Any]) -> Any:
        name = type(request).__name__
        self.counts[f"request {name}"] += 1
        if name in _TARGET:
            if bridge.target_generation != self.target_generation:
                raise Retry("the target connection is gone")
        elif name in _SOURCE and bridge.source_generation != self.source_generation:
            raise Retry("the source connection is gone")
        if bridge.of != OWN:
            return self.of_another(bridge, request)
        return getattr(self, f"do_{name}")(bridge, request)

    def of_another(self, bridge: Bridge, request: Request[Any]) -> Any:
        """A bridge of another source: its own source answers it, and this target is what both have."""
        match request:
            case requests.ReadTarget():
                facts = self.do_ReadTarget(bridge, request)
                busy = facts.ledger is not None and bool(self.bridges) and self.chance(0.5)
                return replace(facts, busy=busy)
            case requests.ReadRegistration():
                return self.registration if bridge.copied else None
            case requests.ReadFormer():
                return ()
            case requests.ReadSource():
                return SourceFacts(
                    bridge.of.system,
                    1,
                    Lsn(5000),
                    "pub-9",
                    None,
                    database=bridge.of.database,
                    database_oid=bridge.of.oid,
                )
            case requests.Fence() if self.target.ledger is None:
                raise Retry("it would be the first, and the name its own")
            case requests.Fence():
                return self.do_Fence(bridge, request)
        raise checks.Violation(f"another source's bridge went on to {request}")

    # target

    def do_ReadTarget(self, bridge: Bridge, request: requests.ReadTarget) -> TargetFacts:
        busy = len(self.bridges) > 1 and self.chance(0.2)
        return TargetFacts("target", "db", self.target.ledger, busy)

    def free_row(self) -> None:
        """Whoever wants the row waits for the backend that holds it, or terminates it."""
        holder = self.target.lock
        if holder is None:
            return
        if holder.complete and self.chance(0.5):
            self.target.commit(holder)
            self.counts["waited for a late commit"] += 1
        else:
            self.target.roll_back(holder)
        checks.after_target(self)

    def do_Fence(self, bridge: Bridge, request: requests.Fence) -> Ledger | None:
        self.free_row()
        row = self.target.ledger
        if row is None:
            if not request.create:
                return None
            row = Ledger(self.stream, 0, "", since=request.since).of_source(request.source)
        if not target_module.of_source(row, request.source):
            self.counts["refused in the fence"] += 1
            raise preflight.name_taken(self.stream, row, request.source)
        row = replace(row, epoch=row.epoch + 1, session=request.session)
        self.target.ledger = row
        bridge.fenced_as = row
        return row

    def do_Save(self, bridge: Bridge, request: requests.Save) -> None:
        assert bridge.sent is None, "saved while a transaction was in flight"
        self.free_row()
        before = self.target.ledger
        if not target_module.same_row(before, request.before):
            raise Fenced("the checkpoint row has another epoch, session or position")
        assert before is not None
        self.target.ledger = request.after
        if request.thin is not None:
            self.target.thin(request.thin)
        if request.forget_above is not None:
            self.target.forget_above(request.forget_above)
            self.counts["forgot applied xids above a switch point"] += 1
        if before.since is not None and request.after.since is None:
            self.began_at = self.clock
        if request.after.next is not None and request.after.next.from_slot and before.next is None:
            self.counts["stored a slot's goal"] += 1
        if bridge.judged == self.source_generation:
            self.unjudged = False
            self.target.history = self.histories
        checks.monotonic(self, before, request.after)
        checks.after_target(self)

    def do_Prepare(self, bridge: Bridge, request: requests.Prepare) -> None:
        bridge.judged = bridge.looked

    def do_Apply(self, bridge: Bridge, request: requests.Apply) -> None:
        if bridge.sent is not None:
            assert not bridge.sent.complete, "sent while another transaction was in flight"
            sent = bridge.sent
            if sent.state in ("failed", "fenced"):
                bridge.sent = None
                outcome(sent)
            assert target_module.same_row(request.before, sent.apply.before)
            sent.apply = request
        else:
            sent = bridge.sent = Sent(request)
        sent.events += request.batch.events
        sent.complete = request.batch.whole
        if not request.batch.whole:
            self.counts["chunk sent"] += 1

    def progress(self, sent: Sent) -> None:
        """One step of a transaction in flight."""
        if sent.state == "sent":
            if self.target.take_lock(sent) and sent.orphan and sent.state == "fenced":
                self.counts["zombie's batch fenced"] += 1
        elif sent.state == "locked" and sent.complete:
            before = self.target.ledger
            self.target.commit(sent)
            if sent.orphan:
                self.counts["late commit of an orphan"] += 1
            assert before is not None
            assert self.target.ledger is not None
            checks.monotonic(self, before, self.target.ledger)
            checks.after_target(self)

    def do_Settle(self, bridge: Bridge, request: requests.Settle) -> None:
        sent = bridge.sent
        assert sent is not None
        if sent.state == "sent" and self.target.lock is not None:
            self.free_row()
        while sent.state in ("sent", "locked"):
            self.progress(sent)
        bridge.sent = None
        outcome(sent)

    def do_ReadApplied(self, bridge: Bridge, request: requests.ReadApplied) -> Listed:
        return self.target.listed(request.except_incarnation)

    # source

    def do_ReadRegistration(self, bridge: Bridge, request: requests.ReadRegistration) -> Registration | None:
        return self.registration

    def do_Register(self, bridge: Bridge, request: requests.Register) -> None:
        old, new = self.registration, request.registration
        if (old.session if old else None) != request.holder:
            self.counts["a registration came late and was refused"] += request.holder == new.session
            raise (
                Fenced("taken over")
                if request.holder == new.session
                else Retry("taken", reason="registry_taken")
            )
        same = old is not None and (old.relay, old.incarnation) == (new.relay, new.incarnation)
        self.source.registry[self.stream] = replace(
            new,
            reached=max(new.reached, old.reached if old else new.reached),
            confirmed=old.confirmed if old is not None and same else None,
        )
        self.source.lsn += 8
        self.source.flush()

    def do_ReadFormer(self, bridge: Bridge, request: requests.ReadFormer) -> tuple[str, ...]:
        return ()  # one stream

    def do_ReadSource(self, bridge: Bridge, request: requests.ReadSource) -> SourceFacts:
        source = self.source
        slot = source.slots.get(request.slot or "")
        witness = source.table.get(request.witness_id or "")
        if witness is None or not source.seen(witness):
            if request.witness_xid in source.running:
                self.counts["the witness was not visible yet"] += 1
                raise Retry("the witness is not visible yet")
            witness = None
        if bridge.fenced_as is not None:
            bridge.looked = self.source_generation
            promoted = source.timeline != bridge.fenced_as.timeline  # then the witness is not what tells
            if witness is not None or request.witness_id is None or promoted:
                bridge.judged = bridge.looked
        return SourceFacts(
            system_identifier=OWN.system,
            database=OWN.database,
            database_oid=OWN.oid,
            timeline=source.timeline,
            flush_lsn=Lsn(source.flushed),
            publication=source.identity(),
            slot=None
            if slot is None
            else SlotFacts(slot.name, Lsn(slot.confirmed), slot.reader is not None, not slot.lost),
            switch_points=dict(source.switch_points),
            witness_present=request.witness_id is None
            or (witness is not None and witness.xid == request.witness_xid),
            two_phase=self.two_phase,
            pruned=source.pruned,
            partitioned=source.partitioned,
            life=source.life,
            relay=source.relay,
        )

    def do_ReadPruned(self, bridge: Bridge, request: requests.ReadPruned) -> Pruned | None:
        return self.source.pruned

    def do_BeginSlot(self, bridge: Bridge, request: requests.BeginSlot) -> None:
        self.do_DropSlot(bridge, requests.DropSlot(request.name))
        self.births += 1
        bridge.making = self.source.begin_slot(request.name, self.births)

    def do_SlotMade(self, bridge: Bridge, request: requests.SlotMade) -> tuple[Lsn, Snapshot] | None:
        making = bridge.making
        assert making is not None
        if self.chance(0.6):
            self.advance_making(making)
        if making.made is None or (not self.calm and self.chance(0.4)):  # made, and not noticed yet
            self.counts["waited for a slot to be made"] += 1
            return None
        made, bridge.making = making.made, None
        return made

    def advance_making(self, making: Making) -> None:
        if making.made is None:
            taken = making.name in self.source.slots
            if taken:
                raise Retry("a slot of this name exists already")
            self.source.advance_making(making)

    def do_DropSlot(self, bridge: Bridge, request: requests.DropSlot) -> None:
        slot = self.source.slots.get(request.name)
        if slot is not None:
            if slot.reader is not None:
                raise Retry("the slot is active")
            del self.source.slots[request.name]

    def do_TakeSnapshot(self, bridge: Bridge, request: requests.TakeSnapshot) -> tuple[Snapshot, Lsn]:
        snapshot = self.source.snapshot()
        self.between()
        return snapshot, Lsn(self.source.lsn)

    def do_StillRunning(self, bridge: Bridge, request: requests.StillRunning) -> bool:
        still = any(request.snapshot.shows(xid) for xid in self.source.running)
        self.counts["a goal showed a running xid"] += still
        return still

    def do_ReadMissing(self, bridge: Bridge, request: requests.ReadMissing) -> MissingRows:
        first = request.floor == NOTHING
        seen = [row for row in self.source.table.values() if self.source.seen(row)]
        strangers = [row for row in seen if row.is_stranger]
        if first:
            unknown = [r for r in strangers if r.placed >= request.upto.xmin and request.upto.shows(r.placed)]
        else:
            unknown = [r for r in strangers if r.placed >= request.floor.xmin]
        if unknown:
            self.counts["strangers in the table"] += 1
            return MissingRows(Batch(), request.after_seq, more=True, foreign=f"{len(unknown)} rows")
        rows = [
            row
            for row in seen
            if self.owns(row)
            and row.seq > request.after_seq
            and not request.floor.shows(row.placed)
            and request.upto.shows(row.placed)
            and (first or not row.is_stranger)
            and self.since_wants(row, request.since)
        ]
        self.counts["a first catch-up took strangers"] += any(row.is_stranger for row in rows)
        rows.sort(key=lambda row: row.seq)
        count = self.rng.randint(1, 3)
        taken = rows[:count]
        more = len(rows) > count or (len(rows) == count and self.chance(0.3))
        if not taken:
            bridge.idle += 1
        batch = Batch(
            events=[event_of(row)._replace(xid=str(row.placed).encode()) for row in taken],
            xids=sorted({row.placed for row in taken}),
        )
        return MissingRows(batch, taken[-1].seq if taken else request.after_seq, more)

    def since_wants(self, row: Row, since: str | None) -> bool:
        if since is None:
            return True
        return since != "infinity" and row.born >= int(since)

    # stream

    def do_OpenStream(self, bridge: Bridge, request: requests.OpenStream) -> None:
        slot = self.source.slots.get(request.slot)
        if slot is None or slot.lost or slot.reader is not None:
            raise Retry("the slot is missing, lost or active")
        if request.start < slot.confirmed:
            self.counts["start was fast-forwarded"] += 1
        if self.target.ledger is not None and request.start < self.target.ledger.applied_lsn:
            self.counts["the stream had to show the witness"] += 1
        bridge.stream = Stream(slot, self.source_generation, max(request.start, slot.confirmed))
        slot.reader = bridge.stream

    def reading(self, bridge: Bridge) -> Stream:
        stream = bridge.stream
        assert stream is not None
        gone = self.source.slots.get(stream.slot.name) is not stream.slot
        if (
            stream.generation != self.source_generation
            or gone
            or stream.slot.lost
            or stream.slot.reader is not stream
        ):
            raise Retry("the replication connection is gone")
        return stream

    def do_Receive(self, bridge: Bridge, request: requests.Receive) -> Received:
        stream = self.reading(bridge)
        settled = self.told(bridge)
        if stream.huge is not None:
            return self.chunk(bridge, stream, settled)
        waiting = [
            commit
            for commit in self.source.wal
            if commit.start >= stream.at and commit.end <= self.source.flushed and commit.rows
        ]
        stop = self.chance(self.stopping)
        if waiting and not stop and not self.chance(0.3):
            bridge.idle = 0
            if any(row.published == "error" for row in waiting[0].rows):
                self.counts["decoder stopped on a row without publication"] += 1
                raise Retry("the decoder stopped: publication does not exist")
            first = [row for row in waiting[0].rows if row.published == "yes"]
            if len(first) > 1 and self.chance(0.4):
                stream.huge, stream.rest = waiting[0], first
                return self.chunk(bridge, stream, settled)
            return self.whole(stream, waiting[: self.rng.randint(1, 3)], settled)
        if not waiting:
            bridge.idle += 1
        sent = waiting[0].start if waiting else self.source.flushed
        if self.chance(0.7):
            stream.at = max(stream.at, sent)
        return Received(None, Lsn(stream.at), settled, tick=self.chance(0.7), stop=stop)

    def told(self, bridge: Bridge) -> bool:
        """Has the bridge's last transaction ended? It hears of it here, or in Settle."""
        sent = bridge.sent
        if sent is None or not sent.complete or not self.chance(0.5):
            return False
        if sent.state in ("failed", "fenced"):
            bridge.sent = None
            outcome(sent)
        return sent.state == "committed"

    def whole(self, stream: Stream, commits: list[Commit], settled: bool) -> Received:
        batch = Batch()
        for commit in commits:
            if any(row.published == "error" for row in commit.rows):
                break
            rows = [row for row in commit.rows if row.published == "yes"]
            strays = [row for row in rows if self.strays(row, commit)]
            if strays and batch.events:
                break  # it is a batch of its own
            stream.at = commit.end
            if len(rows) < len(commit.rows):
                self.counts["rows that the publication withheld"] += 1
                self.counts["a part of a transaction withheld"] += bool(rows)
            if rows:
                events = [event_of(row) for row in rows if row not in strays]
                batch.events += events
                if events:
                    batch.xids.append(commit.xid)
                    batch.end_lsns.append(Lsn(commit.end))
                    batch.commit_rows.append(len(events))
                batch.end_lsn = Lsn(commit.end)
            if strays:
                batch.strays = [said(row) for row in strays]
                break
        if not batch.events and not batch.strays:
            return Received(None, Lsn(stream.at), settled)
        return Received(batch, Lsn(stream.at), settled, tick=self.chance(0.1))

    def strays(self, row: Row, commit: Commit) -> bool:
        """Does the decoder set the row apart? One without an xid is its transaction's, where no row can be moved."""
        if row.claimed is None:
            return self.source.partitioned
        return row.claimed != commit.xid

    def chunk(self, bridge: Bridge, stream: Stream, settled: bool) -> Received:
        commit = stream.huge
        assert commit is not None
        bridge.idle = 0
        taken, stream.rest = stream.rest[:1], stream.rest[1:]
        batch = Batch(
            events=[event_of(row) for row in taken if not self.strays(row, commit)],
            chunk=True,
            whole=not stream.rest,
            strays=[said(row) for row in taken if self.strays(row, commit)],
        )
        before = stream.at
        if batch.whole:
            batch.xids, batch.end_lsns, batch.end_lsn = [commit.xid], [Lsn(commit.end)], Lsn(commit.end)
            batch.commit_rows = [len(batch.events)]
            stream.at, stream.huge = commit.end, None
        return Received(batch, Lsn(stream.at if batch.whole else before), settled, tick=self.chance(0.3))

    def do_Observe(self, bridge: Bridge, request: requests.Observe) -> Observation:
        publication = self.source.identity()
        self.between()
        snapshot = self.source.snapshot()
        self.between()
        relay = self.source.relay
        return Observation(
            publication,
            snapshot,
            Lsn(self.source.lsn),
            self.chance(0.3),
            incarnation=relay.incarnation if relay else None,
        )

    def do_Confirm(self, bridge: Bridge, request: requests.Confirm) -> None:
        stream = self.reading(bridge)
        checks.confirmable(self, bridge, request.lsn)
        stream.slot.confirmed = max(stream.slot.confirmed, request.lsn)

    def do_Wait(self, bridge: Bridge, request: requests.Wait) -> bool:
        bridge.idle += 1
        return self.chance(self.stopping)

    # --- producers ----------------------------------------------------------------------------

    def insert(self, transaction: Transaction, key: int | None) -> Row | None:
        """One row; None where another transaction holds the key's lock."""
        if key is not None and key >= 0:
            others = {row.key for t in self.source.running.values() if t is not transaction for row in t.rows}
            if key in others:
                return None
        self.serial += 1
        return self.source.insert(transaction, f"e{self.serial}", key, self.clock)

    def record(self, transaction: Transaction, *, flush: bool = True) -> None:
        self.source.record(transaction, flush=flush)
        self.recorded()

    def recorded(self) -> None:
        """There is something to do."""
        for bridge in self.bridges:
            bridge.idle = 0
        checks.after_source(self)

    def emit(self, *keys: int) -> list[Row]:
        """A whole transaction, seen at once."""
        transaction = self.source.begin()
        rows = [row for row in (self.insert(transaction, key) for key in keys) if row is not None]
        self.record(transaction)
        self.source.leave(transaction)
        return rows

    def between(self) -> None:
        """Something commits in the middle of a request that reads twice."""
        if not self.calm and self.chance(0.15):
            recorded = [t for t in self.source.running.values() if t.recorded]
            if recorded and self.chance(0.5):
                self.source.leave(self.rng.choice(recorded))
            else:
                self.emit(self.rng.choice(KEYS))
            self.counts["a commit inside an observation"] += 1

    # --- faults -------------------------------------------------------------------------------

    def replace_source(self, after: Source, *, lost: bool) -> None:
        """Another cluster state answers from now on; every connection is gone."""
        self.histories += lost
        self.source = after
        self.source_generation += 1
        self.dead_readers = []
        for slot in after.slots.values():
            slot.reader = None
        self.source_replaced(lost=lost)

    def source_replaced(self, *, lost: bool) -> None:
        """What that means for this stream."""
        if lost and self.target.ledger is not None:
            self.unjudged = True
            self.history_lost = True
        for bridge in self.bridges:
            if bridge.making is not None:
                bridge.making.broken = True
        checks.after_source(self)

    def replace_target(self, after: Target, *, connections_survive: bool = False) -> None:
        """A crash or a restore: what was in flight is gone, unless the connections survive it."""
        self.target_restores += 1
        after.lock = None
        if connections_survive:
            self._put_target(after)
            return
        for sent in [*self.orphans, *(b.sent for b in self.bridges if b.sent)]:
            if sent.state in ("sent", "locked"):
                sent.state = "failed"
        self.orphans = []
        self.target_generation += 1
        self._put_target(after)

    def _put_target(self, after: Target) -> None:
        if after.history != self.histories and after.ledger is not None:
            self.unjudged = self.history_lost = True
        self.target = after


def event_of(row: Row) -> Event:
    return Event(
        id=row.id.encode(),
        seq=str(row.seq).encode(),
        xid=str(row.xid).encode(),
        type=b"t",
        key=None if row.key is None else str(row.key).encode(),
        payload=b"{}",
        idempotency_key=None,
        headers=None,
        occurred_at=None,
    )


def said(row: Row) -> Event:
    """As the stream brings it: with what its column says."""
    xid = None if row.claimed is None else str(row.claimed).encode()
    return event_of(row)._replace(xid=xid)  # type: ignore[arg-type]


_TARGET = frozenset({"ReadTarget", "Fence", "Save", "Apply", "Settle", "ReadApplied"})
_SOURCE = frozenset(
    {
        *(
            "ReadRegistration",
            "ReadFormer",
            "Register",
            "ReadSource",
            "BeginSlot",
            "SlotMade",
            "DropSlot",
            "TakeSnapshot",
        ),
        *("StillRunning", "ReadMissing", "Observe", "ReadPruned"),
    }
)
__all__ = ["KEYS", "SLOT", "Bridge", "Mode", "Simulation", "event_of", "said"]
