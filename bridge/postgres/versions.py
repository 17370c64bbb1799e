"""Is a ledger or an outbox newer than this program?

`bridge.migration` and `outbox.migration` have a row for each migration. A program knows the numbers up to KNOWN. What a
later migration means for it, only that migration can say: its row's `compatible_from` is the oldest number whose
program may go on (a new nullable column, an index). Without one the program must not: it would not write what newer
programs rely on. The column comes with the first migration that needs it (schema.py, Migration.record), so it is read
in a way that does without.

Asked at every start of a stream and a dispatcher, before a command writes, by doctor, and inside every write of the
ledger's row, so that a migration stops a running program of an older release at its next batch.
"""

from __future__ import annotations

from typing import Literal, LiteralString

import psycopg

from bridge import __version__
from bridge.errors import Halt
from bridge.postgres.target_rules import Finding

Side = Literal["source", "target"]

KNOWN: dict[Side, int] = {"source": 6, "target": 4}
"""The newest migration of sql/source and sql/target. A test compares."""
NEEDED = 3
"""The ledger's oldest version that a stream runs on. The console's actions and charts come with 4."""

NEWER_OUTBOX: LiteralString = """
    select m.version, m.name from outbox.migration m
    where m.version > 6 and coalesce((to_jsonb(m) ->> 'compatible_from')::int > 6, true)
    order by m.version desc limit 1"""

NEWER_LEDGER: LiteralString = """
    select m.version, m.name from bridge.migration m
    where m.version > 4 and coalesce((to_jsonb(m) ->> 'compatible_from')::int > 4, true)
    order by m.version desc limit 1"""

REASONS: dict[Side, str] = {"source": "outbox_newer", "target": "ledger_newer"}
UPGRADE = (
    "run the release that migrated it, or a later one: pip install --upgrade outbox-bridge (or its image); to go back "
    "to this release: docs/operations.md, Roll back"
)


def newer(connection: psycopg.Connection, side: Side) -> Finding | None:
    """The finding, or None: this program knows the schema, or there is no table of migrations that it may read (which
    other checks report). connection: in autocommit, or the transaction may fail."""
    try:
        row = connection.execute(NEWER_OUTBOX if side == "source" else NEWER_LEDGER).fetchone()
    except (
        psycopg.errors.UndefinedTable,
        psycopg.errors.InvalidSchemaName,
        psycopg.errors.InsufficientPrivilege,
    ):
        return None
    return None if row is None else told(side, int(row[0]), str(row[1]))


def told(side: Side, version: int, name: str) -> Finding:
    """The finding for this migration."""
    what = "the outbox" if side == "source" else "the ledger"
    return Finding(
        REASONS[side],
        f"{what} is at version {version} ({name}), made by a newer release; this one ({__version__}) knows "
        f"{KNOWN[side]}",
        UPGRADE,
    )


def halt(finding: Finding) -> Halt:
    """As an error."""
    return Halt(finding.message, reason=finding.reason, hint=finding.fix)


def ledger_older() -> Halt:
    """It lacks a column that this program reads."""
    return Halt(
        f"the ledger is of an older release; this one ({__version__}) needs its version {NEEDED}",
        reason="ledger_version",
        hint="bridge schema target | psql <target>   (as the owner of the database)",
    )


def refuse_older(connection: psycopg.Connection) -> None:
    """Raise Halt where the ledger lacks what this program reads; the connection is in autocommit, and to a ledger."""
    row = connection.execute("select max(version) from bridge.migration").fetchone()
    if row is None or row[0] is None or row[0] < NEEDED:
        raise ledger_older()


def refuse_newer(connection: psycopg.Connection, side: Side) -> None:
    """Raise Halt where this program must not write."""
    found = newer(connection, side)
    if found is not None:
        raise halt(found)
