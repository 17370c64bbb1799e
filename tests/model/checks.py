"""What must hold: I1 to I6 after every act, the promise at rest, and which halt which history allows.

Apart from simulation.py so that what is checked is read in one place. Nothing here looks into the protocol:
only at the two servers. docs/guarantees.md states the invariants.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.errors import BridgeError, Fenced, StandBy, Verdict
from bridge.protocol.events import Listed
from bridge.protocol.facts import Ledger, Mode

if TYPE_CHECKING:
    from tests.model.simulation import Bridge, Simulation
    from tests.model.source import Row


class Violation(AssertionError):
    """The protocol broke its word."""


def require(holds: bool, *words: object) -> None:
    if not holds:
        raise Violation(" ".join(map(str, words)))


def after_target(simulation: Simulation) -> None:
    """Nothing twice; I2 and I6."""
    twice = [name for name, times in simulation.target.ids.items() if times > 1]
    require(not twice, "applied twice:", twice)
    if not simulation.unjudged:
        told_as_applied(simulation)


def after_source(simulation: Simulation) -> None:
    if not simulation.unjudged:
        told_as_applied(simulation)


def told_as_applied(simulation: Simulation) -> None:
    """I6: applied <=> visible in floor, listed in `applied`, or read already by the stored goal.
    I2: while streaming, nothing that the slot brought before applied_lsn is missing."""
    ledger = simulation.target.ledger
    if ledger is None:
        return
    listed = simulation.target.listed()
    for commit in simulation.source.wal:
        for row in commit.rows:
            told = knows(ledger, listed, row)
            applied = row.id in simulation.target.ids
            if told and not applied:
                require(
                    not wanted(simulation, row),
                    "I6: the ledger says applied, and it is not:",
                    row,
                    ledger,
                    listed,
                )
            if applied and not told:
                require(False, "I6: applied, and the ledger does not know:", row, ledger, listed)
            if (
                ledger.mode is Mode.STREAM
                and row.published == "yes"
                and commit.end <= ledger.applied_lsn
                and not applied
            ):
                require(
                    not wanted(simulation, row),
                    "I2: applied_lsn is past a row that is not applied:",
                    row,
                    ledger,
                )


def knows(ledger: Ledger, listed: Listed, row: Row) -> bool:
    goal = ledger.next
    return (
        ledger.floor.shows(row.xid)
        or any(row.seq in seqs for seqs in listed.get(row.xid, ()))
        or (goal is not None and goal.snapshot.shows(row.xid) and row.seq <= goal.seq)
    )


def wanted(simulation: Simulation, row: Row) -> bool:
    """Rows older than the stream's beginning may come or not; so may those that the application has deleted."""
    if row.id in simulation.deleted or not simulation.owns(row):
        return False
    if simulation.since is None:
        return True
    if simulation.since == "infinity":
        ledger = simulation.target.ledger
        return ledger is not None and ledger.since is None and row.born > simulation.began_at
    return row.born >= int(simulation.since)


def monotonic(simulation: Simulation, before: Ledger, after: Ledger) -> None:
    """I3, and that only the fence changes who may write."""
    require((before.epoch, before.session) == (after.epoch, after.session), "I4: written by another session")
    same = before.incarnation == after.incarnation and before.timeline == after.timeline
    if same and before.mode is Mode.STREAM is after.mode:
        require(after.applied_lsn >= before.applied_lsn, "I3: applied_lsn fell", before, after)
    if before.next is not None and after.next is not None:
        require(
            before.next.snapshot == after.next.snapshot and before.next.seq <= after.next.seq,
            "a stored goal was abandoned half-read",
        )


def confirmable(simulation: Simulation, bridge: Bridge, lsn: int) -> None:
    """I1: the slot is told only what is durable. A target restored under the session is no word of ours."""
    ledger = simulation.target.ledger
    require(lsn <= simulation.source.lsn, "confirmed beyond the source's WAL")
    if bridge.target_restores == simulation.target_restores and ledger is not None:
        mine = bridge.fenced_as is not None and ledger.session == bridge.fenced_as.session
        if mine:
            require(lsn <= ledger.safe_lsn, "I1: confirmed", lsn, "and only", ledger.safe_lsn, "is durable")


# --- how a session may end --------------------------------------------------------------------------


def legal_end(simulation: Simulation, error: BridgeError) -> None:
    """Halts are legal only where the history gives cause."""
    if error.verdict is not Verdict.HALT:
        require(
            error.verdict is Verdict.RETRY or isinstance(error, Fenced | StandBy), "unexpected end:", error
        )
        return
    cause = {
        "publication_missing": simulation.source.identity() is None,
        "ledger_missing": simulation.ledger_wiped,
        "slot_in_use": simulation.counts["somebody made a slot of our name"] > 0,
        "history_diverged": simulation.history_lost,
        "promotion_diverged": simulation.history_lost,
        "witness_missing": bool(simulation.deleted) or simulation.history_lost,
        "source_behind": simulation.history_lost,
        "outbox_pruned": simulation.target_restored,
        "foreign_xids": simulation.strangers,
    }
    require(cause.get(error.reason, False), "halted without a cause:", error.reason, error)
    if error.reason != "publication_missing":
        simulation.halted = error


def other_end(simulation: Simulation, bridge: Bridge, why: BridgeError | str) -> None:
    """A bridge of another source learns that the name is taken, and never waits for its turn."""
    if isinstance(why, BridgeError):
        reasons = ("stream_name_taken", "other_system") if bridge.copied else ("stream_name_taken",)
        simulation.counts[f"another source ended: {why.reason}"] += 1
        require(
            why.verdict is Verdict.RETRY or why.reason in reasons,
            "a bridge of another source ended otherwise:",
            why.reason,
            why,
        )


# --- at rest ----------------------------------------------------------------------------------------


def promise(simulation: Simulation) -> None:
    """Every committed row that the source has is applied exactly once; per key in the promised order."""
    target = simulation.target
    rows = [row for commit in simulation.source.wal for row in commit.rows]
    missing = [row for row in rows if target.ids.get(row.id, 0) != 1 and wanted(simulation, row)]
    require(not missing, "lost:", missing, target.ledger)
    twice = [name for name, times in target.ids.items() if times > 1]
    require(not twice, "applied twice:", twice)
    order(simulation, rows)


def order(simulation: Simulation, rows: list[Row]) -> None:
    """Events of one key whose transactions were ordered by a lock keep that order, unless the publication
    withheld one of them."""
    of = {row.id: row for row in rows}
    withheld = {row.key for row in rows if row.published != "yes"}
    last: dict[int, int] = {}
    for event in simulation.target.effects:
        row = of.get(event.id.decode())
        if (
            row is None
            or row.key is None
            or row.key < 0
            or row.key in withheld
            or not wanted(simulation, row)
        ):
            continue
        require(last.get(row.key, 0) < row.seq, "out of order for key", row.key, row)
        last[row.key] = row.seq
