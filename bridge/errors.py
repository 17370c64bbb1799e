"""Every error has a verdict, a reason and a hint; the policy for SQLSTATEs is here and nowhere else.

There are two families. A BridgeError ends a session of a stream: its verdict says whether to retry, halt, stand by or
end. A UnitFailure costs one unit: it is raised while a batch is planned and becomes a dead letter.
"""

from __future__ import annotations

from enum import Enum
from inspect import cleandoc


class Verdict(Enum):
    """What the stream does about an error."""

    RETRY = "retry"  # back off, then retry in the same order; nothing becomes a dead letter
    DEAD_LETTER = "dead-letter"  # this unit cannot be applied; the others can
    HALT = "halt"  # stop applying and confirming; not ready; retried until the cause is fixed
    STAND_BY = "stand-by"  # another bridge holds the stream; wait until it stops
    FATAL = "fatal"  # the process ends: usage, configuration, fenced


class BridgeError(Exception):
    """Something went wrong."""

    verdict = Verdict.FATAL
    reason = "error"
    hint: str = ""

    def __init__(self, message: str = "", *, reason: str | None = None, hint: str | None = None) -> None:
        super().__init__(message or cleandoc(type(self).__doc__ or ""))
        if reason is not None:
            self.reason = reason
        if hint is not None:
            self.hint = hint

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text}\n  fix: {self.hint}" if self.hint else text


class ConfigError(BridgeError):
    """The configuration is wrong."""

    reason = "config"


class CannotConnect(BridgeError):
    """A server could not be reached. sent_password: a password was sent, and the server refused the login then."""

    verdict = Verdict.RETRY
    reason = "cannot_connect"
    sent_password = False


class Retry(BridgeError):
    """A temporary fault: retried after a back-off."""

    verdict = Verdict.RETRY
    reason = "retry"


class Halt(BridgeError):
    """The stream has stopped and waits for a person."""

    verdict = Verdict.HALT
    reason = "halt"


class StandBy(BridgeError):
    """Another bridge works on this stream; this one stands by to take over."""

    verdict = Verdict.STAND_BY
    reason = "stand_by"


class Fenced(BridgeError):
    """Another bridge has taken this stream over; this one can no longer commit and ends."""

    verdict = Verdict.FATAL
    reason = "fenced"


# SQLSTATE classes (first two characters), PostgreSQL manual, appendix A; design: docs/guarantees.md
_RETRY_CLASSES = frozenset({"08", "40", "53", "57", "58", "XX"})
_RETRY_CODES = frozenset({"55P03", "55006", "25P03", "25P04"})
_DATA_CLASSES = frozenset({"21", "22", "23", "44"})
_HALT_CLASSES = frozenset({"42", "3F", "3D", "28", "0A", "25"})


def verdict_of(sqlstate: str | None) -> Verdict | None:
    """What an error with this SQLSTATE means for a batch; None: unknown, bisect to find out.

    Connection, resource, conflict and shutdown classes are retried in order. Data classes make one unit a dead
    letter. Structure and privilege classes halt. No SQLSTATE means that the connection is lost.
    """
    if sqlstate is None:
        return Verdict.RETRY
    if sqlstate in _RETRY_CODES or sqlstate[:2] in _RETRY_CLASSES:
        return Verdict.RETRY
    if sqlstate[:2] in _DATA_CLASSES:
        return Verdict.DEAD_LETTER
    if sqlstate[:2] in _HALT_CLASSES:
        return Verdict.HALT
    return None


class UnitFailure(Exception):
    """One unit fails: the dead letter's `code`, and the `cause` without values of the event."""

    code = "planning"

    def __init__(self, cause: str, *, retry_for_seconds: float | None = None) -> None:
        super().__init__(cause)
        self.cause = cause
        self.retry_for_seconds = retry_for_seconds


class PayloadFailure(UnitFailure):
    """The payload is not a readable JSON document."""

    code = "payload"


class Incomplete(UnitFailure):
    """A column of the outbox that an event must have is NULL."""

    code = "incomplete"


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


class UnreadableEntity(UnitFailure):
    """Enrichment found this event's row, and cannot read it."""

    code = "unreadable_entity"


class EntityFailure(UnitFailure):
    """The event does not say which entity it is about."""

    code = "entity"


class Unmatched(UnitFailure):
    """No pipeline and no contract takes this type of event."""

    code = "unmatched"
