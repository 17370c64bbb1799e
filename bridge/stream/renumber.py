"""Rows whose `seq` went back are given the next ones, so that a newer event never has a lower `seq` than an older one.

The sequence of the outbox may start anew (TRUNCATE ... RESTART IDENTITY, ALTER ... RESTART) or stay behind the table (a
move by logical replication or a restore of data alone carries no sequence). Then `version: $meta.seq` would keep old
rows, and catch-up would read new rows first. A row that began after an applied row was visible has a greater `seq`, or
the sequence went back: that is exact (events.py, SeqOrder). The table's `seq` is the one that counts; the WAL keeps
the old one, so that the stream asks the table for it.
"""

from __future__ import annotations

import time
from typing import LiteralString

import psycopg
from psycopg import sql

from bridge.errors import Halt, Retry
from bridge.postgres.outbox import Outbox
from bridge.postgres.profiled import ProfiledConnection
from bridge.protocol.events import FROM_ONE, Behind, Bound, Event, Snapshot, parse_snapshot
from bridge.protocol.facts import Ledger


def numbered(source: psycopg.Connection, outbox: Outbox) -> bool:
    """Does a sequence give its rows their seq in this order, and do they have an xid? Sessions that keep numbers for
    later use (a cache) have no order, nor have rows that native replication brings with their publisher's."""
    if not {"seq", "xid"} <= outbox.columns.keys():
        return False
    table = outbox.name.as_string()
    row = source.execute(
        "select s.seqcache = 1 and s.seqincrement > 0 and not exists (select from pg_catalog.pg_subscription_rel r"
        " where r.srrelid = to_regclass(%(table)s) or r.srrelid in"
        " (select relid from pg_catalog.pg_partition_tree(to_regclass(%(table)s))))"
        " from pg_catalog.pg_sequence s where s.seqrelid = pg_get_serial_sequence(%(table)s, %(seq)s)::regclass",
        {"table": table, "seq": outbox.columns["seq"]},
    ).fetchone()
    return bool(row and row[0])


def bounds(source: ProfiledConnection, outbox: Outbox, ledger: Ledger) -> list[Bound]:
    """As a session begins. The witness is a row that was there. A transaction that is later than it, but had drawn its
    seq before, may have a lower one by right; of those before now only a sequence that is below the witness tells
    (exact). The table has the seq that counts all the same."""
    if ledger.witness_id is None or ledger.witness_xid is None:
        return [FROM_ONE]
    query = sql.SQL("select {seq} from {table} where {id} = %s").format(
        seq=outbox.column("seq"), table=outbox.name, id=outbox.column("id")
    )
    row = source.execute(query, [ledger.witness_id]).fetchone()
    if row is None or row[0] is None:
        return [FROM_ONE]
    seq = int(row[0])
    try:
        last = source.execute(
            "select pg_sequence_last_value(pg_get_serial_sequence(%s, %s)::regclass)",
            [outbox.name.as_string(), outbox.columns["seq"]],
        ).fetchone()
    except psycopg.errors.InsufficientPrivilege:
        last = None
    shown = ledger.floor.shows(ledger.witness_xid)
    after = ledger.floor.xmax if shown else ledger.witness_xid + 1
    if last is not None and last[0] is not None and last[0] < seq:
        return [Bound(after, seq, exact=True)]
    for _ in range(_ATTEMPTS):
        if not drawn_ahead(source, outbox):
            now = max(after, _snapshot(source).xmax)
            return [Bound(after, seq, exact=False), Bound(now, seq, exact=True)]
        time.sleep(_PAUSE_SECONDS)
    return [Bound(after, seq, exact=False)]


_ATTEMPTS, _PAUSE_SECONDS = 10, 0.01
_VISIBLE_SECONDS = 5.0  # a commit waits longer for a synchronous standby

# nextval() locks the sequence until the end of its transaction; a transaction that has an xid holds the lock of it.
_DRAWN_AHEAD: LiteralString = """
    select exists (select from pg_catalog.pg_locks s
        where s.locktype = 'relation' and s.relation = pg_get_serial_sequence(%s, %s)::regclass
            and s.database = (select oid from pg_catalog.pg_database where datname = current_database())
            and not exists (select from pg_catalog.pg_locks x where x.locktype = 'transactionid' and x.granted
                and x.mode = 'ExclusiveLock' and x.virtualtransaction = s.virtualtransaction))"""


def drawn_ahead(source: psycopg.Connection, outbox: Outbox) -> bool:
    """Has a transaction drawn a number, and no xid yet? Its row will have an xid that a snapshot taken now does not
    show, and a seq below those that are visible: by right. Asked before such a snapshot is compared with."""
    row = source.execute(_DRAWN_AHEAD, [outbox.name.as_string(), outbox.columns["seq"]]).fetchone()
    return row is None or bool(row[0])


def _snapshot(source: ProfiledConnection) -> Snapshot:
    [text] = source.execute("select pg_current_snapshot()::text").fetchone() or [""]
    return parse_snapshot(text)


def renumber(
    source: ProfiledConnection, outbox: Outbox, behind: list[Behind], greatest: int
) -> dict[bytes, bytes]:
    """By id, the seq that each of these rows has in the table. That of a row that went back is above `greatest`, in
    this order. Raises Halt where the bridge's role may not write it (an outbox of the customer's own), with the
    statements that do."""
    names = {"table": outbox.name, "seq": outbox.column("seq"), "id": outbox.column("id")}
    now = sql.SQL("select {seq}::text from {table} where {id} = %s").format(**names)
    update = sql.SQL("update {table} set {seq} = default where {id} = {one} and {seq} <= {bound}")
    found: dict[bytes, bytes] = {}

    def went(one: Behind) -> bool:
        event, bound = one
        row = source.execute(now, [event.id.decode()]).fetchone()
        if row is None:  # deleted, or not visible yet: the WAL has a commit before others see it
            _await_visible(source, event)
            row = source.execute(now, [event.id.decode()]).fetchone()
        found[event.id] = row[0].encode() if row is not None else event.seq
        return bound.exact and int(found[event.id]) <= bound.seq

    try:
        with source.transaction():
            back = [one for one in behind if went(one)]
            if back:
                _may_raise(source, outbox)
                # In one message: what a producer draws between the two is lower than what an older row gets.
                steps = [_raise(outbox, greatest)]
                steps += [
                    update.format(one=event.id.decode(), bound=bound.seq, **names) for event, bound in back
                ]
                source.execute(sql.SQL("; ").join(steps))
            still = [one for one in back if went(one)]
    except psycopg.errors.InsufficientPrivilege:
        raise went_back(outbox, *behind[0]) from None
    if still:
        raise went_back(outbox, *still[0])
    return found


def _await_visible(source: ProfiledConnection, event: Event) -> None:
    """Until new snapshots show the event's transaction. Raises Retry."""
    end = time.monotonic() + _VISIBLE_SECONDS
    while True:
        if _snapshot(source).shows(int(event.xid)):
            return
        if time.monotonic() > end:
            raise Retry(f"transaction {int(event.xid)} has committed, and is not visible yet")
        time.sleep(_PAUSE_SECONDS)


def _may_raise(source: ProfiledConnection, outbox: Outbox) -> None:
    """One bridge at a time. Raises Retry while a stream reads the rows as they are, by their seq."""
    key = f"outbox bridge seq {outbox.name.as_string()}"
    source.execute("select pg_advisory_xact_lock(hashtextextended(%s, 0))", [key])
    row = source.execute("select stream from outbox.stream where floor::text = '3:3:' limit 1").fetchone()
    if row is not None:
        raise Retry(
            f"seq went back: waiting for the first catch-up of stream {row[0]}", reason="seq_went_back"
        )


def _raise(outbox: Outbox, least: int) -> sql.Composed:
    """The sequence to `least`, unless it is above. Never down, beside producers that take from it."""
    sequence = sql.SQL("pg_get_serial_sequence({}, {})::regclass").format(
        outbox.name.as_string(), outbox.columns["seq"]
    )
    return sql.SQL(
        "select case when nextval({sequence}) <= {least} then setval({sequence}, {least}) end"
    ).format(sequence=sequence, least=least)


def went_back(outbox: Outbox, event: Event, bound: Bound) -> Halt:
    least = bound.seq
    table, column = outbox.name.as_string(), sql.Identifier(outbox.columns["seq"]).as_string()
    return Halt(
        f"seq went back: event {event.id.decode(errors='replace')} has {event.seq.decode()}, and one that was there "
        f"before it began has {least}: the sequence of {table} was restarted, or did not come along with its rows",
        reason="seq_went_back",
        hint=f"as the table's owner: select setval(pg_get_serial_sequence('{table}', '{outbox.columns['seq']}'), "
        f"(select max({column}) from {table}));   then: update {table} set {column} = default where "
        f"{_xid(outbox)} >= '{int(event.xid)}'::xid8 and {column} <= {least};",
    )


def _xid(outbox: Outbox) -> str:
    return sql.Identifier(outbox.columns["xid"]).as_string()


def read_again() -> Retry:
    return Retry("seq went back, and the rows have new ones: reading them again", reason="seq_went_back")
