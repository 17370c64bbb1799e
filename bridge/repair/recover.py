"""The decisions of an operator about a stream that is halted because its history changed. The bridge never makes
them itself.

If both servers are written, the target's row is locked and written first, then the source's, then the target
commits. So no session can start in between, and a failure half-way leaves a stream that halts as before.
"""

from __future__ import annotations

import psycopg

from bridge.errors import BridgeError
from bridge.postgres.origin import adopt_origin
from bridge.postgres.served import at_target
from bridge.postgres.slots import drop_slot

_FORGET = (
    "update bridge.checkpoint set mode = 'new', epoch = epoch + 1, floor = '3:3:', floor_lsn = '0/0',"
    " applied_lsn = '0/0', safe_lsn = '0/0', next = null, next_lsn = null, next_from_slot = false, next_seq = 0,"
    " system_identifier = null, source_database = null, source_database_oid = null,"
    " publication_identity = null, witness_id = null, witness_xid = null, accepted_gap = null,"
    " since = %s::timestamptz, updated_at = now() where stream = %s",
    "delete from bridge.applied where stream = %s",
)


class BridgeRuns(BridgeError):
    """A bridge is working on the stream."""

    reason = "bridge_runs"


def check_stopped(target: psycopg.Connection, stream: str) -> None:
    """Raise BridgeRuns while a bridge has a session at the target: a decision beside a working stream would lose or
    duplicate events."""
    pids = at_target(target, stream)
    if pids:
        raise BridgeRuns(
            f"a bridge is working on stream {stream} (pid {', '.join(map(str, pids))} at the target): "
            "nothing was changed",
            hint="stop every bridge of this configuration first; left behind by one that is gone, at the target: "
            f"select pg_terminate_backend({pids[0]});",
        )


def now(source: psycopg.Connection) -> str:
    """The source's clock, so that events between the decision and the next start are not skipped."""
    [moment] = source.execute("select clock_timestamp()").fetchone() or [None]
    return str(moment)


def accept_source(
    source: psycopg.Connection, target: psycopg.Connection, stream: str, since: str | None
) -> bool:
    """Start again with the source as it is now. since: the first event's time; None: every row of the outbox
    (applied ones again). False: the stream does not exist here, nothing was changed."""
    with target.transaction():
        if not forget(target, stream, since):
            return False
        with source.transaction():
            adopt_origin(source)
            forget_registration(source, stream)
    return True


def forget(target: psycopg.Connection, stream: str, since: str | None) -> bool:
    """Empty the stream's position. False: it has none."""
    if target.execute(_FORGET[0], [since, stream]).rowcount != 1:
        return False
    target.execute(_FORGET[1], [stream])
    return True


def forget_registration(source: psycopg.Connection, stream: str) -> None:
    """The same at the source: prune deletes nothing until the stream has a position again."""
    source.execute(
        "update outbox.stream set floor = '3:3:', reached = '0/0', witness_id = null, session = ''"
        " where stream = %s",
        [stream],
    )


def accept_target(source: psycopg.Connection, target: psycopg.Connection, stream: str) -> bool:
    """Make this copy the target: its ledger says what is applied. False: it has no ledger row, or the source does
    not know the stream."""
    row = target.execute(
        "select (select system_identifier::text from pg_control_system()), current_database()"
        " from bridge.checkpoint where stream = %s",
        [stream],
    ).fetchone()
    if row is None:
        return False
    moved = source.execute(
        "update outbox.stream set target_system = %s, target_database = %s, session = '', updated_at = now()"
        " where stream = %s",
        [*row, stream],
    )
    return moved.rowcount == 1


def accept_gap(source: psycopg.Connection, target: psycopg.Connection, stream: str) -> bool:
    """Continue without the pruned rows; the rest of the outbox is caught up. False: nothing was ever pruned, or the
    stream does not exist."""
    row = source.execute("select xid::text from outbox.pruned where xid is not null").fetchone()
    if row is None:
        return False
    accepted = target.execute(
        "update bridge.checkpoint set accepted_gap = %s::xid8, epoch = epoch + 1, updated_at = now()"
        " where stream = %s",
        [row[0], stream],
    )
    return accepted.rowcount == 1


def restart_stream(source: psycopg.Connection, target: psycopg.Connection, stream: str) -> bool:
    """Delete the stream's registration and drop its slot: the next start is a first start, from `source.start`.
    False: the source does not know the stream. Raises BridgeError if the ledger exists."""
    if target.execute("select 1 from bridge.checkpoint where stream = %s", [stream]).fetchone():
        raise BridgeError(
            f"the ledger of stream {stream} exists, so it needs no restart: nothing was changed",
            hint="bridge status shows the reason of a halt; bridge recover --help shows the "
            "decision for each reason",
        )
    with source.transaction():
        row = source.execute(
            "delete from outbox.stream where stream = %s returning slot", [stream]
        ).fetchone()
        if row is not None and row[0] is not None:
            drop_slot(source, row[0])
    return row is not None
