"""Statements that a target refuses: rolled back to a savepoint, bisected until the failing units are found, and
explained by a halt with its reason or by the column that a value does not fit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from bridge.attempts import bisect
from bridge.errors import Halt, Retry, Verdict, verdict_of
from bridge.failpoints import hit
from bridge.planning.plan import Column, DeadLetter, Write, arrange
from bridge.planning.spec import Unit
from bridge.postgres.catalog import HIDDEN, hides_rows
from bridge.postgres.safe_error import safe_message
from bridge.postgres.target import DEFERRED, IMMEDIATE, ROLLBACK, Refused, Statement
from bridge.postgres.write import dead_letter_statement, delivery_statement, write_statement
from bridge.stream.planned import PlannedBatch, places

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
    said = f"the target refused a batch: {safe_message(refused.error)} (SQLSTATE {refused.sqlstate})"
    if hides_rows(refused.error):
        return Halt(said, reason="row_security", hint=HIDDEN)
    return Halt(
        said,
        reason=_REASONS.get(refused.sqlstate, "target_structure"),
        hint="bridge doctor names what is missing and the SQL that fixes it; delivery goes on by itself then",
    )


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
        declared = write.shape.columns[name].declared or write.shape.columns[name].type_sql
        if value is None:
            continue
        if refused.sqlstate == "22001":  # a cast would cut it
            if too_long(write.shape.columns[name], value):
                return f"column {name}: {words}"
            continue
        cast = Statement(f"select $1::text::{declared}".encode(), [value])
        try:
            run([_SAVE, cast, _RELEASE])
        except Refused as other:
            run([_UNDO, _RELEASE])
            if other.sqlstate == refused.sqlstate:
                return f"column {name}: {words}"
    return words


_SAVE_PART = Statement(b"savepoint part")
_UNDO_PART = Statement(b"rollback to savepoint part")
_RELEASE_PART = Statement(b"release savepoint part")


def attempt(run: Run, statements: Sequence[Statement]) -> Refused | None:
    """Run the statements; what refused them for the sake of data, and then they are undone. Of any other refusal the
    whole transaction is rolled back: raises Retry where it may pass, Halt where it is a matter of structure."""
    if not statements:
        return None
    try:
        run([_SAVE_PART, *statements, IMMEDIATE, DEFERRED, _RELEASE_PART])
    except Refused as refused:
        verdict = verdict_of(refused.sqlstate)
        if verdict in (Verdict.RETRY, Verdict.HALT):
            run([ROLLBACK])
            raise (
                Retry(safe_message(refused.error)) if verdict is Verdict.RETRY else structure(refused)
            ) from None
        run([_UNDO_PART, _RELEASE_PART])
        return refused
    return None


def apply_by_unit(run: Run, stream: str, prepared: PlannedBatch) -> set[Unit]:
    """All effects of a batch inside an open transaction; what fails alone goes to `prepared.dead`.

    Answers the units whose rows were there already where only new ones were expected (23505)."""
    refused = attempt(run, prepared.effects)
    if refused is None:
        return set()
    planned = prepared.planned
    met = {write.unit for write in planned.writes} if refused.sqlstate == "23505" else set()
    prepared.dead = _dead_letters(run, planned.writes)
    deliveries = [delivery_statement(stream, planned.deliveries)] if planned.deliveries else []
    dead = prepared.dead_letters
    # As jsonb where the payload is that, else its bytes.
    forms = [[dead_letter_statement(stream, dead, raw=raw)] for raw in (False, True)] if dead else [[]]
    for letters in forms:
        refused = attempt(run, [*letters, *deliveries])
        if refused is None:
            return met
    raise structure(refused)


def _dead_letters(run: Run, writes: Sequence[Write]) -> list[DeadLetter]:
    """Apply these writes unit by unit, as far as it must be, in the order of events; those that cannot be."""
    rows = sorted(
        (place, n, row) for n, write in enumerate(writes) for row, place in enumerate(places(write))
    )

    def apply(part: Sequence[tuple[int, int, int]]) -> DeadLetter | Refused | None:
        chosen: dict[int, list[int]] = {}
        for _, n, row in part:
            chosen.setdefault(n, []).append(row)
        picked = arrange([writes[n].pick(some) for n, some in chosen.items()])
        refused = attempt(run, [write_statement(write) for write in picked])
        if refused is None or len(part) > 1:
            return refused
        hit("bisect.unit")
        ((_, n, row),) = part
        write = writes[n]
        if (halt := unmapped(write, refused)) is not None:
            run([ROLLBACK])
            raise halt
        return DeadLetter(
            write.pipeline,
            write.spec.name,
            write.events[row],
            refused.sqlstate,
            cause_of(run, write, row, refused),
        )

    return [letter for _, letter in bisect(rows, apply) if isinstance(letter, DeadLetter)]
