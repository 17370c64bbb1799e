"""A batch's dead letters and deliveries, stored in whatever form the target's database can keep.

They say what the event said: a text with characters that the database's encoding lacks, JSON that jsonb does not take,
a key longer than an index entry. What cannot be stored as it is, is stored escaped (postgres/stored.py); the others
are not touched.
"""

from __future__ import annotations

from collections.abc import Sequence

from bridge.attempts import bisect
from bridge.planning.plan import DeadLetter, Deliver
from bridge.postgres.safe_error import safe_message
from bridge.postgres.target import OUR_PATH, Refused, Statement
from bridge.postgres.write import dead_letter_statement, delivery_statement
from bridge.stream.bisection import attempt
from bridge.stream.planned import PlannedBatch
from bridge.stream.refusal import Run, structure


def record(run: Run, stream: str, prepared: PlannedBatch) -> None:
    """Store them inside the open transaction. A delivery that no form can hold becomes a dead letter in
    `prepared.dead`. Raises Halt where the ledger itself is refused."""
    run([OUR_PATH])
    deliveries = prepared.planned.deliveries
    statements = [delivery_statement(stream, deliveries)] if deliveries else []
    if prepared.dead_letters:
        statements.append(dead_letter_statement(stream, prepared.dead_letters))
    if attempt(run, statements, judged=False) is None:
        return
    for delivery, refused in _deliver(run, stream, deliveries):
        _halt_if_ledger(run, stream, refused)
        cause = f"the message cannot be stored: {safe_message(refused.error)}"
        prepared.dead.append(
            DeadLetter(delivery.pipeline, delivery.destination, delivery.event, refused.sqlstate, cause)
        )
    bury(run, stream, prepared.dead_letters)


def _deliver(run: Run, stream: str, deliveries: Sequence[Deliver]) -> list[tuple[Deliver, Refused]]:
    def try_all(some: Sequence[Deliver]) -> Refused | None:
        return attempt(run, [delivery_statement(stream, some)], judged=False)

    def try_one(some: Sequence[Deliver]) -> Refused | None:
        return attempt(run, [delivery_statement(stream, some, escaped=True)], judged=False)

    return bisect([delivery for delivery, _ in bisect(deliveries, try_all)], try_one)


def bury(run: Run, stream: str, letters: Sequence[DeadLetter]) -> None:
    """Store these dead letters inside the open transaction. Raises Halt where the ledger is refused."""

    def try_all(some: Sequence[DeadLetter]) -> Refused | None:
        return attempt(run, [dead_letter_statement(stream, some)], judged=False)

    def try_one(some: Sequence[DeadLetter]) -> Refused | None:
        return attempt(run, [dead_letter_statement(stream, some, escaped=True)], judged=False)

    for _, refused in bisect([letter for letter, _ in bisect(letters, try_all)], try_one):
        raise structure(refused)


def _halt_if_ledger(run: Run, stream: str, refused: Refused) -> None:
    """Raises Halt if the statement fails without rows, too."""
    empty: list[Statement] = [delivery_statement(stream, [])]
    if attempt(run, empty, judged=False) is not None:
        raise structure(refused)
