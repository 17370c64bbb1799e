"""How far a stream is, read from its ledger and from the source: what `bridge status` tells when no bridge
runs to be asked. Apart from source.py and ledger.py, which serve the stream itself: this changes nothing.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from bridge.core.snapshot import parse_snapshot
from bridge.postgres.outbox import Outbox

PENDING_LIMIT = 100_000
"""Rows counted at most."""

_CHECKPOINT = """
    select mode, epoch, applied_lsn::text, safe_lsn::text, floor::text, slot_incarnation,
           extract(epoch from updated_at)::float8 as updated_at
    from bridge.checkpoint where stream = %s"""

_SLOT = """
    select slot_name as name, active, wal_status, safe_wal_size as safe_wal_bytes,
           pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint as retained_wal_bytes,
           pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint as lag_bytes
    from pg_catalog.pg_replication_slots where slot_name = %s"""


def checkpoint(target: psycopg.Connection, stream: str) -> dict[str, Any] | None:
    """The ledger row of a stream: mode, epoch, applied_lsn, safe_lsn, floor, slot_incarnation, updated_at."""
    with target.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_CHECKPOINT, [stream]).fetchone()


def listed(target: psycopg.Connection, stream: str) -> list[str]:
    """The xids that are applied, wholly or in part, and that the floor does not show."""
    rows = target.execute("select x::text from bridge.applied, unnest(xids) as x where stream = %s", [stream])
    return [row[0] for row in rows]


def slot(source: psycopg.Connection, name: str) -> dict[str, Any] | None:
    """Slot facts, sizes in bytes; None: there is no such slot."""
    with source.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_SLOT, [name]).fetchone()


def registered(source: psycopg.Connection, stream: str) -> dict[str, Any] | None:
    """The stream's row in the registry: target_system, target_database, slot, floor."""
    with source.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            "select target_system, target_database, slot, floor::text from outbox.stream where stream = %s",
            [stream],
        ).fetchone()


def pending(source: psycopg.Connection, outbox: Outbox, floor: str, applied: list[str]) -> int | None:
    """Events that are committed and not applied, PENDING_LIMIT at most; None: an outbox without xids."""
    if not outbox.has_xid:
        return None
    snapshot = parse_snapshot(floor)
    xid = outbox.column("xid")
    row = source.execute(
        sql.SQL(
            "select count(*) from (select from {table} where ({xid} >= %(xmax)s::xid8 or {xid} = any(%(xip)s::xid8[]))"
            " and not {xid} = any(%(applied)s::xid8[]) limit %(limit)s) as missing"
        ).format(table=outbox.name, xid=xid),
        {
            "xmax": str(snapshot.xmax),
            "xip": "{" + ",".join(map(str, snapshot.xip)) + "}",
            "applied": "{" + ",".join(applied) + "}",
            "limit": PENDING_LIMIT,
        },
    ).fetchone()
    return None if row is None else int(row[0])
