"""How many events were not put in because their idempotency key was used before.

Each repeat is a row of outbox.suppressed, written in the repeating transaction, so that producers never wait
for each other and a rollback counts nothing. Here, apart from prune.py because no stream has a say in it,
those rows are counted and added together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, LiteralString

from psycopg import Connection

_AT_ONCE = 10_000
"""Rows that one transaction adds together."""

_READABLE: LiteralString = "select has_table_privilege(to_regclass('outbox.suppressed'), 'select')"

COUNTS: LiteralString = "select type, sum(count)::bigint from outbox.suppressed group by type order by type"
"""Event type and how many; needs SELECT on outbox.suppressed, which the role outbox_bridge has."""

_ROWS: LiteralString = "select count(*), count(distinct type) from outbox.suppressed"

# Two bridges at once take different rows: neither waits, and nothing is added twice.
_FOLD: LiteralString = """
    with taken as materialized (
        delete from outbox.suppressed where ctid = any(array(
            select ctid from outbox.suppressed limit %s for update skip locked))
        returning type, count, since
    )
    insert into outbox.suppressed (type, count, since)
    select type, sum(count), min(since) from taken group by type"""


def suppressed(source: Connection[Any]) -> dict[str, int] | None:
    """How many, by event type; None where the source has no such table yet, or we may not read it (doctor says so)."""
    if not _readable(source):
        return None
    return dict(source.execute(COUNTS).fetchall())


def fold(source: Connection[Any], *, go_on: Callable[[], bool] = lambda: True) -> int:
    """Add the rows of each type together, some thousands a transaction; how many rows there were.

    Give it a connection in autocommit. Raises psycopg's errors; what earlier transactions did stays done.
    """
    if not _readable(source):
        return 0
    row = source.execute(_ROWS).fetchone()
    rows, types = row or (0, 0)
    if rows > types:
        for _ in range(rows // _AT_ONCE + 1):  # rows that come meanwhile are for the next time
            if not go_on():
                break
            source.execute(_FOLD, [_AT_ONCE])
    return int(rows)


def _readable(source: Connection[Any]) -> bool:
    return source.execute(_READABLE).fetchone() == (True,)
