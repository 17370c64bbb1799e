"""A simulated target database: the ledger row, `applied`, and every effect there ever was, without a
unique constraint. Apart from simulation.py because only here is it said what one transaction is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from bridge.errors import Fenced, Retry
from bridge.protocol.events import Event, Listed, Lsn, Seqs, Snapshot, listed
from bridge.protocol.facts import Ledger, SourceIdentity
from bridge.protocol.requests import Apply


@dataclass(frozen=True)
class Listing:
    """A row of `applied`."""

    incarnation: int
    xids: tuple[int, ...]
    end_lsns: tuple[Lsn, ...]
    seqs: Seqs


def same_row(stored: Ledger | None, before: Ledger) -> bool:
    """The predicate of the first and the last statement of every transaction: fenced unless it holds."""
    if stored is None:
        return False
    return _token(stored) == _token(before)


def of_source(row: Ledger, source: SourceIdentity) -> bool:
    """The fence's predicate: the row belongs to this source, or does not say whose it is."""
    return row.system_identifier in (None, source.system) and row.database_oid in (None, source.oid)


def _token(row: Ledger) -> tuple[object, ...]:
    return row.epoch, row.session, row.applied_lsn, row.next.seq if row.next else 0, row.floor_lsn


@dataclass(eq=False)
class Sent:
    """A transaction that a bridge has sent: it runs, and commits or not, whether or not anybody waits."""

    apply: Apply
    events: list[Event] = field(default_factory=list)
    state: str = "sent"  # sent, locked (the row is ours), committed, failed, fenced
    complete: bool = False  # the chunk that ends it has been sent
    told: bool = False  # the bridge knows
    orphan: bool = False


class Target:
    """Durable state, and the transactions in flight over it."""

    def __init__(self) -> None:
        self.ledger: Ledger | None = None
        self.applied: list[Listing] = []
        self.effects: list[Event] = []
        self.ids: dict[str, int] = {}
        self.lock: Sent | None = None
        self.history = 0  # of the source, as it was when this copy was made

    def clone(self) -> Target:
        other = Target()
        other.ledger, other.applied = self.ledger, list(self.applied)
        other.history = self.history
        other.effects, other.ids = list(self.effects), dict(self.ids)
        return other

    def listed(self, except_incarnation: int | None = None) -> Listed:
        return listed((row.xids, row.seqs) for row in self.applied if row.incarnation != except_incarnation)

    def thin(self, shown: Snapshot) -> None:
        """Take out what the snapshot shows."""
        self._keep(lambda xid, _: not shown.shows(xid))

    def forget_above(self, above: Lsn) -> None:
        self._keep(lambda _, lsn: lsn <= above)

    def _keep(self, wanted: Callable[[int, Lsn], bool]) -> None:
        kept = []
        for row in self.applied:
            pairs = [pair for pair in zip(row.xids, row.end_lsns, strict=True) if wanted(*pair)]
            if pairs:
                kept.append(
                    replace(row, xids=tuple(x for x, _ in pairs), end_lsns=tuple(n for _, n in pairs))
                )
        self.applied = kept

    # --- transactions -------------------------------------------------------------------------

    def take_lock(self, sent: Sent) -> bool:
        """The first statement of an apply transaction. False: it waits for the row."""
        if sent.state != "sent":
            return True
        if self.lock is not None:
            return False
        if not same_row(self.ledger, sent.apply.before):
            sent.state = "fenced"
            return True
        sent.state, self.lock = "locked", sent
        return True

    def commit(self, sent: Sent) -> None:
        assert self.lock is sent
        assert sent.complete
        apply = sent.apply
        for event in sent.events:
            name = event.id.decode()
            self.effects.append(event)
            self.ids[name] = self.ids.get(name, 0) + 1
        self.ledger = apply.after
        if apply.list_as is not None and apply.batch.xids:
            seqs = Seqs.of(int(event.seq) for event in sent.events)
            xids, lsns = tuple(apply.batch.xids), tuple(apply.batch.end_lsns)
            self.applied.append(Listing(apply.list_as, xids, lsns, seqs))
        if apply.thin is not None:
            self.thin(apply.thin)
        sent.state, self.lock = "committed", None

    def roll_back(self, sent: Sent) -> None:
        if self.lock is sent:
            self.lock = None
        if sent.state in ("sent", "locked"):
            sent.state = "failed"


def outcome(sent: Sent) -> None:
    """What the bridge that waits is told. Raises Fenced or Retry."""
    sent.told = True
    if sent.state == "fenced":
        raise Fenced("the checkpoint row has another epoch, session or position")
    if sent.state != "committed":
        raise Retry("the target connection was lost")
