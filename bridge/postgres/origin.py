"""Which cluster gave out the xids of the outbox: the row outbox.origin, which a dump carries with it.

Positions of a stream (floor, `applied`) and marks of pruning are xids. In another cluster, where the outbox was
restored, they mean nothing, until `bridge recover --adopt-outbox` or the first stream makes it that cluster's own.
"""

from __future__ import annotations

from typing import Any, LiteralString

from psycopg import Connection, Cursor
from psycopg.rows import tuple_row

from bridge.postgres.outbox import BORN

_HERE: LiteralString = "(select system_identifier::text from pg_control_system())"

# A restored row was written by the restore's transaction, not by the one whose xid it has. That also tells clusters
# apart that were made from one image.
_IS_HERE: LiteralString = f"""
    select system_identifier = {_HERE} and xid = {BORN}
    from outbox.origin"""

_TAKE_OVER: LiteralString = f"""
    with moved as (
        update outbox.origin set restored_from = system_identifier, system_identifier = {_HERE},
            database_name = current_database(), xid = pg_current_xact_id(), since = now()
        where %(all)s or not exists (select from outbox.stream where stream <> %(stream)s)
        returning 1),
    positions as (
        update outbox.stream set floor = '3:3:', reached = '0/0', witness_id = null, session = ''
        where %(all)s and exists (select from moved))
    update outbox.pruned set xid = null, floor = null, batch_xid = null, walked_xid = '0', keyed_xid = '0',
        walk_at = null where exists (select from moved)"""


def system_of(connection: Connection[Any]) -> str:
    """The system identifier of the connected cluster."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        [system] = cursor.execute(f"select {_HERE}").fetchone() or [""]
    return str(system)


def origins(connection: Connection[Any]) -> list[str]:
    """The cluster whose xids the outbox has, and the one that it was restored from before; none: it does not say."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        if not _known(cursor):
            return []
        row = cursor.execute("select system_identifier, restored_from from outbox.origin").fetchone()
    return [system for system in row or () if system is not None]


def is_here(connection: Connection[Any], *, tells: bool | None = None) -> bool:
    """Is it this cluster, and was the outbox not restored from a dump since? Also where the outbox does not say.
    tells: whether it does, where that is known."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        return not (_known(cursor) if tells is None else tells) or cursor.execute(_IS_HERE).fetchone() != (
            False,
        )


def take_over(connection: Connection[Any], stream: str) -> None:
    """The first stream of a restored outbox: the xids are this cluster's from now on. Not while another stream may have
    a position in the others'."""
    _take_over(connection, {"stream": stream, "all": False})


def adopt_origin(connection: Connection[Any]) -> None:
    """The xids are this cluster's from now on. Streams that have another's lose their registered positions, which would
    let prune delete what they have not applied; their own adoption follows."""
    _take_over(connection, {"stream": "", "all": True})


def _take_over(connection: Connection[Any], values: dict[str, object]) -> None:
    with connection.cursor(row_factory=tuple_row) as cursor:
        if _known(cursor) and cursor.execute(_IS_HERE).fetchone() == (False,):
            cursor.execute(_TAKE_OVER, values)


def _known(cursor: Cursor[tuple[Any, ...]]) -> bool:
    """Also false before the migration that adds it."""
    return cursor.execute(
        "select has_table_privilege(to_regclass('outbox.origin'), 'select')"
    ).fetchone() == (True,)
