"""How far a stream is, and the history of single events, read from the ledger and the source. Read-only.

For `bridge status` when no bridge runs, `bridge explain` and `bridge tail`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from bridge.planning.taken import name_of
from bridge.postgres.outbox import Outbox, events_of, floor_values
from bridge.postgres.served import at_target
from bridge.protocol.chain import partition_of
from bridge.protocol.events import NOTHING, Event, Snapshot, parse_snapshot

PENDING_LIMIT = 100_000
"""Maximum number of rows counted."""

NEWEST = 1000
"""Events whose types `status` (where no bridge runs) and doctor look at."""

_CHECKPOINT = """
    select mode, epoch, applied_lsn::text, safe_lsn::text, floor::text, slot_incarnation,
           extract(epoch from updated_at)::float8 as updated_at
    from bridge.checkpoint where stream = %s"""

_SLOT = """
    select slot_name as name, active, wal_status, safe_wal_size as safe_wal_bytes,
           pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint as retained_wal_bytes,
           pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint as lag_bytes
    from pg_catalog.pg_replication_slots where slot_name = %s and database = current_database()"""


def checkpoint(target: psycopg.Connection, stream: str) -> dict[str, Any] | None:
    """The ledger row of a stream: mode, epoch, applied_lsn, safe_lsn, floor, slot_incarnation, updated_at."""
    with target.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_CHECKPOINT, [stream]).fetchone()


def listed(target: psycopg.Connection, stream: str) -> list[str]:
    """The xids that are applied, completely or in part, and not visible in the floor."""
    rows = target.execute("select x::text from bridge.applied, unnest(xids) as x where stream = %s", [stream])
    return [row[0] for row in rows]


def slot(source: psycopg.Connection, name: str) -> dict[str, Any] | None:
    """The slot's facts, sizes in bytes; None: the slot does not exist."""
    with source.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_SLOT, [name]).fetchone()


def registered(source: psycopg.Connection, stream: str) -> dict[str, Any] | None:
    """The stream's row in the registry: target_system, target_database, slot, floor, dated (seconds ago)."""
    with source.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            "select target_system, target_database, slot, floor::text,"
            " extract(epoch from now() - updated_at)::float8 as dated from outbox.stream where stream = %s",
            [stream],
        ).fetchone()


def registered_streams(source: psycopg.Connection) -> list[str]:
    """The streams in the registry."""
    return [row[0] for row in source.execute("select stream from outbox.stream order by 1")]


def ledger_streams(target: psycopg.Connection) -> list[str]:
    """The streams that this target has a ledger of."""
    return [row[0] for row in target.execute("select stream from bridge.checkpoint order by 1")]


def here(target: psycopg.Connection) -> tuple[str, str]:
    """The system identifier and the database, as a registration has them."""
    row = target.execute(
        "select (select system_identifier::text from pg_control_system()), current_database()"
    ).fetchone()
    return row or ("", "")


def former(source: psycopg.Connection, target: psycopg.Connection, known: Collection[str]) -> list[str]:
    """The streams but `known` that are registered for this target and that no bridge serves."""
    rows = source.execute(
        "select stream from outbox.stream where (target_system, target_database) = (%s, %s)"
        " and not stream = any(%s) order by stream",
        [*here(target), list(known)],
    ).fetchall()
    return [name for (name,) in rows if not at_target(target, name)]


def pending(
    source: psycopg.Connection,
    outbox: Outbox,
    floor: str,
    applied: list[str],
    partition: tuple[int, int] | None = None,
) -> int | None:
    """Events that are committed and not applied, at most PENDING_LIMIT; None: an outbox without xids. partition: only
    its own."""
    if not outbox.has_xid:
        return None
    snapshot, outbox = parse_snapshot(floor), outbox.on(source)
    row = source.execute(
        sql.SQL(
            "select count(*) from (select from {table} where {beyond_floor}"
            " and not pg_visible_in_snapshot({placed}, %(floor)s::pg_snapshot)"
            " and not {placed} = any(%(applied)s::xid8[]) and {mine} limit %(limit)s) as missing"
        ).format(
            table=outbox.name,
            beyond_floor=outbox.beyond_floor(),
            placed=outbox.placed(),
            mine=outbox.belongs_to(partition),
        ),
        {
            **floor_values(snapshot),
            "applied": "{" + ",".join(applied) + "}",
            "limit": PENDING_LIMIT,
        },
    ).fetchone()
    return None if row is None else int(row[0])


def find(source: psycopg.Connection, outbox: Outbox, event_id: str, seq: int | None = None) -> Event | None:
    """The event with this id; None if the outbox does not have it. source: in autocommit. seq: which, where the ids of
    your own outbox are not unique."""
    query = sql.SQL("select {} from {} where {} = %s").format(
        outbox.select_list(), outbox.name, outbox.column("id")
    )
    try:
        found = events_of(source.execute(query, [event_id]).pgresult, outbox)
    except psycopg.DataError:  # not even of the column's type
        return None
    return next((one for one in found if seq is None or int(one.seq) == seq), None)


def newest(source: psycopg.Connection, outbox: Outbox, limit: int) -> list[Event]:
    """The newest events by seq, oldest first. Raises psycopg.Error. An outbox without seq returns them by
    occurred_at, or none."""
    order = next((name for name in ("seq", "occurred_at") if name in outbox.columns), None)
    if order is None:
        return []
    query = sql.SQL("select {} from {} order by {} desc limit %s").format(
        outbox.select_list(), outbox.name, sql.Identifier(outbox.table, outbox.columns[order])
    )
    return events_of(source.execute(query, [limit]).pgresult, outbox)[::-1]


def newest_types(source: psycopg.Connection, outbox: Outbox) -> dict[str, int]:
    """Type -> how many of the NEWEST events have it. Raises psycopg.Error. The bridge's own outbox is read by
    its primary key, whose ids are ordered by time; one of your own as `newest` reads it."""
    order = (
        "id"
        if not outbox.is_foreign
        else next((n for n in ("seq", "occurred_at") if n in outbox.columns), "")
    )
    if not order:
        return {}
    query = sql.SQL(
        "select type, count(*) from (select {}::text as type from {} order by {} desc limit %s) newest"
        " where type is not null group by 1"
    ).format(outbox.column("type"), outbox.name, outbox.column(order))
    return {
        name_of(str(one).encode()): int(count) for one, count in source.execute(query, [NEWEST]).fetchall()
    }


class Applied:
    """What a stream has applied, read once. By I6: visible in the floor, or listed. rows: its rows in the ledger, one
    for each partition where there are some."""

    def __init__(self, target: psycopg.Connection, rows: Sequence[str]) -> None:
        found = [checkpoint(target, stream) for stream in rows]
        self.started = any(row is not None for row in found)
        self._floors: list[Snapshot] = [parse_snapshot(row["floor"]) if row else NOTHING for row in found]
        self._listed = [{int(xid) for xid in listed(target, stream)} for stream in rows]

    def how(self, event: Event) -> str:
        """ "floor" or "listed" if it is applied, "" if it is not, "unknown" without an xid."""
        xid = int(event.xid)
        if xid == 0:
            return "unknown"
        place = partition_of(event.key, event.id, len(self._floors)) - 1
        if self._floors[place].shows(xid):
            return "floor"
        return "listed" if xid in self._listed[place] else ""


def letters(target: psycopg.Connection, ids: Sequence[str]) -> Mapping[str, dict[str, Any]]:
    """Dead letters of these units (their ids), in any state."""
    with target.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            "select id::text, state, code, cause, attempts, retry_at from bridge.dead_letter"
            " where id = any(%s::uuid[])",
            [list(ids)],
        ).fetchall()
    return {row["id"]: row for row in rows}


def messages_of(
    target: psycopg.Connection, stream: str, event: Event, but: Collection[str]
) -> list[dict[str, Any]]:
    """The event's other messages, as `deliveries` tells them: of destinations that are gone, of a replay. Reads the
    whole table: for one event. but: ids that are known."""
    rows = target.execute(
        "select id::text from bridge.delivery where stream = %s and event_id = %s and not id = any(%s::uuid[])"
        " order by created_at",
        [stream, event.id.decode(), list(but)],
    ).fetchall()
    found = deliveries(target, [row[0] for row in rows])
    return [found[row[0]] for row in rows if row[0] in found]


def deliveries(target: psycopg.Connection, ids: Sequence[str]) -> Mapping[str, dict[str, Any]]:
    """Deliveries of these units; `behind`: an earlier message of the same key must be sent or dead first."""
    with target.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            "select id::text, pipeline, destination, event_id, event_seq, event_type, event_key, occurred_at,"
            " state, attempts, last_error, created_at, settled_at, next_attempt_at, now() as now,"
            " to_jsonb(d) -> 'history' as history, case when state = 'pending' then body::text end as body,"
            " coalesce(lease_until > now(), false) as claimed,"
            " state = 'pending' and exists (select from bridge.delivery earlier"
            "   where earlier.destination = d.destination and earlier.event_key = d.event_key"
            "   and earlier.event_seq < d.event_seq and earlier.state = 'pending'"
            "   and earlier.pipeline = d.pipeline and earlier.stream = d.stream) as behind"
            " from bridge.delivery d where id = any(%s::uuid[])",
            [list(ids)],
        ).fetchall()
    return {row["id"]: row for row in rows}


def waiting(target: psycopg.Connection, ids: Sequence[str]) -> Mapping[str, dict[str, Any]]:
    """Those of `deliveries` that are not sent yet."""
    found = target.execute(
        "select id::text from bridge.delivery where id = any(%s::uuid[]) and state = 'pending'", [list(ids)]
    ).fetchall()
    return deliveries(target, [row[0] for row in found]) if found else {}
