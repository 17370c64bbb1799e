"""A batch's dead letters and deliveries, stored in whatever form the target's database can keep.

They say what the event said: a text with characters that the database's encoding lacks, JSON that jsonb does not take,
a key longer than an index entry. What cannot be stored as it is, is stored escaped (postgres/stored.py); the others
are not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from bridge.attempts import bisect
from bridge.planning.plan import DeadLetter, Owner
from bridge.postgres.safe_error import safe_message
from bridge.postgres.target import OUR_PATH, Refused, Statement
from bridge.postgres.write import dead_letter_statement, delivery_statement
from bridge.stream.bisection import attempt
from bridge.stream.planned import PlannedBatch
from bridge.stream.refusal import Run, structure

T = TypeVar("T")


def record(run: Run, owner: Owner, prepared: PlannedBatch) -> None:
    """Store them inside the open transaction. A delivery that no form can hold becomes a dead letter in
    `prepared.dead`. Raises Halt where the ledger itself is refused."""
    run([OUR_PATH])
    deliveries = prepared.planned.deliveries
    statements = [delivery_statement(owner, deliveries)] if deliveries else []
    if prepared.dead_letters:
        statements.append(dead_letter_statement(owner, prepared.dead_letters))
    if attempt(run, statements, judged=False) is None:
        return
    for delivery, refused in _refused(
        run, deliveries, lambda some, way: delivery_statement(owner, some, escaped=way)
    ):
        if attempt(run, [delivery_statement(owner, [])], judged=False) is not None:
            raise structure(refused)  # without a message, too
        cause = f"the message cannot be stored: {safe_message(refused.error)}"
        prepared.dead.append(
            DeadLetter(delivery.pipeline, delivery.destination, delivery.event, refused.sqlstate, cause)
        )
    bury(run, owner, prepared.dead_letters)


def bury(run: Run, owner: Owner, letters: Sequence[DeadLetter]) -> None:
    """Store these dead letters inside the open transaction. Raises Halt where the ledger is refused."""
    for _, refused in _refused(
        run, letters, lambda some, way: dead_letter_statement(owner, some, escaped=way)
    ):
        raise structure(refused)


def _refused(
    run: Run, items: Sequence[T], statement: Callable[[Sequence[T], bool], Statement]
) -> list[tuple[T, Refused]]:
    """Store them as they are, else escaped (the statement's second argument); those that neither form can hold."""

    def plain(some: Sequence[T]) -> Refused | None:
        return attempt(run, [statement(some, False)], judged=False)

    def escaped(some: Sequence[T]) -> Refused | None:
        return attempt(run, [statement(some, True)], judged=False)

    return bisect([item for item, _ in bisect(items, plain)], escaped)
