"""The ledger's statements: bridge.checkpoint and bridge.applied in the target. Every change requires the expected
row, so that a fenced bridge cannot write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from operator import attrgetter

from bridge.postgres.target import PG_LSN, XID8, Statement, eight_byte_array
from bridge.postgres.versions import NEWER_LEDGER
from bridge.protocol.events import Lsn, Seqs, Snapshot, format_lsn, parse_lsn, parse_snapshot
from bridge.protocol.facts import Goal, Ledger, Mode, SourceIdentity

_COLUMNS = (
    "stream, epoch, session::text, mode, system_identifier, timeline, publication_identity, slot_incarnation,"
    " applied_lsn::text, safe_lsn::text, floor::text, floor_lsn::text, next::text, next_lsn::text,"
    " next_from_slot, next_seq, since::text, witness_id, witness_xid::text,"
    " accepted_gap::text, source_database, source_database_oid::text"
)

READ = f"select {_COLUMNS} from bridge.checkpoint where stream = $1".encode()

LOCK = f"select {_COLUMNS} from bridge.checkpoint where stream = $1 for update".encode()

# Of a stream and its partitions (<stream>.<i>of<n>), one layout has rows.
_GROUP = "regexp_replace({}, '\\.[0-9]+of[0-9]+$', '')"
_LAYOUT = "substring({} from '\\.[0-9]+(of[0-9]+)$')"
_OTHER_LAYOUT = (
    f"{_GROUP.format('o.stream')} = {_GROUP.format('$1')}"
    f" and {_LAYOUT.format('o.stream')} is distinct from {_LAYOUT.format('$1')}"
)
DIVIDED = f"select o.stream from bridge.checkpoint o where {_OTHER_LAYOUT} order by 1".encode()
"""Rows of the same events, divided in another way."""

# Two that begin at one time see each other's row: the later one's CREATE begins when the first has committed.
ONE_LAYOUT = f"select pg_advisory_xact_lock(hashtextextended('layout ' || {_GROUP.format('$1')}, 0))".encode()

CREATE = (
    "insert into bridge.checkpoint (stream, session, mode, floor, since, system_identifier, source_database,"
    " source_database_oid) select $1, $2::uuid, 'new', '3:3:', $3::timestamptz, $4, $5, $6::oid"
    f" where not exists (select from bridge.checkpoint o where {_OTHER_LAYOUT}) on conflict do nothing"
).encode()

FENCE = (
    f"update bridge.checkpoint set epoch = epoch + 1, session = $2::uuid, updated_at = now()"
    f" where stream = $1 and coalesce(system_identifier, $3) = $3"
    f" and coalesce(source_database_oid, $4::oid) = $4::oid returning {_COLUMNS}"
).encode()

# The last condition: a running program of an older release stops when the ledger is migrated (versions.py).
_EXPECTED = (
    "stream = $1 and epoch = $2::bigint and session = $3::uuid and applied_lsn = $4::pg_lsn"
    " and next_seq = $5::bigint and floor_lsn = $6::pg_lsn"
    f" and not exists ({NEWER_LEDGER})"
)

NEWER = NEWER_LEDGER.encode()

NOT_OURS = "22012"
"""If another bridge has taken over, or the ledger is newer than this program, the row does not match: 1 / 0 fails the
statement with this SQLSTATE, and with it everything sent after it in the same flight."""

_HOLD = f"select 1 / count(*)::int from (select from bridge.checkpoint where {_EXPECTED} for update) as held"

_ADVANCE = (
    f"with held as (update bridge.checkpoint set applied_lsn = $7::pg_lsn, safe_lsn = $8::pg_lsn,"
    f" witness_id = $9, witness_xid = $10::xid8, updated_at = now() where {_EXPECTED} returning 1)"
    f" select 1 / count(*)::int from held"
)

_REPLACE = (
    f"with held as (update bridge.checkpoint set mode = $7, system_identifier = $8, timeline = $9::int,"
    f" source_database = $23, source_database_oid = $24::oid,"
    f" publication_identity = $10, slot_incarnation = $11::int, applied_lsn = $12::pg_lsn,"
    f" safe_lsn = $13::pg_lsn, floor = $14::pg_snapshot, floor_lsn = $15::pg_lsn,"
    f" next = $16::pg_snapshot, next_lsn = $17::pg_lsn,"
    f" next_from_slot = $18::boolean, next_seq = $19::bigint, since = $20::timestamptz, witness_id = $21,"
    f" witness_xid = $22::xid8, updated_at = now() where {_EXPECTED} returning 1)"
    f" select 1 / count(*)::int from held"
)

_LIST = (
    b"insert into bridge.applied (stream, incarnation, end_lsn, xids, end_lsns, seqs)"
    b" values (convert_from($1, 'UTF8'), $2, $3, $4::xid8[], $5::pg_lsn[], convert_from($6, 'UTF8')::int8multirange)"
)

_THIN = (
    b"delete from bridge.applied where stream = $1 and not exists"
    b" (select from unnest(xids) as x where not pg_visible_in_snapshot(x, $2::pg_snapshot))"
)

_FORGET = (
    b"with gone as (delete from bridge.applied where stream = $1 and end_lsn > $2::pg_lsn returning *)"
    b" insert into bridge.applied (stream, incarnation, end_lsn, xids, end_lsns, seqs)"
    b" select stream, incarnation, max(l), array_agg(x), array_agg(l), seqs"
    b" from gone, unnest(xids, end_lsns) as kept(x, l) where l <= $2::pg_lsn"
    b" group by stream, incarnation, end_lsn, seqs"
)

LISTED = (
    b"select array_to_string(xids, ','), seqs::text from bridge.applied"
    b" where stream = $1 and ($2::int is null or incarnation <> $2::int)"
)

# A session that did something lately, or is at work within its statement_timeout. One that is only connected
# may be a frozen process: it must not keep a successor waiting for ever.
BUSY = (
    b"select exists (select from pg_catalog.pg_stat_activity where starts_with(application_name, $1)"
    b" and usename = current_user and pid <> pg_backend_pid() and datname = current_database()"
    b" and state_change > clock_timestamp() - case when state = 'active' then interval '60 s'"
    b" else ($2 || 's')::interval end)"
)

IDENTITY = b"select (select system_identifier::text from pg_control_system()), current_database()"

# Sessions of this stream and role that hold the row; for when the fence's lock times out.
EVICT = (
    b"select pg_terminate_backend(pid) from pg_catalog.pg_stat_activity where starts_with(application_name, $1)"
    b" and usename = current_user and pid <> pg_backend_pid() and datname = current_database()"
)


def _text(value: object) -> bytes | None:
    return None if value is None else str(value).encode()


def _lsn(value: int) -> bytes:
    return format_lsn(value).encode()


def _expected(before: Ledger) -> list[bytes | None]:
    return [
        before.stream.encode(),
        b"%d" % before.epoch,
        before.session.encode(),
        _lsn(before.applied_lsn),
        b"%d" % (before.next.seq if before.next else 0),
        _lsn(before.floor_lsn),
    ]


def fence(
    stream: str, session: str, source: SourceIdentity, since: str | None, *, create: bool
) -> list[Statement]:
    """Make the row ours, and read it: the last two statements' rows. No row of FENCE, and one of READ: it belongs to
    another source. None of both, although it may be created: the ledger has rows of another layout. Within a
    transaction."""
    who = [stream.encode(), session.encode()]
    system, oid = source.system.encode(), b"%d" % source.oid
    made = [Statement(ONE_LAYOUT, who[:1])] if create else []
    if create:
        made.append(Statement(CREATE, [*who, _text(since), system, source.database.encode(), oid]))
    return [*made, Statement(FENCE, [*who, system, oid]), Statement(READ, who[:1])]


def hold(before: Ledger) -> Statement:
    """Lock the row, or fail: the first statement of a transaction that is sent in chunks."""
    return Statement(_HOLD.encode(), _expected(before))


def change(before: Ledger, after: Ledger) -> Statement:
    """Lock and write the row, or fail: the first statement of every other transaction."""
    if _only_advances(before, after):
        return Statement(
            _ADVANCE.encode(),
            [
                *_expected(before),
                _lsn(after.applied_lsn),
                _lsn(after.safe_lsn),
                _text(after.witness_id),
                _text(after.witness_xid),
            ],
        )
    goal = after.next
    return Statement(
        _REPLACE.encode(),
        [
            *_expected(before),
            after.mode.value.encode(),
            _text(after.system_identifier),
            _text(after.timeline),
            _text(after.publication),
            b"%d" % after.incarnation,
            _lsn(after.applied_lsn),
            _lsn(after.safe_lsn),
            _text(after.floor),
            _lsn(after.floor_lsn),
            _text(goal.snapshot) if goal else None,
            _lsn(goal.lsn) if goal else None,
            b"true" if goal and goal.from_slot else b"false",
            b"%d" % (goal.seq if goal else 0),
            _text(after.since),
            _text(after.witness_id),
            _text(after.witness_xid),
            _text(after.database),
            _text(after.database_oid),
        ],
    )


_ADVANCING = ("applied_lsn", "safe_lsn", "witness_id", "witness_xid")
_the_rest = attrgetter(*(each.name for each in fields(Ledger) if each.name not in _ADVANCING))


def _only_advances(before: Ledger, after: Ledger) -> bool:
    """Is the change one that _ADVANCE writes completely?"""
    same: bool = _the_rest(before) == _the_rest(after)
    return same


def list_applied(
    stream: str, incarnation: int, xids: Sequence[int], end_lsns: Sequence[Lsn], seqs: Seqs
) -> Statement:
    """One row in bridge.applied for these transactions, of which the rows with these seqs were applied."""
    return Statement(
        _LIST,
        [
            stream.encode(),
            incarnation.to_bytes(4, "big"),
            max(end_lsns).to_bytes(8, "big"),
            eight_byte_array(XID8, xids),
            eight_byte_array(PG_LSN, end_lsns),
            str(seqs).encode(),
        ],
        binary=True,
    )


def thin(stream: str, snapshot: Snapshot) -> Statement:
    return Statement(_THIN, [stream.encode(), str(snapshot).encode()])


def forget_above(stream: str, lsn: Lsn) -> Statement:
    return Statement(_FORGET, [stream.encode(), _lsn(lsn)])


def read_listed(row: Sequence[bytes | None]) -> tuple[list[int], Seqs]:
    """A row of LISTED."""
    xids, seqs = row
    return [int(xid) for xid in (xids or b"").split(b",")], Seqs.parse((seqs or b"").decode())


def read_row(row: Sequence[bytes | None]) -> Ledger:
    """A row of READ, LOCK or FENCE."""
    values = [None if value is None else value.decode() for value in row]
    stream, epoch, session, mode, system, timeline, publication, incarnation = values[:8]
    applied, safe, floor, floor_lsn, goal, goal_lsn, from_slot, seq = values[8:16]
    since, witness, witness_xid, accepted_gap, database, database_oid = values[16:]
    return Ledger(
        stream=stream or "",
        epoch=int(epoch or 0),
        session=session or "",
        mode=Mode(mode or ""),
        system_identifier=system,
        database=database,
        database_oid=int(database_oid) if database_oid else None,
        timeline=int(timeline) if timeline else None,
        publication=publication,
        incarnation=int(incarnation or 0),
        applied_lsn=parse_lsn(applied or "0/0"),
        safe_lsn=parse_lsn(safe or "0/0"),
        floor=parse_snapshot(floor or ""),
        floor_lsn=parse_lsn(floor_lsn or "0/0"),
        next=Goal(parse_snapshot(goal), parse_lsn(goal_lsn), from_slot == "t", int(seq or 0))
        if goal and goal_lsn
        else None,
        since=since,
        witness_id=witness,
        witness_xid=int(witness_xid) if witness_xid else None,
        accepted_gap=int(accepted_gap) if accepted_gap else None,
    )
