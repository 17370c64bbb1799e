"""Apply dead letters again, each exactly once, unless a late effect would undo a later one.

One target transaction a dead letter: it locks it, plans that one unit from the event as it was kept, writes, and
marks it resolved. A crash leaves it open and the effect undone; two retries at once skip each other's. A message that
a sink's receiver refused is rendered anew and put back in the queue (messages.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bridge.errors import BridgeError
from bridge.failpoints import hit
from bridge.planning.plan import Planned, TableShape
from bridge.planning.planner import Planner, answered
from bridge.planning.spec import DestinationSpec, SinkSpec, TableSpec
from bridge.postgres import dead_letters as letters_sql
from bridge.postgres import parts
from bridge.postgres.dead_letters import Letter
from bridge.postgres.delivery import redeliver
from bridge.postgres.entities import Enricher
from bridge.postgres.left_behind import likely
from bridge.postgres.parts import Position
from bridge.postgres.stranded import NO_DESTINATION
from bridge.postgres.target import (
    BEGIN,
    COMMIT,
    OUR_PATH,
    ROLLBACK,
    Refused,
    ResultRows,
    Statement,
    TargetLink,
)
from bridge.protocol.events import Batch, Event
from bridge.repair.late_effects import LateEffects
from bridge.repair.messages import OldEvents, rendered
from bridge.stream.bisection import Bisection
from bridge.stream.planned import PlannedBatch, take_refused
from bridge.stream.published import Publications
from bridge.stream.record import record
from bridge.stream.spec import StreamSpec
from bridge.stream.target_tables import plan_target, table_of

_SAVE = Statement(b"savepoint retry")
_UNDO = Statement(b"rollback to savepoint retry")


Result = Literal["applied", "queued", "sent", "filtered", "failed", "refused", "skipped"]
"""applied: its effect is in the target. queued: its message waits to be sent. sent: it was sent (messages.settled).
filtered: the pipeline now filters it out; resolved. failed: still open, or again, with the new cause. refused: a later
event of its key was applied; still open. skipped: another retry holds it, or it is settled.
"""


@dataclass(frozen=True, slots=True)
class RetryOutcome:
    """The result of one dead letter. why: without row values."""

    id: str
    result: Result
    code: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A dead letter's plan, or why there is none."""

    planned: Planned | None = None
    code: str = ""
    cause: str = ""


class DeadLetterRetry:
    """One stream's retries, over its own connections. Close it."""

    def __init__(
        self,
        plan: StreamSpec,
        *,
        force: bool = False,
        dry_run: bool = False,
        as_sent: bool = False,
        payload: bytes | None = None,
    ) -> None:
        """force: retry even if a later event of the key was applied. dry_run: do everything, then roll back. as_sent: a
        message that was refused is not rendered anew. payload: in the place of the event's, to try a correction."""
        self._plan = plan
        self._force = force
        self._as_sent = as_sent
        self._payload = payload
        self.planned = Planned()  # what the last one became
        self._end = ROLLBACK if dry_run else COMMIT
        self._planners: dict[tuple[str, str], Planner] = {}
        self._specs: dict[tuple[str, str], DestinationSpec] = {
            (pipeline.name, name): spec
            for pipeline in plan.pipelines
            for name, spec in pipeline.destinations.items()
        }
        self._published = Publications(plan.owner, plan.pipelines, plan.buses)
        self._overtaken = LateEffects(plan)
        self._messages = OldEvents(plan)
        self._enricher = Enricher(plan.dsns, f"dead/{plan.stream}")
        try:
            self._link = TargetLink(plan.target_dsn, f"bridge-dead/{plan.stream}")
        except BaseException:
            self._enricher.close()
            raise

    def close(self) -> None:
        self._published.close()
        self._overtaken.close()
        self._messages.close()
        self._enricher.close()
        self._link.close()

    def __enter__(self) -> DeadLetterRetry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def retry(self, ids: Iterable[str]) -> Iterator[RetryOutcome]:
        """Retry each in turn. Raises Halt for errors that stop a whole destination (a missing table), Retry for
        temporary faults; earlier results stay."""
        for letter_id in ids:
            try:
                yield self._one(letter_id)
            except BaseException:
                self._roll_back()
                raise

    def _one(self, letter_id: str) -> RetryOutcome:
        rows = self._run(BEGIN, letters_sql.claim(letter_id))[-1]
        if not rows:
            self._run(ROLLBACK)
            return RetryOutcome(letter_id, "skipped", why="it is settled, or another retry holds it")
        letter = self._corrected(letters_sql.read_letter(letter_id, rows[0]))
        unit = (letter.pipeline, letter.destination)
        if isinstance(self._specs.get(unit), SinkSpec):
            message = self._run(letters_sql.dead_message(letter.id))[0]
            if message:
                return self._send(letter, (message[0][0] or b"").decode())
        if any(unit) and unit not in self._specs and unit not in self._plan.entities:
            return self._failed(letter, NO_DESTINATION, self._gone(unit), parked=False)
        if letter.event is None:
            return self._failed(letter, "payload", "the dead letter has no payload", parked=False)
        return self._again(letter, letter.event, unit)

    def _corrected(self, letter: Letter) -> Letter:
        if self._payload is None:
            return letter
        event = letter.event or self._messages.event(letter)
        return replace(letter, event=None if event is None else event._replace(payload=self._payload))

    def _gone(self, unit: tuple[str, str]) -> str:
        """The configuration no longer has it."""
        name = "/".join(unit)
        other = likely(self._plan.sinks, unit)
        named = "/".join(other) if other else "PIPELINE/DESTINATION"
        return (
            f"{name} is not in the configuration any more: put it back, or, if it was a sink that has another name now,"
            f" bridge sink move {name} {named}"
        )

    def _again(self, letter: Letter, event: Event, unit: tuple[str, str]) -> RetryOutcome:
        overtaken = None if self._force else self._overtaken.why(event, unit, self)
        if overtaken is not None:
            self._run(letters_sql.fail(letter.id, "overtaken", overtaken, parked=False), self._end)
            return RetryOutcome(letter.id, "refused", "overtaken", overtaken)
        attempt = self._attempt(event, unit)
        if attempt.planned is None:
            return self._failed(letter, attempt.code, attempt.cause)
        return self._apply(letter, attempt.planned)

    # --- a message that was refused ----------------------------------------------------------------

    def _send(self, letter: Letter, sent: str) -> RetryOutcome:
        """Put it back in the queue. sent: its body as it was refused."""
        why = ""
        if not self._as_sent:
            event = letter.event or self._messages.event(letter)
            if event is None:
                why = "as it was sent: its event is not in the outbox any more"
            else:
                attempt = self._attempt(event, (letter.pipeline, letter.destination))
                if attempt.planned is None:
                    return self._failed(letter, attempt.code, attempt.cause, parked=False)
                if attempt.planned.dead_letters:
                    first = attempt.planned.dead_letters[0]
                    return self._failed(letter, first.code, first.cause, parked=False)
                if not attempt.planned.deliveries:
                    return self._resolved(letter, "filtered")
                body, why = rendered(attempt.planned.deliveries[0].body, sent)
                self._run(letters_sql.rewrite_message(letter.id, body))
        self._run(redeliver(letter.id))
        return self._resolved(letter, "queued", why)

    # --- what the check for late effects reads from the target ----------------------------------------

    def hold(self) -> Sequence[Position]:
        """What is applied, with the checkpoint locked: nothing is applied until this transaction ends."""
        rows = self._plan.rows
        return parts.read_positions(self._run(parts.hold(rows, shared=True), parts.positions(rows))[-1])

    def still_dead(self, unit: tuple[str, str], event_ids: Sequence[str]) -> set[str]:
        """The events whose own unit is an open dead letter."""
        rows = self._run(letters_sql.still_dead(self._plan.stream, unit, event_ids))[0]
        return {(row[0] or b"").decode() for row in rows}

    # --- planning -----------------------------------------------------------------------------------

    def _attempt(self, event: Event, unit: tuple[str, str]) -> _Attempt:
        planned = answered(self._planner(unit).plan([event]), self._enricher.answer)
        if planned.keeps and self._end is COMMIT:
            refused = self._enricher.keep(planned.keeps)
            take_refused(planned, refused, self._plan.entities)
        self.planned = planned
        own = [letter for letter in planned.dead_letters if (letter.pipeline, letter.destination) == unit]
        if own:
            return _Attempt(code=own[0].code, cause=own[0].cause)
        return _Attempt(planned)

    def _planner(self, unit: tuple[str, str]) -> Planner:
        planner = self._planners.get(unit)
        if planner is None:
            planner = self._planners[unit] = self._compile(unit)
        return planner

    def _compile(self, unit: tuple[str, str]) -> Planner:
        plan = self._plan
        if not any(unit):  # no pipeline took it then: use all that take it now
            return plan_target(replace(plan, unmatched="dead"))
        spec = self._specs.get(unit)
        shapes: dict[tuple[str, str], TableShape] = {}
        if isinstance(spec, TableSpec):
            events = next(pipeline.events for pipeline in plan.pipelines if pipeline.name == unit[0])
            shapes[unit] = table_of(plan, events, spec)
        return Planner(
            plan.pipelines,
            plan.contracts,
            shapes,
            sinks=plan.messages,
            entities=plan.entities,
            unmatched="dead",
            only={unit},
            nulls=plan.outbox.is_foreign,
        )

    # --- the transaction ----------------------------------------------------------------------------

    def _apply(self, letter: Letter, planned: Planned) -> RetryOutcome:
        def run(statements: Sequence[Statement]) -> object:
            return self._run(*statements)

        self._run(_SAVE)
        found = Bisection(run, planned.writes, recent=lambda _: 0, judged=True) if planned.writes else None
        dead = found.dead_letters() if found is not None else []
        if dead:
            self._run(_UNDO)
            return self._failed(letter, dead[0].code, dead[0].cause)
        self._run(OUR_PATH)
        kept = PlannedBatch(Batch(), planned, [])
        record(
            run, self._plan.owner, kept
        )  # dead letters of other units, where no pipeline took the event before
        if kept.dead:
            self._run(_UNDO)
            return self._failed(letter, kept.dead[0].code, kept.dead[0].cause)
        done = any(
            (planned.writes, planned.deliveries, planned.publications, planned.dead_letters, planned.keeps)
        )
        if self._end is COMMIT and (unfit := self._published.publish(planned)):
            self._run(_UNDO)
            return self._failed(letter, unfit[0].code, unfit[0].cause)
        return self._resolved(letter, "applied" if done else "filtered")

    def _resolved(self, letter: Letter, result: Result, why: str = "") -> RetryOutcome:
        self._run(letters_sql.resolve(letter.id))
        hit("dead.retry")
        self._run(self._end)
        return RetryOutcome(letter.id, result, why=why)

    def _failed(self, letter: Letter, code: str, cause: str, *, parked: bool = True) -> RetryOutcome:
        self._run(letters_sql.fail(letter.id, code, cause, parked=parked), self._end)
        return RetryOutcome(letter.id, "failed", code, cause)

    def _run(self, *statements: Statement) -> ResultRows:
        return self._link.run_alone(*statements)

    def _roll_back(self) -> None:
        try:
            if self._link.in_transaction and not self._link.busy:
                self._run(ROLLBACK)
        except (BridgeError, Refused):
            pass  # the link is gone, and the transaction with it


def retry_parked(plan: StreamSpec, ids: Sequence[str]) -> list[RetryOutcome]:
    """Retry parked dead letters. Raises what DeadLetterRetry.retry raises, and psycopg.Error."""
    with DeadLetterRetry(plan) as retrying:
        return list(retrying.retry(ids))
