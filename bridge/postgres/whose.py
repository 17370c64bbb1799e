"""Whose stream is it? For everything that works on a ledger beside the stream itself: commands, dispatchers, doctor.

A target may be filled by several sources. Two of them with one name for their streams would share a ledger: the second
would show, retry, send and discard what belongs to the first. The stream itself asks protocol/preflight.py.
"""

from __future__ import annotations

from typing import LiteralString

import psycopg
from psycopg.rows import tuple_row

from bridge.errors import CannotConnect, Halt
from bridge.postgres.connect import connect
from bridge.postgres.partitions import registered_rows
from bridge.postgres.parts import OF
from bridge.postgres.profiles import COMMAND
from bridge.protocol.events import NOTHING
from bridge.protocol.facts import Ledger, SourceIdentity
from bridge.protocol.preflight import belongs, name_taken, other_source

# Also of a ledger from before 003_source.sql, which has no such columns.
_OWNER: LiteralString = f"""
    select system_identifier, to_jsonb(c) ->> 'source_database', (to_jsonb(c) ->> 'source_database_oid')::int8
    from bridge.checkpoint c where {OF} order by stream limit 1"""


def identity(source: psycopg.Connection) -> SourceIdentity | None:
    """Of the connected database; None: a standby, whose positions are not its own."""
    with source.cursor(row_factory=tuple_row) as cursor:
        row = cursor.execute(
            "select (select system_identifier::text from pg_control_system()), current_database()::text,"
            " (select oid::int8 from pg_catalog.pg_database where datname = current_database())"
            " where not pg_is_in_recovery()"
        ).fetchone()
    return SourceIdentity(*row) if row is not None else None


def owner(target: psycopg.Connection, stream: str) -> Ledger | None:
    """The ledger's row, or the first of its partitions, of which only the owner is read; None: there is none."""
    with target.cursor(row_factory=tuple_row) as cursor:
        row = cursor.execute(_OWNER, {"stream": stream}).fetchone()
    if row is None:
        return None
    system, database, oid = row
    return Ledger(stream, 0, "", system_identifier=system, database=database, database_oid=oid, floor=NOTHING)


def another(
    source: psycopg.Connection,
    target: psycopg.Connection,
    stream: str,
    *,
    moved: bool = False,
    old: psycopg.Connection | None = None,
) -> Halt | None:
    """Why this source may not touch the stream of this name; None: it may. moved: a source that has the stream's
    registration and is another one (a copy, a restored dump) may too: a person decides what becomes of it. old: the
    source whose rows this one has by replication, which brings no registration; a person has named it."""
    ledger, here = owner(target, stream), identity(source)
    if ledger is None or here is None or belongs(ledger, here):
        return None
    before = identity(old) if old is not None else None
    if old is not None and before is not None and belongs(ledger, before):
        return None if registered_rows(old, stream) else name_taken(stream, ledger, here)
    if not registered_rows(source, stream):
        return name_taken(stream, ledger, here)
    return None if moved else other_source(ledger, here)


def refuse_another(source_dsn: str, target: psycopg.Connection, stream: str) -> None:
    """Raise Halt where the stream of this name is another source's. A source that does not answer proves nothing: the
    bridge of this configuration was not refused by it either."""
    try:
        with connect(source_dsn, COMMAND, "check") as source:
            found = another(source, target, stream)
    except (CannotConnect, psycopg.Error):
        return
    if found is not None:
        raise found


class Owned:
    """Which ledgers were seen to be their sources'. A process asks once for each stream; from any thread."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, str, str]] = set()

    def __call__(self, stream: str, source_dsn: str, target_dsn: str) -> bool:
        """False: not known yet, because the stream has no ledger or the source is a standby. Raises Halt where it is
        another source's; CannotConnect, psycopg.Error."""
        asked = (stream, source_dsn, target_dsn)
        if asked not in self._seen and _is_ours(*asked):
            self._seen.add(asked)
        return asked in self._seen


def _is_ours(stream: str, source_dsn: str, target_dsn: str) -> bool:
    with connect(target_dsn, COMMAND, "check", where=f"the target of stream {stream}") as target:
        if owner(target, stream) is None:
            return False
        with connect(source_dsn, COMMAND, "check") as source:
            if identity(source) is None:
                return False
            found = another(source, target, stream)
    if found is not None:
        raise found
    return True
