"""Events of the outbox and what became of them, for a person to read: `bridge explain` and `bridge tail`.
Apart from outbox.py, which reads what a stream has not applied, exactly; this only looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from bridge.core.event import Event
from bridge.core.snapshot import NOTHING, Snapshot, parse_snapshot
from bridge.postgres.outbox import Outbox
from bridge.postgres.progress import checkpoint, listed


def find(source: psycopg.Connection, outbox: Outbox, event_id: str) -> Event | None:
    """The event with this id, None where the outbox has none (any more). source: in autocommit."""
    query = sql.SQL("select {} from {} where {} = %s").format(
        outbox.select_list(), outbox.name, outbox.column("id")
    )
    try:
        return _event(source.execute(query, [event_id]).fetchone())
    except psycopg.DataError:  # not even of the column's type
        return None


def _event(row: Sequence[Any] | None) -> Event | None:
    return (
        None if row is None else Event._make(None if value is None else str(value).encode() for value in row)
    )


def newest(source: psycopg.Connection, outbox: Outbox, limit: int) -> list[Event]:
    """The newest events by seq, oldest first. Raises psycopg.Error; an outbox without seq gives them by its own
    order of occurrence, or none."""
    order = next((name for name in ("seq", "occurred_at") if name in outbox.columns), None)
    if order is None:
        return []
    query = sql.SQL("select {} from {} order by {} desc limit %s").format(
        outbox.select_list(), outbox.name, sql.Identifier(outbox.table, outbox.columns[order])
    )
    found = [_event(row) for row in source.execute(query, [limit])]
    return [event for event in reversed(found) if event is not None]


class Applied:
    """What a stream has applied, read once. I6: visible in the floor, or listed."""

    def __init__(self, target: psycopg.Connection, stream: str) -> None:
        row = checkpoint(target, stream)
        self.started = row is not None
        self._floor: Snapshot = parse_snapshot(row["floor"]) if row else NOTHING
        self._listed = {int(xid) for xid in listed(target, stream)}

    def how(self, event: Event) -> str:
        """ "floor" or "listed" where it is applied, "" where it is not; "unknown" without an xid."""
        xid = int(event.xid)
        if xid == 0:
            return "unknown"
        if self._floor.shows(xid):
            return "floor"
        return "listed" if xid in self._listed else ""


def letters(target: psycopg.Connection, ids: Sequence[str]) -> Mapping[str, dict[str, Any]]:
    """Dead letters of these units (their ids), in any state."""
    with target.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            "select id::text, state, code, cause, attempts, retry_at from bridge.dead_letter"
            " where id = any(%s::uuid[])",
            [list(ids)],
        ).fetchall()
    return {row["id"]: row for row in rows}


def deliveries(target: psycopg.Connection, ids: Sequence[str]) -> Mapping[str, dict[str, Any]]:
    """Deliveries of these units; `behind`: an earlier message of the same key must be sent or dead first."""
    with target.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            "select id::text, state, attempts, last_error, settled_at, next_attempt_at,"
            " state = 'pending' and exists (select from bridge.delivery earlier"
            "   where earlier.destination = d.destination and earlier.event_key = d.event_key"
            "   and earlier.event_seq < d.event_seq and earlier.state = 'pending'"
            "   and earlier.pipeline = d.pipeline and earlier.stream = d.stream) as behind"
            " from bridge.delivery d where id = any(%s::uuid[])",
            [list(ids)],
        ).fetchall()
    return {row["id"]: row for row in rows}
