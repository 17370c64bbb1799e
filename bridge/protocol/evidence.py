"""Is it what we believe it is? The WAL that a stream reads, by its witness; the rows that it brings, by their xids.

preflight.py asks before a session begins, session.py while it streams. docs/guarantees.md, "Rows with foreign xids" and
"Preflight".
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from bridge.errors import Halt
from bridge.protocol.events import NOTHING, Batch, Done, Event, format_lsn
from bridge.protocol.facts import Ledger, Mode, Pruned, SourceFacts

UNMARKED = 0
"""The xid of an event of an outbox without that column."""


# --- the history, by the witness --------------------------------------------------------------------


def witnessed(ledger: Ledger, source: SourceFacts) -> bool:
    """Is the WAL up to applied_lsn the WAL that we read? The witness's row shows it. Where the application deletes its
    rows, the registry does (`_in_registry` was asked before): its `reached` was written after everything that our
    snapshots show. A witness that is newer than they are needs the slot."""
    if source.witness_present or _pruned_since(ledger.witness_xid, source.pruned):
        return True
    if ledger.mode is Mode.STREAM:
        return ledger.applied_lsn <= ledger.snapshot_lsn
    snapshots = [ledger.floor, *([ledger.next.snapshot] if ledger.next else [])]
    return any(snapshot.shows(ledger.witness_xid or 0) for snapshot in snapshots)


def find_witness(batch: Batch, ledger: Ledger) -> bool:
    """Does this batch of the stream bring the witness, in a transaction up to applied_lsn? Raises Halt if the stream is
    past it without having brought it: this WAL is not the one that was read."""
    ends = [*batch.end_lsns] if batch.whole else []
    before = sum(batch.commit_rows[: bisect_right(ends, ledger.applied_lsn)])
    witness = (ledger.witness_id or "").encode()
    if any(event.id == witness for event in batch.events[:before]):
        return True
    if batch.chunk:
        raise witness_missing("and a transaction that is larger than a batch is in its place")
    if ends and ends[-1] > ledger.applied_lsn:
        raise not_in_wal(ledger)
    return False


def not_in_wal(ledger: Ledger) -> Halt:
    return diverged(
        f"the source's WAL does not have the last applied event before {format_lsn(ledger.applied_lsn)}, and the "
        "outbox does not either: the source was restored from a copy"
    )


def witness_missing(why: str) -> Halt:
    return Halt(
        f"the last applied event is no longer in the outbox, {why}: the application deleted the row less than two "
        "seconds before the bridge ended, or the source was restored from a copy",
        reason="witness_missing",
        hint="bridge prove shows whether anything differs; then: bridge recover --accept-source (docs/operations.md, "
        "witness_missing)",
    )


def diverged(message: str) -> Halt:
    return Halt(
        message,
        reason="history_diverged",
        hint="bridge prove shows the differences; then choose a way: bridge recover --help",
    )


def _pruned_since(xid: int | None, pruned: Pruned | None) -> bool:
    """May prune have deleted this witness? Only if the target was restored to a time before a prune."""
    return xid is not None and pruned is not None and xid <= pruned.greatest_xid and pruned.floor.shows(xid)


# --- the rows, by their xids ------------------------------------------------------------------------


def check_outbox(ledger: Ledger, source: SourceFacts, *, has_xid: bool) -> None:
    """Does the outbox have what its rows are placed by? Raises Halt."""
    if ledger.mode is not Mode.NEW and source.restored:
        raise foreign_xids("the outbox came from a dump, and its rows have the xids of another cluster")
    if source.partitioned and not has_xid:
        raise Halt(
            "the outbox is partitioned and has no xid column: a row that an UPDATE moves to another partition "
            "cannot be told from a new one, and would be applied again",
            reason="xid_missing",
            hint="bridge doctor prints the column to add",
        )
    if source.replicated and has_xid:
        raise foreign_xids(
            "a subscription writes into the outbox, and its rows keep the xids of their publisher"
        )


def is_unmarked(ledger: Ledger) -> bool:
    """Is this the position of a stream whose rows had no xid? It is one in the slot's WAL alone, until a floor is
    raised that shows the transaction which added the column."""
    return ledger.mode is Mode.STREAM and ledger.floor == NOTHING


def check_strays(strays: Sequence[Event], done: Done, *, may_move: bool) -> None:
    """Rows of the stream whose xid is not that of the transaction that brought them. may_move: an UPDATE may have
    moved them to another partition. Such a row was brought before, under its own xid; whoever sees it there and
    applied may pass over it. Raises Halt for every other one: by their xids they would be lost or come twice."""
    foreign = [row for row in strays if not (may_move and row.xid and done.has(row))]
    if foreign:
        row = foreign[0]
        raise foreign_xids(
            f"{len(foreign)} rows of a transaction were not written with the xid that the transaction has "
            f"(the first: id {row.id.decode(errors='replace')}, xid {(row.xid or b'NULL').decode()}, "
            f"seq {row.seq.decode()})"
        )


def foreign_xids(message: str) -> Halt:
    return Halt(
        f"{message}: the outbox was restored, replicated here or altered, or somebody wrote the column. "
        "Nothing of it was applied or acknowledged",
        reason="foreign_xids",
        hint="bridge doctor shows the cause and its SQL; afterwards `bridge recover --adopt-outbox` applies what was "
        "not applied, once (its --dry-run shows what it would do)",
    )
