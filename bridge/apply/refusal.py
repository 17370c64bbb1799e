"""What a refusal of the target means to a person: a halt with its reason, or a column that a value does not fit."""

from __future__ import annotations

import re

from bridge.core.plan import Column, Write
from bridge.errors import Halt
from bridge.postgres.safe_error import safe_message
from bridge.postgres.target import Refused

_LIMIT = re.compile(r"character(?: varying)?\((\d+)\)")

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
    """A refusal that a person must mend."""
    return Halt(
        f"the target refused a batch: {safe_message(refused.error)} (SQLSTATE {refused.sqlstate})",
        reason=_REASONS.get(refused.sqlstate, "target_structure"),
        hint="bridge doctor names what is missing and the SQL that mends it; delivery goes on by itself then",
    )


def unmapped(write: Write, refused: Refused) -> Halt | None:
    """A NOT NULL column that the mapping leaves out is nothing that an event could mend."""
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
    """More characters than the column's type takes; a cast would cut them, an assignment refuses."""
    limit = _LIMIT.fullmatch(column.declared)
    return limit is not None and len(value.decode()) > int(limit[1])
