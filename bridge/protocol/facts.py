"""What the two servers say about a stream, as values: the ledger row of the target, the facts of the source.

preflight.py judges them; postgres/ledger.py and postgres/source.py read and write them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, Literal

from bridge.protocol.events import NOTHING, ZERO, Lsn, Snapshot

Phase = Literal["starting", "standby", "catchup", "streaming", "polling", "halted", "stopped"]
"""What a stream's thread is doing; never stored. observe/state.py explains each phase."""


IDENTITY_SINCE_0_2: Final = "+"
"""What stands between the parts of a publication's identity that 0.1 knew and those that it did not. (A ledger of 0.1
has the first ones alone; see `same_publication`.)"""


MOVER: Final = "6d6f7665"
"""How the sessions begin that divide streams anew: whoever is fenced by one has lost its stream for a moment only."""


class Mode(StrEnum):
    """Where a stream stands; stored in the ledger.

    | mode | set by | meaning |
    | --- | --- | --- |
    | new | the first fence | nothing applied yet; `since` says which rows are wanted |
    | catchup | before a slot is made | the table is read up to `next`; LSNs mean nothing until it ends |
    | stream | the last batch of catch-up | the slot's transactions after `applied_lsn` are next |
    | poll | the first poll | the table is read from snapshot to snapshot; there is no slot |
    """

    NEW = "new"
    CATCHUP = "catchup"
    STREAM = "stream"
    POLL = "poll"


BEFORE_ALL = -(1 << 63)
"""The seq before the first row: bigint's least value. A seq of the customer's own may be negative."""


@dataclass(frozen=True, slots=True)
class SourceIdentity:
    """Which database an outbox is in. The name may change; the oid is given once in a cluster."""

    system: str  # the cluster's system identifier
    database: str
    oid: int

    def __str__(self) -> str:
        return f"database {self.database} (oid {self.oid}) of cluster {self.system}"


@dataclass(frozen=True, slots=True)
class Goal:
    """A snapshot that is being applied from the table, by seq. Once stored, it is always finished.

    lsn: a WAL position read after the snapshot; for a snapshot that came with a slot, where the slot starts.
    """

    snapshot: Snapshot
    lsn: Lsn
    from_slot: bool = False
    seq: int = BEFORE_ALL  # applied up to here


@dataclass(frozen=True, slots=True)
class Ledger:
    """The checkpoint row of one stream. sql/target/001_ledger.sql explains each column."""

    stream: str
    epoch: int
    session: str
    mode: Mode = Mode.NEW
    system_identifier: str | None = None
    database: str | None = None
    database_oid: int | None = None  # None: not told since the ledger got this column (003_sources.sql)
    timeline: int | None = None
    publication: str | None = None
    incarnation: int = 0
    applied_lsn: Lsn = ZERO
    safe_lsn: Lsn = ZERO
    floor: Snapshot = NOTHING
    floor_lsn: Lsn = ZERO
    next: Goal | None = None
    since: str | None = None
    witness_id: str | None = None
    witness_xid: int | None = None
    accepted_gap: int | None = None  # an operator accepted the loss of what was pruned up to this xid

    @property
    def snapshot_lsn(self) -> Lsn:
        """A lower bound of the source's WAL position when the snapshots in this row were taken."""
        return max(self.floor_lsn, self.next.lsn if self.next else ZERO)

    def of_source(self, source: SourceIdentity) -> Ledger:
        """As it is once it belongs to this source."""
        return replace(
            self, system_identifier=source.system, database=source.database, database_oid=source.oid
        )

    @property
    def owner(self) -> str:
        """The source that it belongs to, in words."""
        if self.database_oid is None:
            return f"a database of cluster {self.system_identifier}"
        return str(SourceIdentity(self.system_identifier or "", self.database or "", self.database_oid))


def same_publication(known: str | None, seen: str | None) -> bool:
    """Is it the publication that the ledger knows? An upgrade of the bridge is no change of a publication: a ledger
    that 0.1 wrote is compared by what 0.1 knew."""
    if known is None or seen is None or IDENTITY_SINCE_0_2 in known:
        return known == seen
    return seen.partition(f" {IDENTITY_SINCE_0_2}")[0] == known


@dataclass(frozen=True, slots=True)
class SlotFacts:
    """A row of pg_replication_slots."""

    name: str
    confirmed_flush: Lsn
    active: bool
    usable: bool  # logical, pgoutput, in this database, not invalidated
    problem: str = ""  # why it is not usable: wal_status lost, other plugin, ...
    ours: bool = True  # logical, pgoutput, in this database; another one may have our name, for names are the cluster's
    reader: str = ""  # who reads it, if that is not a bridge of this stream


@dataclass(frozen=True, slots=True)
class SlotRefused:
    """Why the server lets nobody, or not this role, have a slot. reason: a word of docs/operations.md."""

    reason: str
    message: str
    fix: str


@dataclass(frozen=True, slots=True)
class Pruned:
    """What prune has deleted from the outbox so far: rows of transactions up to `greatest_xid` that are visible in
    `floor`."""

    greatest_xid: int
    floor: Snapshot


@dataclass(frozen=True, slots=True)
class RelayFacts:
    """The source's row in outbox.relay: what its relay reads, and puts into the log. A new incarnation has a new slot.

    publication: its identity, read before the slot was made. Frames are made only while it is the same.
    ready: the slot is made, and whatever committed before it is visible.
    """

    incarnation: int
    partitions: int
    publication: str | None
    ready: bool = False
    session: str = ""


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """The source as it is now, read at once over the session's own connection. When that connection is lost the
    session ends, because another server may answer the next one.

    publication: None also if it does not publish the outbox's inserts. While the witness's transaction is still
    running (WAL runs ahead of visibility) the facts are not available: Retry.
    """

    system_identifier: str
    timeline: int
    flush_lsn: Lsn
    publication: str | None  # its identity
    slot: SlotFacts | None
    switch_points: dict[int, Lsn] = field(default_factory=dict)  # timeline -> where history left it
    witness_present: bool = True
    in_recovery: bool = False
    two_phase: bool = False  # max_prepared_transactions > 0
    slot_refused: SlotRefused | None = None  # why no slot can be had here; None: it can
    taken: frozenset[str] = (
        frozenset()
    )  # slots of other databases and programs that begin with the stream's name
    pruned: Pruned | None = None
    partitioned: bool = False  # an UPDATE can move a row of the outbox, which arrives as if it were inserted
    restored: bool = False  # the outbox came from a dump, with the xids of another cluster
    database: str = ""
    database_oid: int = 0
    replicated: bool = False  # a subscription writes rows of the outbox with xids of its publisher
    life: str = ""  # which run of the server this is: its system identifier and when its postmaster started
    relay: RelayFacts | None = None  # with a log; None: no relay has begun
    moving: bool = False  # somebody divides its streams anew (barrier.py), and lives

    @property
    def identity(self) -> SourceIdentity:
        return SourceIdentity(self.system_identifier, self.database, self.database_oid)


@dataclass(frozen=True, slots=True)
class Registration:
    """The stream's row in the source's registry, outbox.stream.

    reached: a WAL position of this source that the ledger may rely on. It is written here, and flushed, before a
    floor or a goal with that position is written to the ledger. A source whose registry has a lower value is an
    older copy, however far its WAL has advanced. The greater of two values is kept.

    session: the session that may write the row. The session that fenced last takes the row over, after the fence;
    writes of an earlier session that arrive later are refused.

    relay: its slot may be confirmed only to what this stream has applied. Another relay or incarnation begins anew
    there.
    """

    stream: str
    target_system: str
    target_database: str
    slot: str | None
    floor: Snapshot
    witness_id: str | None
    reached: Lsn = ZERO
    session: str = ""
    relay: str | None = None  # whose frames it applies, of this incarnation; None: it reads a slot of its own
    incarnation: int = 0
    confirmed: Lsn | None = (
        None  # as Confirm wrote it, for this relay and incarnation; Register leaves it, or empties it
    )


@dataclass(frozen=True, slots=True)
class TargetFacts:
    """The target before the fence. `busy`: another live session of this stream is connected. divided: the ledger's rows
    of the same events in another layout, of other partitions or of none."""

    system_identifier: str
    database: str
    ledger: Ledger | None
    busy: bool = False
    divided: tuple[str, ...] = ()
