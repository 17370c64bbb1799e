"""One target transaction a batch: send it, wait for it, and when the server refuses, decide.

Passing refusals are sent again as they are. A refusal for the sake of data is bisected under savepoints,
in the same transaction as all else, so that one bad unit costs only itself. Refusals of structure halt.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bridge.errors import Fenced, Halt, Retry, Verdict, verdict_of
from bridge.failpoints import hit
from bridge.planning.plan import DeadLetter, Write, arrange
from bridge.planning.rows import META
from bridge.postgres import ledger as ledger_sql
from bridge.postgres.safe_error import safe_message
from bridge.postgres.target import BEGIN, COMMIT, IMMEDIATE, ROLLBACK, Refused, Statement, TargetLink
from bridge.postgres.write import dead_letter_statement, delivery_statement, write_statement
from bridge.protocol.events import Seqs, Snapshot
from bridge.protocol.facts import Ledger
from bridge.stream.guard import FailureGuard, Unit
from bridge.stream.prepared import PlannedBatch, lightened, outcomes_of, places
from bridge.stream.refusal import attempt, cause_of, structure, unmapped

_TRIES = 6


@dataclass(slots=True)
class _Flight:
    prepared: PlannedBatch
    before: Ledger
    head: list[Statement]  # lock and ledger, behind BEGIN
    tail: list[Statement]
    tries: int = 1


class Transactions:
    """Sends prepared batches to one target, one at a time. wait(): block until a socket is ready, answering
    whoever else wants something; pause(seconds): the same for a while."""

    def __init__(
        self,
        stream: str,
        link: TargetLink,
        storm: FailureGuard,
        *,
        wait: Callable[[], None],
        pause: Callable[[float], None],
        retried: Callable[[str], None],
        allow_storm: bool = False,
    ) -> None:
        self._stream = stream
        self._link = link
        self._storm = storm
        self._wait = wait
        self._pause = pause
        self._retried = retried
        self._allow_storm = allow_storm
        self.met: set[Unit] = set()
        """Units with rows that were there before their event was: upserted from now on, not inserted as new."""
        self._flight: _Flight | None = None
        self._chunks: list[PlannedBatch] = []  # of the transaction that is open, without their rows
        self._chunk_seqs: list[Seqs] = []  # and which rows those were

    def send(
        self,
        prepared: PlannedBatch,
        before: Ledger,
        after: Ledger,
        list_as: int | None,
        thin: Snapshot | None,
    ) -> None:
        """Send and return. A chunk, and the end of a transaction that began with one, are waited for."""
        hit("apply.before")
        self._check_storm([prepared])
        ledger = [ledger_sql.change(before, after)]
        if list_as is not None and prepared.batch.xids:
            batch = prepared.batch
            seqs = Seqs.together([*self._chunk_seqs, _seqs(prepared)])
            ledger.append(ledger_sql.list_applied(self._stream, list_as, batch.xids, batch.end_lsns, seqs))
        if thin is not None:
            ledger.append(ledger_sql.thin(self._stream, thin))
        if prepared.batch.chunk:
            self._send_chunk(prepared, before, ledger)
            return
        flight = _Flight(prepared, before, ledger, [IMMEDIATE, COMMIT])
        self._flight = flight
        self._link.send([BEGIN, *flight.head, *prepared.effects, *flight.tail])
        hit("apply.sent")

    def save(self, before: Ledger, after: Ledger, more: Sequence[Statement]) -> None:
        """Change the ledger alone, and wait."""
        hit("ledger.before")
        try:
            self._link.run([BEGIN, ledger_sql.change(before, after), *more, COMMIT], self._wait)
        except Refused as refused:
            raise self._failed(refused, before) from None
        hit("ledger.saved")

    @property
    def arrived(self) -> bool:
        """The answer to what was sent is complete."""
        return self._flight is not None and not self._link.busy

    def settle(self) -> list[PlannedBatch]:
        """Wait until what was sent is durable; what that was."""
        flight = self._flight
        if flight is None:
            done, self._chunks, self._chunk_seqs = self._chunks, [], []
            return done
        while True:
            try:
                self._link.settle(self._wait)
            except Refused as refused:
                hit("settle.refused")
                self._link.run([ROLLBACK], self._wait)
                if not self._again(refused, flight):
                    self._bisect(flight)
                    break
            else:
                break
        self._flight = None
        hit("settle.durable")
        self._remember([flight.prepared])
        return [flight.prepared]

    # --- refusals ---------------------------------------------------------------------------------

    def _again(self, refused: Refused, flight: _Flight) -> bool:
        """Send the same flight again after a passing refusal. False: it wants bisection. Else raises."""
        if refused.statement == 1:
            raise self._failed(refused, flight.before)
        verdict = verdict_of(refused.sqlstate)
        if verdict is Verdict.HALT:
            raise structure(refused)
        if verdict is not Verdict.RETRY:
            return False
        if flight.tries >= _TRIES:
            raise Retry(
                f"the target refused a batch {flight.tries} times: {safe_message(refused.error)}",
                reason="target_refused",
            )
        self._retried(refused.sqlstate)
        self._pause(random.uniform(0.5, 1.0) * 0.05 * 2**flight.tries)  # noqa: S311  jitter
        flight.tries += 1
        self._link.send([BEGIN, *flight.head, *flight.prepared.effects, *flight.tail])
        return True

    def _failed(self, refused: Refused, before: Ledger) -> Exception:
        """Why the ledger could not be changed."""
        if self._link.in_transaction:
            self._link.run([ROLLBACK], self._wait)
        if refused.sqlstate != "22012":
            verdict = verdict_of(refused.sqlstate)
            return Retry(safe_message(refused.error)) if verdict is Verdict.RETRY else structure(refused)
        rows = self._link.run([Statement(ledger_sql.READ, [self._stream.encode()])], self._wait)[0]
        if not rows:
            return Retry("the ledger row of this stream is gone", reason="ledger_missing")
        now = ledger_sql.read_row(rows[0])
        if now.epoch > before.epoch:
            return Fenced(
                f"stream {self._stream} was taken over by another bridge (epoch {now.epoch}, ours was "
                f"{before.epoch}): nothing more is written by this one"
            )
        return Retry(
            "the ledger went back: the target was restored from an older copy", reason="target_restored"
        )

    # --- a transaction larger than memory -----------------------------------------------------------

    def _send_chunk(self, prepared: PlannedBatch, before: Ledger, ledger: list[Statement]) -> None:
        try:
            if not self._chunks:
                self._link.run([BEGIN, ledger_sql.hold(before)], self._wait)
            self._apply_part(prepared)
            self._chunks.append(lightened(prepared))
            self._chunk_seqs.append(_seqs(prepared))
            self._check_storm(self._chunks)
            hit("apply.chunk")
            if prepared.batch.whole:
                self._link.run([IMMEDIATE, *ledger, COMMIT], self._wait)
                self._remember(self._chunks)
        except Refused as refused:
            raise self._failed(refused, before) from None

    # --- bisection --------------------------------------------------------------------------------

    def _bisect(self, flight: _Flight) -> None:
        """The whole batch again, in halves, until each unit that fails alone is a dead letter."""
        try:
            self._link.run([BEGIN, *flight.head], self._wait)
        except Refused as refused:
            raise self._failed(refused, flight.before) from None
        try:
            self._apply_part(flight.prepared)
            self._check_storm([flight.prepared])
            hit("bisect.commit")
            self._link.run(flight.tail, self._wait)
        except Refused as refused:
            self._link.run([ROLLBACK], self._wait)
            raise Retry(
                f"the target refused a bisected batch: {safe_message(refused.error)}", reason="target_refused"
            ) from None

    def _apply_part(self, prepared: PlannedBatch) -> None:
        """All effects of a batch inside an open transaction; what fails alone goes to `prepared.dead`."""
        refused = self._try(prepared.effects)
        if refused is None:
            return
        writes = prepared.planned.writes
        if refused.sqlstate == "23505":
            self.met.update(write.unit for write in writes)
        units = sorted(
            ((place, n, row) for n, write in enumerate(writes) for row, place in enumerate(places(write))),
        )
        prepared.dead = self._halve(writes, [(n, row) for _, n, row in units])
        statements = []
        if prepared.planned.deliveries:
            statements.append(delivery_statement(self._stream, prepared.planned.deliveries))
        dead = prepared.dead_letters
        if not dead:
            letters: list[list[Statement]] = [[]]
        else:  # as jsonb where the payload is that, else its bytes
            letters = [[dead_letter_statement(self._stream, dead, raw=raw)] for raw in (False, True)]
        for letter in letters:
            refused = self._try([*letter, *statements])
            if refused is None:
                return
        raise structure(refused) if refused else Retry("a batch without effects was refused")

    def _halve(self, writes: Sequence[Write], units: Sequence[tuple[int, int]]) -> list[DeadLetter]:
        """Apply these units in order; the dead letters of those that cannot be."""
        if not units:
            return []
        rows: dict[int, list[int]] = {}
        for n, row in units:
            rows.setdefault(n, []).append(row)
        parts = arrange([writes[n].pick(chosen) for n, chosen in rows.items()])
        refused = self._try([write_statement(part) for part in parts])
        if refused is None:
            return []
        if len(units) == 1:
            hit("bisect.unit")
            n, row = units[0]
            write = writes[n]
            if (halt := unmapped(write, refused)) is not None:
                self._link.run([ROLLBACK], self._wait)
                raise halt
            cause = cause_of(lambda some: self._link.run(some, self._wait), write, row, refused)
            return [DeadLetter(write.pipeline, write.spec.name, write.events[row], refused.sqlstate, cause)]
        middle = len(units) // 2
        return [*self._halve(writes, units[:middle]), *self._halve(writes, units[middle:])]

    def _try(self, statements: Sequence[Statement]) -> Refused | None:
        return attempt(lambda some: self._link.run(some, self._wait), statements)

    # --- storms -----------------------------------------------------------------------------------

    def _check_storm(self, parts: Sequence[PlannedBatch]) -> None:
        if self._allow_storm:
            return
        for unit, outcomes in outcomes_of(parts).items():
            cause = self._storm.judge(unit, outcomes)
            if cause is not None:
                raise Halt(
                    f"pipeline {unit[0]}, destination {unit[1]}: more than half of the last 200 events cannot "
                    f"be applied for one reason: {cause}",
                    reason="dead_letter_storm",
                    hint="mend the table, the contract or the mapping and delivery goes on by itself; to dead-letter "
                    "them all the same: bridge run --allow-storm",
                )

    def _remember(self, parts: Sequence[PlannedBatch]) -> None:
        for unit, outcomes in outcomes_of(parts).items():
            self._storm.remember(unit, outcomes)


def _seqs(part: PlannedBatch) -> Seqs:
    return Seqs.of(map(int, map(META["seq"], part.batch.events)))
