"""Statements inside an open transaction, under a savepoint: what happens when the target refuses them.

Apart from transaction.py, because retries of dead letters and replays write in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bridge.apply.refusal import structure
from bridge.errors import Retry, Verdict, verdict_of
from bridge.postgres.safe_error import safe_message
from bridge.postgres.target import DEFERRED, IMMEDIATE, ROLLBACK, Refused, Statement

_SAVE = Statement(b"savepoint part")
_UNDO = Statement(b"rollback to savepoint part")
_RELEASE = Statement(b"release savepoint part")


def attempt(run: Callable[[Sequence[Statement]], object], statements: Sequence[Statement]) -> Refused | None:
    """Run the statements; what refused them for the sake of data, and then they are undone. Of any other refusal the
    whole transaction is rolled back: raises Retry where it may pass, Halt where it is a matter of structure.

    run: sends statements in the open transaction and waits; raises Refused.
    """
    if not statements:
        return None
    try:
        run([_SAVE, *statements, IMMEDIATE, DEFERRED, _RELEASE])
    except Refused as refused:
        verdict = verdict_of(refused.sqlstate)
        if verdict in (Verdict.RETRY, Verdict.HALT):
            run([ROLLBACK])
            raise (
                Retry(safe_message(refused.error)) if verdict is Verdict.RETRY else structure(refused)
            ) from None
        run([_UNDO, _RELEASE])
        return refused
    return None
