"""What the protocol asks of the world: one request, one atomic act on one server.

The protocol (session.py) yields these and is sent the answers; stream/engine.py performs them on real servers
(`drive`), the model checker in tests/model on imagined ones. An act that fails raises: the session is
over, and the next one begins with the fence, exactly as after a crash.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, cast

from bridge.protocol.chain import Frame, Look, Origin
from bridge.protocol.events import ZERO, Batch, Listed, Lsn, Snapshot
from bridge.protocol.facts import (
    Ledger,
    Pruned,
    Registration,
    RelayFacts,
    SourceFacts,
    SourceIdentity,
    TargetFacts,
)

T = TypeVar("T")


class Request(Generic[T]):
    """A request; T is the type of its answer."""

    __slots__ = ()

    def perform(self, performer: Any) -> T:
        """Have the performer do it: a Performer, or a relay's. Raises what the act raises."""
        raise NotImplementedError


Asking = Generator[Request[Any], Any, T]


def ask(request: Request[T]) -> Asking[T]:
    """`answer = yield from ask(SomeRequest())`, typed."""
    return cast(T, (yield request))


def drive(protocol: Asking[None], performer: Performer | RelayPerformer) -> None:
    """The protocol asks, the performer answers, until the protocol ends. Raises what an act raises."""
    request = next(protocol)
    while True:
        answer = request.perform(performer)
        try:
            request = protocol.send(answer)
        except StopIteration:
            return


# --- target ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReadTarget(Request[TargetFacts]):
    """Read the target without a lock."""

    def perform(self, performer: Performer) -> TargetFacts:
        return performer.read_target(self)


@dataclass(frozen=True, slots=True)
class Fence(Request[Ledger | None]):
    """Lock the checkpoint row, increment the epoch, store our session, commit. The row lock waits for a commit whose
    answer was lost. create: insert the row if there is none, and none of another layout (TargetFacts.divided);
    otherwise answer None.

    source: whose stream it is. A row of another source's is not touched: raises Halt (stream_name_taken). A first look
    cannot replace this: two sources may start at one time.
    """

    session: str
    source: SourceIdentity
    create: bool
    since: str | None

    def perform(self, performer: Performer) -> Ledger | None:
        return performer.fence(self)


@dataclass(frozen=True, slots=True)
class Save(Request[None]):
    """Replace the row `before` with `after` if it is still `before` (epoch, session, applied_lsn, next_seq,
    floor_lsn: the target may be restored under an open session), otherwise raise Fenced.

    thin: delete from `applied` what is visible in this snapshot. forget_above: the source lost its WAL above this
    LSN; remove what was listed above it from `applied`.
    """

    before: Ledger
    after: Ledger
    thin: Snapshot | None = None
    forget_above: Lsn | None = None

    def perform(self, performer: Performer) -> None:
        performer.save(self)


@dataclass(frozen=True, slots=True)
class Prepare(Request[None]):
    """Plan and encode this batch (enrich, map) without sending it. Overlaps with a commit in flight."""

    batch: Batch

    def perform(self, performer: Performer) -> None:
        performer.prepare(self)


@dataclass(frozen=True, slots=True)
class Apply(Request[None]):
    """Send the planned batch in one transaction with `before` -> `after`, without waiting.

    list_as: also list its transactions in `applied`, with the seqs of their rows, under this incarnation. A chunk
    (not batch.whole) leaves the transaction open: the ledger is written, and all chunks are listed, with the last
    chunk.
    """

    batch: Batch
    before: Ledger
    after: Ledger
    list_as: int | None = None
    thin: Snapshot | None = None

    def perform(self, performer: Performer) -> None:
        performer.apply(self)


@dataclass(frozen=True, slots=True)
class Settle(Request[None]):
    """Wait until the last batch is durable. An unknown outcome raises; the next fence finds it out."""

    def perform(self, performer: Performer) -> None:
        performer.settle(self)


@dataclass(frozen=True, slots=True)
class ReadApplied(Request[Listed]):
    """Read what `applied` lists; except_incarnation leaves out what that slot delivered."""

    except_incarnation: int | None = None

    def perform(self, performer: Performer) -> Listed:
        return performer.read_applied(self)


# --- source ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReadRegistration(Request[Registration | None]):
    def perform(self, performer: Performer) -> Registration | None:
        return performer.read_registration(self)


@dataclass(frozen=True, slots=True)
class ReadFormer(Request["tuple[str, ...]"]):
    """The streams of another name that are registered for this target, that the configuration does not have, and that
    no bridge serves: this stream may be one of them under a new name."""

    def perform(self, performer: Performer) -> tuple[str, ...]:
        return performer.read_former(self)


@dataclass(frozen=True, slots=True)
class Register(Request[None]):
    """Write the stream's registration; committed and flushed when answered. The greater of two values of `reached`
    is kept.

    holder: the session that must hold the row; None: there must be no row. Otherwise nothing is written: raises
    Fenced if we should be the holder, Retry if we wanted to take the row over.
    """

    registration: Registration
    holder: str | None

    def perform(self, performer: Performer) -> None:
        performer.register(self)


@dataclass(frozen=True, slots=True)
class ReadPruned(Request[Pruned | None]):
    """Read what prune has deleted, after our floor was registered: a prune batch that began earlier has ended, and a
    later one respects the floor."""

    def perform(self, performer: Performer) -> Pruned | None:
        return performer.read_pruned(self)


@dataclass(frozen=True, slots=True)
class ReadSource(Request[SourceFacts]):
    slot: str | None
    witness_id: str | None
    witness_xid: int | None

    def perform(self, performer: Performer) -> SourceFacts:
        return performer.read_source(self)


@dataclass(frozen=True, slots=True)
class BeginSlot(Request[None]):
    """Start creating this slot (drop one with this name first). Creation waits for every open transaction of the
    cluster that has an xid, so it runs in the background."""

    name: str

    def perform(self, performer: Performer) -> None:
        performer.begin_slot(self)


@dataclass(frozen=True, slots=True)
class SlotMade(Request["tuple[Lsn, Snapshot] | None"]):
    """Ask for the slot's consistent point and exported snapshot; None: not yet."""

    def perform(self, performer: Performer) -> tuple[Lsn, Snapshot] | None:
        return performer.slot_made(self)


@dataclass(frozen=True, slots=True)
class DropSlot(Request[None]):
    """Drop a slot; it need not exist."""

    name: str

    def perform(self, performer: Performer) -> None:
        performer.drop_slot(self)


@dataclass(frozen=True, slots=True)
class TakeSnapshot(Request["tuple[Snapshot, Lsn]"]):
    """pg_current_snapshot(), and pg_current_wal_insert_lsn() read after it."""

    def perform(self, performer: Performer) -> tuple[Snapshot, Lsn]:
        return performer.take_snapshot(self)


@dataclass(frozen=True, slots=True)
class StillRunning(Request[bool]):
    """Is any xid that is visible in this snapshot still running? WAL runs ahead of visibility."""

    snapshot: Snapshot

    def perform(self, performer: Performer) -> bool:
        return performer.still_running(self)


@dataclass(frozen=True, slots=True)
class ReadMissing(Request["MissingRows"]):
    """The next rows, by seq, that are visible in `upto` and not in `floor`.

    inside: the last answer was a chunk of the rows that have one seq, and this is to go on within them.
    """

    floor: Snapshot
    upto: Snapshot
    after_seq: int
    since: str | None
    inside: bool = False

    def perform(self, performer: Performer) -> MissingRows:
        return performer.read_missing(self)


@dataclass(frozen=True, slots=True)
class MissingRows:
    """Rows of a catch-up or a poll. `more`: there may be further rows. last_seq: every row up to it was handed out. A
    batch ends where seq changes; the rows of one seq that are more than a batch come in chunks, as of a huge
    transaction. foreign: rows of the table, if any, that no snapshot can place: without an xid, or with one that this
    cluster has not given out."""

    batch: Batch
    last_seq: int
    more: bool
    foreign: str | None = None


# --- stream ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenStream(Request[None]):
    """Read from here on: the slot, or the frames of this origin (a relay: the slot, of the server that it names)."""

    slot: str
    start: Lsn
    origin: Origin | None = None

    def perform(self, performer: Performer) -> None:
        performer.open_stream(self)


@dataclass(frozen=True, slots=True)
class FindLook(Request["Seen"]):
    """The newest look of the relay that the log has for this partition, in a frame of this origin; after a moment where
    there is none that is new. What another run of the server has shown may be lost there, and its xids given again."""

    origin: Origin

    def perform(self, performer: Performer) -> Seen:
        return performer.find_look(self)


@dataclass(frozen=True, slots=True)
class Seen:
    """relay: as it is now. look: None: the log has brought none lately."""

    relay: RelayFacts | None
    look: Look | None


@dataclass(frozen=True, slots=True)
class AskAgain(Request[None]):
    """Ask the relay for the frames after this position once more; it may not hear it."""

    position: Lsn

    def perform(self, performer: Performer) -> None:
        performer.ask_again(self)


@dataclass(frozen=True, slots=True)
class Received:
    """position: everything up to here was received and handed out in batches, including this one.

    gap: rows of the log are missing after `position`.
    """

    batch: Batch | None
    position: Lsn
    settled: bool = False  # what was sent last is durable
    tick: bool = False  # time to look at the source
    stop: bool = False  # we are asked to end; nothing more will come
    gap: bool = False


@dataclass(frozen=True, slots=True)
class Receive(Request[Received]):
    """The next batch of whole transactions, a chunk of a huge one, or None after a tick or a commit. wait: False where
    there is something else to do; then None also at once."""

    wait: bool = True

    def perform(self, performer: Performer) -> Received:
        return performer.receive(self)


@dataclass(frozen=True, slots=True)
class Observation:
    """Observe the source: read in this order, after the positions that the observation covers."""

    publication: str | None  # its identity; None also where it does not publish the outbox's inserts
    snapshot: Snapshot
    insert_lsn: Lsn
    idle_write_due: bool = False  # 10 s and 1 MiB since the last idle write, or the WAL brake is near
    incarnation: int | None = None  # of the relay, as its row says; None: there is none


@dataclass(frozen=True, slots=True)
class Observe(Request[Observation]):
    position: Lsn

    def perform(self, performer: Performer) -> Observation:
        return performer.observe(self)


@dataclass(frozen=True, slots=True)
class Confirm(Request[None]):
    """Tell the slot that everything up to here is durable in the target; with a log, the registry (`confirmed`), where
    the relay reads it; nothing is written where this session no longer holds the row."""

    lsn: Lsn

    def perform(self, performer: Performer) -> None:
        performer.confirm(self)


@dataclass(frozen=True, slots=True)
class Wait(Request[bool]):
    """Poll mode: wait for a notification or the timer. True: stop."""

    def perform(self, performer: Performer) -> bool:
        return performer.wait(self)


# --- a relay --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SaveRelay(Request[None]):
    """Write the row of outbox.relay, flushed, if it is still held by the session of `before` (None: there is no row);
    otherwise raise StandBy."""

    before: RelayFacts | None
    after: RelayFacts

    def perform(self, performer: RelayPerformer) -> None:
        performer.save_relay(self)


@dataclass(frozen=True, slots=True)
class ReadTails(Request["Mapping[int, Lsn]"]):
    """Where the frames of this origin end that the log has, by partition. It may lie."""

    origin: Origin

    def perform(self, performer: RelayPerformer) -> Mapping[int, Lsn]:
        return performer.read_tails(self)


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of one partition, as they were read; a frame without its place in the chain (chain.py)."""

    partition: int
    end: Lsn
    rows: int
    body: bytes
    commit: Lsn = ZERO
    offset: int = 0
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class Carried:
    """What was read. position: every transaction up to here was read, and the pieces so far have all its rows.

    ends, xids: of the transactions that were read. again: by partition, from where a worker misses rows."""

    pieces: Sequence[Piece]
    position: Lsn
    ends: Sequence[Lsn] = ()
    xids: Sequence[int] = ()
    again: Mapping[int, Lsn] = field(default_factory=dict)
    tick: bool = False
    stop: bool = False


@dataclass(frozen=True, slots=True)
class Read(Request[Carried]):
    """The next pieces; none after a tick."""

    def perform(self, performer: RelayPerformer) -> Carried:
        return performer.read(self)


@dataclass(frozen=True, slots=True)
class Publish(Request[None]):
    """Put a frame into the log; it may be on its way for a while."""

    frame: Frame
    body: bytes

    def perform(self, performer: RelayPerformer) -> None:
        performer.publish(self)


@dataclass(frozen=True, slots=True)
class ReadShare(Request["Shared"]):
    """What the streams that this relay serves have applied."""

    incarnation: int

    def perform(self, performer: RelayPerformer) -> Shared:
        return performer.read_share(self)


@dataclass(frozen=True, slots=True)
class Shared:
    """session: that holds the row of outbox.relay. applied: by stream, how far the slot may be confirmed for it; None:
    it has not found its place in the chain yet. braked: the slot retains more WAL than it may."""

    session: str
    applied: Mapping[str, Lsn | None]
    braked: bool = False


# --- who answers ----------------------------------------------------------------------------------


class RelayPerformer(Protocol):
    """Who performs a relay's requests. stream/relay_engine.py on real servers."""

    def read_source(self, request: ReadSource) -> SourceFacts: ...
    def save_relay(self, request: SaveRelay) -> None: ...
    def begin_slot(self, request: BeginSlot) -> None: ...
    def slot_made(self, request: SlotMade) -> tuple[Lsn, Snapshot] | None: ...
    def drop_slot(self, request: DropSlot) -> None: ...
    def open_stream(self, request: OpenStream) -> None: ...
    def read_tails(self, request: ReadTails) -> Mapping[int, Lsn]: ...
    def read(self, request: Read) -> Carried: ...
    def publish(self, request: Publish) -> None: ...
    def observe(self, request: Observe) -> Observation: ...
    def read_share(self, request: ReadShare) -> Shared: ...
    def confirm(self, request: Confirm) -> None: ...


class Performer(Protocol):
    """Who performs requests: one method each. stream/engine.py on real servers."""

    def read_target(self, request: ReadTarget) -> TargetFacts: ...
    def fence(self, request: Fence) -> Ledger | None: ...
    def save(self, request: Save) -> None: ...
    def prepare(self, request: Prepare) -> None: ...
    def apply(self, request: Apply) -> None: ...
    def settle(self, request: Settle) -> None: ...
    def read_applied(self, request: ReadApplied) -> Listed: ...
    def read_registration(self, request: ReadRegistration) -> Registration | None: ...
    def read_former(self, request: ReadFormer) -> tuple[str, ...]: ...
    def register(self, request: Register) -> None: ...
    def read_pruned(self, request: ReadPruned) -> Pruned | None: ...
    def read_source(self, request: ReadSource) -> SourceFacts: ...
    def begin_slot(self, request: BeginSlot) -> None: ...
    def slot_made(self, request: SlotMade) -> tuple[Lsn, Snapshot] | None: ...
    def drop_slot(self, request: DropSlot) -> None: ...
    def take_snapshot(self, request: TakeSnapshot) -> tuple[Snapshot, Lsn]: ...
    def still_running(self, request: StillRunning) -> bool: ...
    def read_missing(self, request: ReadMissing) -> MissingRows: ...
    def open_stream(self, request: OpenStream) -> None: ...
    def find_look(self, request: FindLook) -> Seen: ...
    def ask_again(self, request: AskAgain) -> None: ...
    def receive(self, request: Receive) -> Received: ...
    def observe(self, request: Observe) -> Observation: ...
    def confirm(self, request: Confirm) -> None: ...
    def wait(self, request: Wait) -> bool: ...
