"""What the protocol asks of the world: one request, one atomic act on one server.

The protocol (protocol.py) yields these and is sent the answers; engine.py performs them on real
servers, the model checker in tests/model on imagined ones. An act that fails raises: the session is
over, and the next one begins with the fence, exactly as after a crash.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from bridge.protocol.events import Batch, Listed, Lsn, Snapshot
from bridge.protocol.facts import Ledger, Pruned, Registration, SourceFacts, TargetFacts

T = TypeVar("T")


class Request(Generic[T]):
    """Something to do; T is the answer's type."""

    __slots__ = ()


Asking = Generator[Request[Any], Any, T]


def ask(request: Request[T]) -> Asking[T]:
    """`answer = yield from ask(SomeRequest())`, typed."""
    return cast(T, (yield request))


# --- target ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReadTarget(Request[TargetFacts]):
    """Look, without a lock."""


@dataclass(frozen=True, slots=True)
class Fence(Request[Ledger | None]):
    """Lock the checkpoint row, epoch += 1, session = ours, commit. The row lock waits for a commit whose
    answer was lost. create: insert the row where there is none; else answer None."""

    session: str
    create: bool
    since: str | None


@dataclass(frozen=True, slots=True)
class Save(Request[None]):
    """Replace the row `before` by `after` if it still is `before` (epoch, session, applied_lsn, next_seq,
    floor_lsn: the target may be restored under an open session), else raise Fenced. thin: delete from
    `applied` what this snapshot shows. forget_above: the source lost its WAL above this LSN; take what was
    listed above it out of `applied`."""

    before: Ledger
    after: Ledger
    thin: Snapshot | None = None
    forget_above: Lsn | None = None


@dataclass(frozen=True, slots=True)
class Prepare(Request[None]):
    """Plan and encode this batch (enrich, map); nothing is sent yet. Overlaps with a commit in flight."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class Apply(Request[None]):
    """Send the prepared batch in one transaction with `before` -> `after`, and do not wait.

    list_as: also list its transactions in `applied` with the seqs of their rows, as brought by this
    incarnation. A chunk (not batch.whole) leaves that transaction open: the ledger is written, and all
    chunks are listed, with the chunk that ends it.
    """

    batch: Batch
    before: Ledger
    after: Ledger
    list_as: int | None = None
    thin: Snapshot | None = None


@dataclass(frozen=True, slots=True)
class Settle(Request[None]):
    """Wait until what was sent last is durable. An unknown outcome raises: the next fence finds out."""


@dataclass(frozen=True, slots=True)
class ReadApplied(Request[Listed]):
    """What `applied` lists; except_incarnation leaves out what that slot itself brought."""

    except_incarnation: int | None = None


# --- source ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReadRegistration(Request[Registration | None]):
    pass


@dataclass(frozen=True, slots=True)
class Register(Request[None]):
    """Committed and flushed when answered; of two values of `reached` the greater one stays.

    holder: whose session must hold the row, None: there must be none yet. Else nothing is written, and it
    raises Fenced where the holder should be ourselves, Retry where we wanted to take the row over.
    """

    registration: Registration
    holder: str | None


@dataclass(frozen=True, slots=True)
class ReadPruned(Request[Pruned | None]):
    """What prune has deleted, read after our floor was registered: a batch of prune that began before
    has ended, and a later one respects the floor."""


@dataclass(frozen=True, slots=True)
class ReadSource(Request[SourceFacts]):
    slot: str | None
    witness_id: str | None
    witness_xid: int | None


@dataclass(frozen=True, slots=True)
class BeginSlot(Request[None]):
    """Start to create this slot (drop one of this name first). Waits for every open transaction of the
    cluster that has an xid, so it goes on in the background."""

    name: str


@dataclass(frozen=True, slots=True)
class SlotMade(Request["tuple[Lsn, Snapshot] | None"]):
    """The slot's consistent point and the snapshot exported with it; None: not yet."""


@dataclass(frozen=True, slots=True)
class DropSlot(Request[None]):
    """Gone already is fine."""

    name: str


@dataclass(frozen=True, slots=True)
class TakeSnapshot(Request["tuple[Snapshot, Lsn]"]):
    """pg_current_snapshot(), and pg_current_wal_insert_lsn() read after it."""


@dataclass(frozen=True, slots=True)
class StillRunning(Request[bool]):
    """Is any xid that this snapshot shows still running? WAL runs ahead of visibility."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class ReadMissing(Request["MissingRows"]):
    """The next rows, by seq, that are visible in `upto` and not in `floor`."""

    floor: Snapshot
    upto: Snapshot
    after_seq: int
    since: str | None


@dataclass(frozen=True, slots=True)
class MissingRows:
    """Rows of a catch-up or a poll. `more`: there may be rows behind the last one."""

    batch: Batch
    last_seq: int
    more: bool


# --- stream ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenStream(Request[None]):
    slot: str
    start: Lsn


@dataclass(frozen=True, slots=True)
class Received:
    """position: everything up to here has been received and handed out in batches, this one included."""

    batch: Batch | None
    position: Lsn
    settled: bool = False  # what was sent last is durable
    tick: bool = False  # time to look at the source
    stop: bool = False  # we are asked to end; nothing more will come


@dataclass(frozen=True, slots=True)
class Receive(Request[Received]):
    """The next batch of whole transactions, a chunk of a huge one, or None after a tick or a commit."""


@dataclass(frozen=True, slots=True)
class Observation:
    """Read in this order, after the positions that it is to cover."""

    publication: str | None  # its identity; None also where it does not publish the outbox's inserts
    snapshot: Snapshot
    insert_lsn: Lsn
    idle_write_due: bool = False  # 10 s and 1 MiB since the last idle write, or the WAL brake is near


@dataclass(frozen=True, slots=True)
class Observe(Request[Observation]):
    position: Lsn


@dataclass(frozen=True, slots=True)
class Confirm(Request[None]):
    """Tell the slot that everything up to here is durable elsewhere."""

    lsn: Lsn


@dataclass(frozen=True, slots=True)
class Wait(Request[bool]):
    """Poll mode: wait for a notification or the timer. True: stop."""
