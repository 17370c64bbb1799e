"""The rows of a target's partitions in the ledger and the registry, and how they are divided anew.

A target's stream is called <slot>_<connection>; with a log its partitions are <slot>_<connection>.<i>of<n>. One layout
has rows at a time.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import LiteralString

import psycopg

from bridge.errors import BridgeError, Retry
from bridge.protocol.events import format_lsn
from bridge.protocol.facts import MOVER, Goal

_MOVING: LiteralString = "hashtextextended('outbox bridge: repartition of ' || %(publication)s, 0)"

MOVING: LiteralString = f"""
    exists (select from pg_catalog.pg_locks where locktype = 'advisory' and granted and objsubid = 1
        and database = (select oid from pg_catalog.pg_database where datname = current_database())
        and (classid::bigint << 32 | objid::bigint) = {_MOVING})"""
"""Whether somebody divides the streams of this source anew. A session's lock: it ends with who holds it."""

_NAMED = re.compile(r"(.+)\.(\d+)of(\d+)")

_GROUP: LiteralString = """
    select stream from bridge.checkpoint
    where stream = %(group)s or stream ~ ('^' || %(group)s || '\\.[0-9]+of[0-9]+$') order by stream"""

_REGISTERED: LiteralString = """
    select stream from outbox.stream
    where (stream = %(group)s or stream ~ ('^' || %(group)s || '\\.[0-9]+of[0-9]+$')) order by stream"""

_FENCE: LiteralString = """
    update bridge.checkpoint set epoch = epoch + 1, session = %s::uuid, updated_at = now()
    where stream = any(%s)"""

_AT_BARRIER: LiteralString = """
    select stream, mode = 'poll' and next is null and floor::text = %(floor)s
    from bridge.checkpoint where stream = any(%(old)s) for update"""

_DIVIDE: LiteralString = """
    insert into bridge.checkpoint (stream, epoch, session, mode, system_identifier, source_database,
        source_database_oid, timeline, publication_identity, floor, floor_lsn, witness_id, witness_xid, accepted_gap)
    select name, o.epoch + 1, %(session)s::uuid, 'poll', o.system_identifier, o.source_database, o.source_database_oid,
        o.timeline, o.publication_identity, o.floor, o.floor_lsn, w.witness_id, w.witness_xid, o.accepted_gap
    from unnest(%(new)s::text[]) as name,
        (select * from bridge.checkpoint where stream = any(%(old)s) order by epoch desc limit 1) as o
        left join (select witness_id, witness_xid from bridge.checkpoint
            where stream = any(%(old)s) and witness_id is not null order by witness_xid desc limit 1) as w on true"""

_COPY_APPLIED: LiteralString = """
    insert into bridge.applied (stream, incarnation, end_lsn, xids, end_lsns, seqs)
    select name, 0, end_lsn, xids, end_lsns, seqs from bridge.applied, unnest(%(new)s::text[]) as name
    where stream = any(%(old)s)"""

_REGISTER: LiteralString = """
    insert into outbox.stream (stream, target_system, target_database, floor, witness_id, reached, session)
    select name, o.target_system, o.target_database, %(floor)s::pg_snapshot, o.witness_id,
        greatest(o.reached, %(lsn)s::pg_lsn), ''
    from unnest(%(new)s::text[]) as name, (select * from outbox.stream where stream = any(%(old)s) limit 1) as o
    on conflict (stream) do update set floor = excluded.floor,
        reached = greatest(outbox.stream.reached, excluded.reached),
        target_system = excluded.target_system, target_database = excluded.target_database, slot = null, relay = null,
        incarnation = null, confirmed = null, witness_id = excluded.witness_id, updated_at = now()"""

_NEXT_INCARNATION: LiteralString = """
    update outbox.relay set partitions = %(partitions)s, ready = false,
        session = %(session)s, updated_at = now()
    where relay = %(relay)s and partitions <> %(partitions)s"""


def layout(names: Sequence[str]) -> int | None:
    """Into how many partitions these names divide a stream; 0: into none. None: there are no names. Raises BridgeError
    where they are not one whole layout."""
    if not names:
        return None
    matches = [_NAMED.fullmatch(name) for name in names]
    if len(names) == 1 and matches[0] is None:
        return 0
    of = {int(match[3]) for match in matches if match}
    if None in matches or len(of) != 1 or len(names) != next(iter(of)):
        raise BridgeError(
            f"the ledger has rows of more than one layout: {', '.join(names)}",
            hint="restore the ledger with the target, from one moment",
        )
    return of.pop()


def ledger_rows(target: psycopg.Connection, group: str) -> list[str]:
    """The names that the target's ledger has of this stream and its partitions."""
    return [name for (name,) in target.execute(_GROUP, {"group": group}).fetchall()]


def registered_rows(source: psycopg.Connection, group: str) -> list[str]:
    """The same at the source."""
    return [name for (name,) in source.execute(_REGISTERED, {"group": group}).fetchall()]


@contextmanager
def moving(source: psycopg.Connection, publication: str) -> Iterator[None]:
    """Keep bridges from the streams of this source, as long as the connection lives. Raises BridgeError where somebody
    else does."""
    names = {"publication": publication}
    row = source.execute(f"select pg_try_advisory_lock({_MOVING})", names).fetchone()
    if row != (True,):
        raise BridgeError(
            "somebody divides the streams of this source at this moment",
            hint="wait until that has ended: bridge scale status",
        )
    try:
        yield
    finally:
        if not source.closed:
            source.execute(f"select pg_advisory_unlock({_MOVING})", names)


def mover_session() -> str:
    """The id of a session that divides streams anew."""
    return MOVER + str(uuid.uuid4())[len(MOVER) :]


def fence_all(target: psycopg.Connection, names: Sequence[str]) -> None:
    """Whoever works on them now can commit nothing more."""
    target.execute(_FENCE, [mover_session(), list(names)])


def register_all(source: psycopg.Connection, old: Sequence[str], new: Sequence[str], barrier: Goal) -> None:
    """Register the new names where the old ones stand, flushed: prune respects them from now on."""
    with source.transaction():
        source.execute("set local synchronous_commit = local")
        source.execute(
            _REGISTER,
            {
                "old": list(old),
                "new": list(new),
                "floor": str(barrier.snapshot),
                "lsn": format_lsn(barrier.lsn),
            },
        )


def divide(target: psycopg.Connection, old: Sequence[str], new: Sequence[str], barrier: Goal) -> None:
    """The ledger's rows of the new names, in place of the old ones, in one transaction. Raises Retry where one of the
    old ones does not stand at the barrier."""
    names = {"old": list(old), "new": list(new), "floor": str(barrier.snapshot), "session": mover_session()}
    with target.transaction():
        found = target.execute(_AT_BARRIER, names).fetchall()
        if len(found) != len(old) or not all(stands for _, stands in found):
            raise Retry("a bridge was at work meanwhile", reason="barrier_passed")
        target.execute(_DIVIDE, names)
        target.execute(_COPY_APPLIED, names)
        target.execute("delete from bridge.applied where stream = any(%(old)s)", names)
        target.execute("delete from bridge.checkpoint where stream = any(%(old)s)", names)


def forget(source: psycopg.Connection, names: Sequence[str]) -> list[str]:
    """Delete their registrations; the slots that these named."""
    rows = source.execute(
        "delete from outbox.stream where stream = any(%s) returning slot", [list(names)]
    ).fetchall()
    return [slot for (slot,) in rows if slot]


_END: LiteralString = """
    delete from outbox.relay r where starts_with(relay, %(publication)s || '_')
        and not exists (select from outbox.stream s where s.relay = r.relay)
    returning relay || '_' || incarnation"""


def end_relays(source: psycopg.Connection, publication: str) -> list[str]:
    """Forget the relays that serve no stream any more; their slots."""
    return [slot for (slot,) in source.execute(_END, {"publication": publication}).fetchall()]


def begin_again(source: psycopg.Connection, relay: str, partitions: int) -> bool:
    """Have the relay begin a new incarnation, of so many partitions. False: it has as many, or has never begun."""
    names = {"relay": relay, "partitions": partitions, "session": f"repartition {uuid.uuid4()}"}
    return bool(source.execute(_NEXT_INCARNATION, names).rowcount)
