"""Finds the units of a batch that a target refuses, within the open transaction, and leaves the others applied.

Which refusal is a value's, and which is the table's, no SQLSTATE tells: ltree reports a bad value as a syntax error
(42601), hstore on 15 as an internal one (XX000), a trigger that routes rows by their value as a missing table (42P01).
So it is found out: what one unit fails with while its neighbours pass the same statement is the value's; what all fail
with is the table's, and halts.

Deferred constraints are judged where a plain commit would judge them: with all units in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bridge.attempts import bisect, gathered
from bridge.errors import Retry, Verdict, verdict_of
from bridge.failpoints import hit
from bridge.planning.plan import DeadLetter, Write, arrange, by_event
from bridge.planning.spec import Unit
from bridge.postgres.assignment import is_altered
from bridge.postgres.safe_error import safe_message, with_state
from bridge.postgres.target import DEFERRED, IMMEDIATE, ROLE_PATH, ROLLBACK, Refused, Statement
from bridge.postgres.write import write_statement
from bridge.stream.planned import places
from bridge.stream.refusal import Run, altered, cause_of, structure, unmapped

_SAVE_PART = Statement(b"savepoint part")
_UNDO_PART = Statement(b"rollback to savepoint part")
_RELEASE_PART = Statement(b"release savepoint part")
_SAVE_ALL = Statement(b"savepoint whole")
_UNDO_ALL = Statement(b"rollback to savepoint whole")
_JUDGED = (IMMEDIATE, DEFERRED)

TIMED_OUT = "57014"
INTERNAL = "XX000"
"""What extensions report for a bad value, and the server for a fault of its own."""

_UNPROVEN = 3
"""So many units in a row, with none that passed between them, are the table's fault."""


def attempt(run: Run, statements: Sequence[Statement], *, judged: bool = True) -> Refused | None:
    """Run the statements; what refused them, and then they are undone. judged: with deferred constraints.

    For a refusal that may pass, the whole transaction is rolled back: raises Retry."""
    if not statements:
        return None
    try:
        run([_SAVE_PART, *statements, *(_JUDGED if judged else ()), _RELEASE_PART])
    except Refused as refused:
        if is_altered(refused.error):
            run([ROLLBACK])
            raise altered() from None
        if verdict_of(refused.sqlstate) is Verdict.RETRY and refused.sqlstate != INTERNAL:
            run([ROLLBACK])
            slow = refused.sqlstate == TIMED_OUT
            raise Retry(safe_message(refused.error), reason="target_slow" if slow else None) from None
        run([_UNDO_PART, _RELEASE_PART])
        return refused
    return None


def in_place(run: Run, refused: Refused | None) -> None:
    """What passed together a moment ago was made again, after an attempt that undid it; raises Retry if refused."""
    if refused is not None:
        run([ROLLBACK])
        raise Retry(safe_message(refused.error))


def may_be_structure(refused: Refused) -> bool:
    """By its SQLSTATE; whether it is, the neighbours tell."""
    return refused.sqlstate == INTERNAL or verdict_of(refused.sqlstate) is Verdict.HALT


@dataclass(frozen=True, slots=True, order=True)
class _Place:
    """One unit: where its event stands in the batch, which write it is in, and which row of it."""

    event: int
    write: int
    row: int


class Bisection:
    """One batch's writes. recent(unit): how many of its last outcomes were failures, None where none is known.

    chunk: more of the transaction may follow. Then `late` has what violates a deferred constraint so far and may as
    well be written at its end, with the dead letter that it would be.
    """

    def __init__(
        self,
        run: Run,
        writes: Sequence[Write],
        *,
        recent: Callable[[Unit], int | None],
        judged: bool,
        chunk: bool = False,
    ) -> None:
        self._run = run
        self._writes = writes
        self._recent = recent
        self._judged = judged
        self._chunk = chunk
        self.late: list[tuple[Write, DeadLetter]] = []

    def dead_letters(self) -> list[DeadLetter]:
        """Applies every unit that can be, and returns the others in the order of events. Raises Halt."""
        self._run([ROLE_PATH])
        self._probe()
        self._run([_SAVE_ALL])
        places_ = sorted(
            _Place(place, number, row)
            for number, write in enumerate(self._writes)
            for row, place in enumerate(places(write))
        )
        failed = dict(bisect(places_, lambda part: self._apply(part, judged=False)))
        violating: dict[_Place, Refused] = {}
        if self._judged:
            living = [place for place in places_ if place not in failed]
            if living and attempt(self._run, _JUDGED, judged=False) is not None:
                violating = self._violating(living)
        failed |= violating
        self._judge(failed, places_)
        dead = []
        for place in sorted(failed):
            letter = self._dead(place, failed[place])
            write = self._writes[place.write]
            if self._chunk and place in violating and (not write.spec.key or by_event(write)):
                self.late.append((write.pick([place.row]), letter))
            else:
                dead.append(letter)
        return dead

    def _probe(self) -> None:
        """The statements without rows: what refuses them is not a value."""
        for write in self._writes:
            refused = attempt(self._run, [write_statement(write.pick([]))], judged=False)
            if refused is not None:
                self._run([ROLLBACK])
                raise self._halt(refused)

    def _apply(self, part: Sequence[_Place], *, judged: bool) -> Refused | None:
        chosen: dict[int, list[int]] = {}
        for place in part:
            chosen.setdefault(place.write, []).append(place.row)
        picked = arrange([self._writes[number].pick(rows) for number, rows in chosen.items()])
        refused = attempt(self._run, [write_statement(write) for write in picked], judged=judged)
        if refused is not None and len(part) == 1:
            hit("bisect.unit")
        return refused

    # -- deferred constraints

    def _violating(self, living: Sequence[_Place]) -> dict[_Place, Refused]:
        """Those that violate a deferred constraint with all others in place. Events are tried whole: what one event
        writes may need what else it writes."""
        events: dict[int, list[_Place]] = {}
        for place in living:
            events.setdefault(place.event, []).append(place)
        whole, failed = gathered(list(events.values()), self._together)
        good = [place for event in whole for place in event]
        found = {place: refused for event, refused in failed for place in event}
        if len(found) > len(failed):  # of an event with several units, some may do
            passed, alone = gathered([[place] for place in found], lambda some: self._together([good, *some]))
            good += [place for unit in passed for place in unit]
            found = {place: refused for (place,), refused in alone}
        in_place(self._run, self._together([good]))
        return found

    def _together(self, parts: Sequence[list[_Place]]) -> Refused | None:
        """All writes undone, and these made and judged."""
        self._run([_UNDO_ALL])
        places_ = sorted(place for part in parts for place in part)
        return self._apply(places_, judged=True) if places_ else None

    # -- whose fault

    def _judge(self, failed: dict[_Place, Refused], all_: Iterable[_Place]) -> None:
        """Raises Halt where a destination's units fail for a reason of structure, and nothing shows that it is
        theirs."""
        passed = {self._writes[place.write].unit for place in all_ if place not in failed}
        doubtful: dict[Unit, list[Refused]] = {}
        for place, refused in failed.items():
            unit = self._writes[place.write].unit
            if unit not in passed and may_be_structure(refused) and not _by_value(refused):
                doubtful.setdefault(unit, []).append(refused)
        for unit, refusals in doubtful.items():
            before = self._recent(unit)
            if before is None or before + len(refusals) >= _UNPROVEN:
                self._run([ROLLBACK])
                raise self._halt(refusals[0])

    def _halt(self, refused: Refused) -> Exception:
        if refused.sqlstate == INTERNAL:
            return Retry(f"the target refused a batch: {with_state(refused.error)}", reason="target_refused")
        return structure(refused)

    def _dead(self, place: _Place, refused: Refused) -> DeadLetter:
        write = self._writes[place.write]
        if (halt := unmapped(write, refused)) is not None:
            self._run([ROLLBACK])
            raise halt
        cause = cause_of(self._run, write, place.row, refused)
        return DeadLetter(write.pipeline, write.spec.name, write.events[place.row], refused.sqlstate, cause)


def _by_value(refused: Refused) -> bool:
    """Not for a privilege, and not inside a function, which the statement without rows did not reach: then that
    statement has shown that the table is not at fault."""
    return refused.sqlstate != "42501" and not refused.error.diag.context
