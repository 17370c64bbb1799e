"""What a target's refusal means: a halt with its reason, or a cause with the column that a value does not fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from bridge.errors import Halt, Retry
from bridge.planning.plan import Column, Write
from bridge.postgres.assignment import value_sql
from bridge.postgres.catalog import HIDDEN, hides_rows
from bridge.postgres.safe_error import safe_message, with_state
from bridge.postgres.target import Refused, Statement

Run = Callable[[Sequence[Statement]], object]
"""Sends statements in the open transaction and waits; raises Refused."""

_LIMIT = re.compile(r"character(?: varying)?\((\d+)\)")

_SAVE = Statement(b"savepoint cause")
_UNDO = Statement(b"rollback to savepoint cause")
_RELEASE = Statement(b"release savepoint cause")

_REASONS = {
    "42P01": "table_missing",
    "42703": "column_missing",
    "42804": "column_type",
    "42846": "column_type",
    "42501": "privilege_missing",
    "25006": "target_read_only",
    "42P10": "key_not_unique",
}


def structure(refused: Refused) -> Halt:
    """A refusal that a person must fix."""
    said = f"the target refused a batch: {with_state(refused.error)}"
    if hides_rows(refused.error):
        return Halt(said, reason="row_security", hint=HIDDEN)
    return Halt(
        said,
        reason=_REASONS.get(refused.sqlstate, "target_structure"),
        hint="bridge doctor names what is missing and the SQL that fixes it; delivery goes on by itself then",
    )


def altered() -> Retry:
    """A table is not as it was when the session read the catalog. Nothing was written; the next session reads it."""
    return Retry("a target table was altered: its catalog is read again", reason="target_altered")


def unmapped(write: Write, refused: Refused) -> Halt | None:
    """The halt for a NOT NULL column that the mapping leaves out: no event can fill it."""
    diag = refused.error.diag
    here = (diag.schema_name, diag.table_name) == (write.shape.schema, write.shape.table)
    if refused.sqlstate != "23502" or not here or diag.column_name in write.names:
        return None
    return Halt(
        f"destination {write.spec.name}: column {diag.column_name!r} of {write.shape.schema}."
        f"{write.shape.table} is NOT NULL, and nothing fills it",
        reason="column_required",
        hint=f"map {diag.column_name} in bridge.yaml, give it a default, or drop its NOT NULL",
    )


def too_long(column: Column, value: bytes) -> bool:
    """More characters than the column's type allows; a cast would truncate them, an assignment refuses."""
    limit = _LIMIT.fullmatch(column.declared)
    return limit is not None and len(value.decode()) > int(limit[1])


def cause_of(run: Run, write: Write, row: int, refused: Refused) -> str:
    """What a person reads; names the column, found by casting each value alone, where the server does not."""
    words = safe_message(refused.error)
    if refused.error.diag.column_name or refused.sqlstate[:2] != "22":
        return words
    for name, column in zip(write.names, write.columns, strict=True):
        value = column[row]
        column_of = write.shape.columns[name]
        if value is None:
            continue
        if refused.sqlstate == "22001":  # a cast would cut it
            if too_long(write.shape.columns[name], value):
                return f"column {name}: {words}"
            continue
        # as an assignment does: below its domains, then with the modifier
        typed = f"({value_sql(column_of, '$1::pg_catalog.text')})::{column_of.declared or column_of.type_sql}"
        cast = Statement(f"select {typed}".encode(), [value])
        try:
            run([_SAVE, cast, _RELEASE])
        except Refused as other:
            run([_UNDO, _RELEASE])
            if other.sqlstate == refused.sqlstate:
                return f"column {name}: {words}"
    return words
