"""Why one unit cannot be applied. Raised while planning, caught by the planner, never seen by a stream.

Apart, so that every part of the pipeline can say it without knowing what becomes of it: a dead letter.
"""

from __future__ import annotations


class UnitFailure(Exception):
    """One event cannot go on: `code` of the dead letter, `cause` in words without values of the event."""

    code = "planning"

    def __init__(self, cause: str, *, retry_for_seconds: float | None = None) -> None:
        super().__init__(cause)
        self.cause = cause
        self.retry_for_seconds = retry_for_seconds


class PayloadFailure(UnitFailure):
    """The payload is not a JSON document that can be read."""

    code = "payload"


class TooLarge(UnitFailure):
    """The payload is larger than source.max_payload; the dead letter refers to the outbox row."""

    code = "too_large"


class ContractFailure(UnitFailure):
    """The event breaks its contract."""

    code = "contract"


class ExpressionFailure(UnitFailure):
    """An expression or a template has no value for this event."""

    code = "expression"


class MissingEntity(UnitFailure):
    """Enrichment found no row for this event's key."""

    code = "missing_entity"


class EntityFailure(UnitFailure):
    """The event does not say which entity it is about."""

    code = "entity"


class Unmatched(UnitFailure):
    """No pipeline and no contract takes this type of event."""

    code = "unmatched"
