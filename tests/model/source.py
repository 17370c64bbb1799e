"""A simulated source cluster: transactions, WAL, visibility, a publication, slots, the registry, pruning.

Apart from simulation.py because it knows nothing of the bridge: it behaves as PostgreSQL 15 to 18 were seen to
(docs/guarantees.md lists what), one atomic act a method. Copies of it are disk copies and standbys.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field, replace
from itertools import count
from typing import NamedTuple

from bridge.protocol.events import Lsn, Snapshot, intersection
from bridge.protocol.facts import Pruned, Registration, RelayFacts

_LIVES = count(2)


class Row(NamedTuple):
    """A row of the outbox. published: what the decoder will make of it: yes, no, or error (<= 17)."""

    id: str
    seq: int
    xid: int
    key: int | None  # keys below zero are not guarded by a lock
    published: str
    born: int
    says: int | None = 0  # what its column xid says, where that is not the xid of its transaction; None: NULL
    savepoint: int = 0  # the id of the savepoint that wrote it, which no snapshot lists; 0: none

    @property
    def claimed(self) -> int | None:
        return self.xid if self.says == 0 else self.says

    @property
    def is_stranger(self) -> bool:
        """No xid, or one that this cluster gives out later."""
        return self.claimed is None or self.claimed > self.placed

    @property
    def placed(self) -> int:
        """By what the table shows: its own xid; for a stranger, that of what wrote it."""
        own = self.savepoint or self.xid
        return own if self.claimed is None else min(self.claimed, own)


class Commit(NamedTuple):
    """A commit record in the WAL, of a transaction with or without rows of the outbox."""

    start: int
    end: int
    xid: int
    rows: tuple[Row, ...]


@dataclass
class Transaction:
    """In the running set. recorded: its commit record is in the WAL, yet nobody sees it so far."""

    xid: int
    rows: list[Row] = field(default_factory=list)
    prepared: bool = False
    recorded: bool = False


@dataclass
class Slot:
    """on_disk: what a crash brings `confirmed` back to. reader: the connection that streams from it."""

    name: str
    confirmed: int
    on_disk: int
    number: int
    reader: object | None = None
    lost: bool = False


@dataclass
class Making:
    """A slot being created on a connection of its own. waits: xids that must end first, two rounds."""

    name: str
    number: int
    waits: set[int]
    rounds: int = 0
    made: tuple[Lsn, Snapshot] | None = None
    broken: bool = False


class Source:
    """One cluster. Every method is one atomic act."""

    def __init__(self) -> None:
        self.timeline = 1
        self.switch_points: dict[int, Lsn] = {}
        self.lsn = 1000  # insert position
        self.next_xid = 10
        self.next_seq = 1
        self.latest_completed = 9
        self.running: dict[int, Transaction] = {}
        self.wal: list[Commit] = []
        self.flushed = 1000
        self.table: dict[str, Row] = {}  # rows of recorded transactions; running ones are not seen
        self.slots: dict[str, Slot] = {}
        self.publication: str | None = "pub-1"
        self.publishes = True
        self.registry: dict[str, Registration] = {}  # by stream
        self.relay: RelayFacts | None = None  # the row of outbox.relay
        self.life = "1"  # of this run of the server
        self.pruned: Pruned | None = None
        self.pruned_ids: set[str] = set()
        self.partitioned = False
        self.decoder_raises = False  # 17 and older: a row written without the publication stops the decoder
        self.unflushed: Source | None = None  # the cluster as a crash would leave it, if not as it is

    def clone(self) -> Source:
        """A disk copy, as it would come up. The WAL is shared as a list of immutable records."""
        other = copy(self)
        other.switch_points = dict(self.switch_points)
        other.running = {x: replace(t, rows=list(t.rows)) for x, t in self.running.items()}
        other.wal = list(self.wal)
        other.table = dict(self.table)
        other.slots = {n: replace(s, reader=None) for n, s in self.slots.items()}
        other.pruned_ids = set(self.pruned_ids)
        other.registry = dict(self.registry)
        other.unflushed = None
        return other

    # --- producers ----------------------------------------------------------------------------

    def begin(self) -> Transaction:
        transaction = Transaction(self.next_xid)
        self.next_xid += 1
        self.running[transaction.xid] = transaction
        return transaction

    def insert(self, transaction: Transaction, name: str, key: int | None, now: int) -> Row:
        self.lsn += 8
        published = "yes" if self.publication and self.publishes else "no"
        if self.publication is None and self.decoder_raises:
            published = "error"
        row = Row(name, self.next_seq, transaction.xid, key, published, now)
        self.next_seq += 1
        transaction.rows.append(row)
        return row

    def insert_stranger(self, transaction: Transaction, name: str, says: int | None, now: int) -> Row:
        """A row from elsewhere. It may be written under a savepoint, which has an id of its own."""
        savepoint = self.next_xid if now % 2 else 0
        self.next_xid += savepoint != 0
        row = self.insert(transaction, name, None, now)._replace(says=says, savepoint=savepoint)
        transaction.rows[-1] = row
        return row

    def move(self, row: Row) -> None:
        """An update puts the row into another partition: the WAL has it as an insert by the updating transaction, and
        it keeps what its column says."""
        transaction = self.begin()
        self.lsn += 24
        published = "yes" if self.publication and self.publishes else "no"
        self.wal.append(
            Commit(self.lsn - 16, self.lsn, transaction.xid, (row._replace(published=published),))
        )
        self.leave(transaction)
        self.flush()

    def locked_keys(self) -> set[int | None]:
        return {row.key for t in self.running.values() for row in t.rows}

    def record(self, transaction: Transaction, *, flush: bool = True) -> None:
        """The commit record. flush=False: synchronous_commit = off."""
        if not flush and self.unflushed is None:
            self.unflushed = self.clone()
        start = self.lsn
        self.lsn += 16
        transaction.recorded, transaction.prepared = True, False
        self.wal.append(Commit(start, self.lsn, transaction.xid, tuple(transaction.rows)))
        for row in transaction.rows:
            self.table[row.id] = row
        if flush:
            self.flush()

    def flush(self) -> None:
        self.flushed = self.lsn
        self.unflushed = None

    def leave(self, transaction: Transaction) -> None:
        """Out of the running set: from now on its rows are seen."""
        del self.running[transaction.xid]
        self.latest_completed = max(self.latest_completed, transaction.xid)

    def abort(self, transaction: Transaction) -> None:
        self.lsn += 8
        self.leave(transaction)

    def other_wal(self, size: int) -> None:
        """What other tables of a busy cluster write."""
        self.lsn += size
        self.next_xid += 1
        self.latest_completed = max(self.latest_completed, self.next_xid - 1)
        self.flush()

    # --- looking ------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """pg_current_snapshot()"""
        xmax = self.latest_completed + 1
        return Snapshot(
            min([*self.running, xmax]), xmax, frozenset(xid for xid in self.running if xid < xmax)
        )

    def seen(self, row: Row) -> bool:
        return row.id in self.table and row.xid not in self.running

    def identity(self) -> str | None:
        """Of the publication; None unless it publishes the outbox's inserts."""
        return self.publication if self.publishes else None

    # --- slots --------------------------------------------------------------------------------

    def begin_slot(self, name: str, number: int) -> Making:
        return Making(name, number, set(self.running))

    def advance_making(self, making: Making) -> bool:
        """Another step of slot creation. True: the slot is there, and its snapshot is exported."""
        if making.made is None and not making.waits & set(self.running):
            making.rounds += 1
            making.waits = set(self.running)
            if making.rounds >= 2:
                self.flush()
                making.made = (Lsn(self.lsn), self._wal_snapshot())
                self.slots[making.name] = Slot(making.name, self.lsn, self.lsn, making.number)
        return making.made is not None

    def _wal_snapshot(self) -> Snapshot:
        """What the decoder has seen commit: it runs ahead of the running set."""
        open_xids = {xid for xid, t in self.running.items() if not t.recorded}
        committed = {commit.xid for commit in self.wal}
        xmin = min(open_xids, default=self.next_xid)
        xmax = max(xmin, max(committed, default=0) + 1)
        return Snapshot(xmin, xmax, frozenset(x for x in range(xmin, xmax) if x not in committed))

    # --- faults -------------------------------------------------------------------------------

    def crash(self) -> Source:
        """The cluster after an immediate stop and recovery: the same, or the part of it that was flushed."""
        base = self.unflushed or self
        after = base.clone()
        after.life = str(next(_LIVES))
        after.flushed = after.lsn
        for slot in after.slots.values():
            slot.confirmed = min(slot.on_disk, slot.confirmed)
        for transaction in list(after.running.values()):
            if transaction.recorded:
                after.leave(transaction)
            elif not transaction.prepared:
                after.abort(transaction)
        return after

    def promote(self, *, failover_slots: bool) -> Source:
        """This copy as a primary on a timeline of its own."""
        switch = Lsn(self.lsn)
        after = self.crash()
        after.switch_points = {**self.switch_points, self.timeline: switch}
        after.timeline = self.timeline + 1
        if not failover_slots:
            after.slots = {}
        return after

    def prune(self) -> int:
        """By the published rule. The number of rows deleted."""
        if not self.registry:
            return 0
        floor = intersection(each.floor for each in self.registry.values())
        witnesses = {each.witness_id for each in self.registry.values()}
        gone = [row for row in self.table.values() if floor.shows(row.xid) and row.id not in witnesses]
        if not gone:
            return 0
        greatest = max(row.xid for row in gone)
        if self.pruned is not None:
            greatest = max(greatest, self.pruned.greatest_xid)
        for row in gone:
            del self.table[row.id]
            self.pruned_ids.add(row.id)
        self.lsn += 8
        self.flush()
        self.pruned = Pruned(greatest, floor)
        return len(gone)
