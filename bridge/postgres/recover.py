"""What a person may decide when a stream has halted because its history is not what it was. Each choice is
one transaction; none is ever taken by the bridge itself.
"""

from __future__ import annotations

import psycopg

_FORGET = (
    "delete from bridge.applied where stream = %s",
    "update bridge.checkpoint set mode = 'new', epoch = epoch + 1, floor = '3:3:', floor_lsn = '0/0',"
    " applied_lsn = '0/0', safe_lsn = '0/0', next = null, next_lsn = null, next_from_slot = false, next_seq = 0,"
    " publication_identity = null, witness_id = null, witness_xid = null, accepted_gap = null,"
    " since = %s::timestamptz, updated_at = now() where stream = %s",
)


def accept_source(
    source: psycopg.Connection, target: psycopg.Connection, stream: str, since: str | None
) -> bool:
    """Begin anew with the source as it is now. since: the first event's time, "infinity" for from now on, None
    for every row that the outbox holds (applied ones again). False: no such stream here."""
    source.execute(
        "update outbox.stream set floor = '3:3:', reached = '0/0', witness_id = null, session = '' where stream = %s",
        [stream],
    )
    with target.transaction():
        target.execute(_FORGET[0], [stream])
        return target.execute(_FORGET[1], [since, stream]).rowcount == 1


def accept_target(
    source: psycopg.Connection, target: psycopg.Connection, stream: str
) -> tuple[str, str] | None:
    """This copy is the target now: its ledger says what is applied. None: it has no ledger row."""
    row = target.execute(
        "select (select system_identifier::text from pg_control_system()), current_database()"
        " from bridge.checkpoint where stream = %s",
        [stream],
    ).fetchone()
    if row is None:
        return None
    source.execute(
        "update outbox.stream set target_system = %s, target_database = %s, session = '', updated_at = now()"
        " where stream = %s",
        [row[0], row[1], stream],
    )
    return row[0], row[1]


def accept_gap(source: psycopg.Connection, target: psycopg.Connection, stream: str) -> int | None:
    """Go on without the rows that were pruned; what the outbox still holds is caught up. The greatest pruned
    xid, None when nothing was ever pruned."""
    row = source.execute("select xid::text from outbox.pruned where xid is not null").fetchone()
    if row is None:
        return None
    target.execute(
        "update bridge.checkpoint set accepted_gap = %s::xid8, epoch = epoch + 1, updated_at = now()"
        " where stream = %s",
        [row[0], stream],
    )
    return int(row[0])


def restart_stream(source: psycopg.Connection, stream: str) -> bool:
    """Forget that the source knows this stream: the next start is a first one, from `source.start`."""
    return source.execute("delete from outbox.stream where stream = %s", [stream]).rowcount == 1
