"""One target transaction per batch: send it, wait for it, and send it again after a temporary refusal.

After a refusal the batch is bisected under savepoints (bisection.py), within one transaction, so that a bad unit
affects only itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bridge.attempts import Backoff, gathered
from bridge.errors import Fenced, Retry, StandBy, Verdict, verdict_of
from bridge.failpoints import hit
from bridge.planning.plan import DeadLetter, Owner, Write, arrange
from bridge.planning.spec import Unit
from bridge.postgres import ledger as ledger_sql
from bridge.postgres import versions
from bridge.postgres.assignment import is_altered
from bridge.postgres.safe_error import safe_message
from bridge.postgres.target import (
    BEGIN,
    COMMIT,
    IMMEDIATE,
    OUR_PATH,
    ROLE_PATH,
    ROLLBACK,
    Refused,
    Statement,
    TargetLink,
)
from bridge.postgres.write import write_statement
from bridge.protocol.events import Seqs, Snapshot
from bridge.protocol.facts import MOVER, Ledger
from bridge.stream.bisection import INTERNAL, TIMED_OUT, Bisection, attempt, in_place
from bridge.stream.pace import LATE_SECONDS, Pace
from bridge.stream.planned import FailureGuard, PlannedBatch
from bridge.stream.record import bury, record
from bridge.stream.refusal import altered, structure

_TRIES = 6  # with the waits between them about three seconds: longer than most lock_timeouts and failovers of a pool
_END = (IMMEDIATE, COMMIT)
_BETWEEN_TRIES = Backoff(first=0.1, longest=10.0)


_SAVE_LATE = Statement(b"savepoint late")
_UNDO_LATE = Statement(b"rollback to savepoint late")

_Late = tuple[Write, DeadLetter, PlannedBatch]
"""One unit, the dead letter that it is unless it can be written, and the chunk it came in."""


@dataclass(slots=True)
class _Flight:
    prepared: PlannedBatch
    before: Ledger
    head: list[Statement]  # lock and ledger, behind BEGIN
    tail: list[Statement]
    tries: int = 1


class Transactions:
    """Sends planned batches to one target, one at a time. wait(): block until a socket is ready, answering
    whoever else wants something; pause(seconds): the same for a while. troubled: told of a batch that takes long.
    stream: whose ledger row it is; of partitions, the owner is another: their target's."""

    def __init__(
        self,
        stream: str,
        owner: Owner,
        link: TargetLink,
        guard: FailureGuard,
        pace: Pace,
        *,
        wait: Callable[[], None],
        pause: Callable[[float], None],
        retried: Callable[[str], None],
        troubled: Callable[[Retry], None],
    ) -> None:
        self._owner = owner
        self._stream = stream
        self._link = link
        self._guard = guard
        self._pace = pace
        self._wait = wait
        self._pause = pause
        self._retried = retried
        self._troubled = troubled
        self.met: set[Unit] = set()
        """Units with rows that existed before their event: upserted from now on, not inserted as new."""
        self._flight: _Flight | None = None
        self._chunks: list[PlannedBatch] = []  # of the transaction that is open, without their rows
        self._chunk_seqs: list[Seqs] = []  # and which rows those were
        self._late: list[_Late] = []  # of its units, those that may be written at its end

    def send(
        self,
        prepared: PlannedBatch,
        before: Ledger,
        after: Ledger,
        list_as: int | None,
        thin: Snapshot | None,
    ) -> None:
        """Send without waiting; but wait for a chunk, and for the end of a transaction that began with one."""
        hit("apply.before")
        self._guard.check([prepared])
        ledger = [ledger_sql.change(before, after)]
        batch = prepared.batch
        if list_as is not None and batch.xids:
            seqs = (
                Seqs.together([*self._chunk_seqs, prepared.seqs()]) if self._chunk_seqs else prepared.seqs()
            )
            ledger.append(ledger_sql.list_applied(self._stream, list_as, batch.xids, batch.end_lsns, seqs))
        if thin is not None:
            ledger.append(ledger_sql.thin(self._stream, thin))
        if batch.chunk:
            self._send_chunk(prepared, before, ledger)
            return
        flight = _Flight(prepared, before, ledger, [*_END])
        self._flight = flight
        self._link.send([BEGIN, *flight.head, *prepared.effects, *flight.tail])
        hit("apply.sent")

    def save(self, before: Ledger, after: Ledger, more: Sequence[Statement]) -> None:
        """Change only the ledger, and wait."""
        hit("ledger.before")
        try:
            self._run([BEGIN, ledger_sql.change(before, after), *more, COMMIT])
        except Refused as refused:
            raise self._failed(refused, before) from None
        hit("ledger.saved")

    @property
    def arrived(self) -> bool:
        """The answer is complete."""
        return self._flight is not None and not self._link.busy

    def settle(self) -> list[PlannedBatch]:
        """Wait until the batch is durable, and return it."""
        flight = self._flight
        if flight is None:
            done, self._chunks, self._chunk_seqs = self._chunks, [], []
            return done
        while True:
            try:
                self._link.settle(self._patiently(flight))
            except Refused as refused:
                hit("settle.refused")
                self._run([ROLLBACK])
                if not self._again(refused, flight):
                    self._bisect(flight)
                    break
            else:
                self._count_suppressed(flight.prepared)
                break
        self._flight = None
        hit("settle.durable")
        self._guard.remember([flight.prepared])
        if self._pace.slowed:
            self._pace.worked()
        return [flight.prepared]

    def _count_suppressed(self, prepared: PlannedBatch) -> None:
        """Rows that a statement was given and did not store: a trigger of the table returned NULL for them."""
        end = len(self._link.affected) - len(_END)
        affected = self._link.affected[end - len(prepared.written) : end]
        for (unit, rows), stored in zip(prepared.written, affected, strict=True):
            if rows is not None and stored < rows:
                prepared.suppressed[unit] = prepared.suppressed.get(unit, 0) + rows - stored

    def _patiently(self, flight: _Flight) -> Callable[[], None]:
        """wait(), which tells when the batch is late."""
        late = time.monotonic() + LATE_SECONDS

        def wait() -> None:
            nonlocal late
            self._wait()
            if time.monotonic() > late:
                late = float("inf")
                self._troubled(self._pace.late(len(flight.prepared.batch.events)))

        return wait

    def _run(self, statements: Sequence[Statement]) -> list[list[tuple[bytes | None, ...]]]:
        return self._link.run(statements, self._wait)

    # --- refusals ---------------------------------------------------------------------------------

    def _again(self, refused: Refused, flight: _Flight) -> bool:
        """Send the same batch again after a temporary refusal. False: bisect it. Otherwise raises."""
        if refused.statement <= len(flight.head):
            raise self._failed(refused, flight.before)
        if is_altered(refused.error):
            raise altered()
        if refused.sqlstate == TIMED_OUT:
            raise self._pace.too_slow(len(flight.prepared.batch.events))
        if verdict_of(refused.sqlstate) is not Verdict.RETRY:
            return False
        if refused.sqlstate == INTERNAL and flight.tries > 1:
            return False  # it may be the value of one of them
        if flight.tries >= _TRIES:
            raise Retry(
                f"the target refused a batch {flight.tries} times: {safe_message(refused.error)}",
                reason="target_refused",
            )
        self._retried(refused.sqlstate)
        self._pause(_BETWEEN_TRIES.after(flight.tries))
        flight.tries += 1
        self._link.send([BEGIN, *flight.head, *flight.prepared.effects, *flight.tail])
        return True

    def _failed(self, refused: Refused, before: Ledger) -> Exception:
        """The reason why the ledger could not be changed."""
        if self._link.in_transaction:
            self._run([ROLLBACK])
        if refused.sqlstate != ledger_sql.NOT_OURS:
            verdict = verdict_of(refused.sqlstate)
            return Retry(safe_message(refused.error)) if verdict is Verdict.RETRY else structure(refused)
        newer, rows = self._run(
            [Statement(ledger_sql.NEWER), Statement(ledger_sql.READ, [self._stream.encode()])]
        )
        if newer:
            version, name = ((value or b"").decode() for value in newer[0])
            return versions.halt(versions.told("target", int(version), name))
        if not rows:
            return Retry("this stream's ledger row no longer exists", reason="ledger_missing")
        now = ledger_sql.read_row(rows[0])
        if now.epoch > before.epoch and now.session.startswith(MOVER):
            return StandBy(f"stream {self._stream} is being divided anew: bridge scale repartition")
        if now.epoch > before.epoch:
            return Fenced(
                f"stream {self._stream} was taken over by another bridge (epoch {now.epoch}, ours "
                f"was {before.epoch}): this bridge writes nothing more"
            )
        return Retry(
            "the ledger went back: the target was restored from an older copy", reason="target_restored"
        )

    # --- a transaction larger than memory -----------------------------------------------------------

    def _send_chunk(self, prepared: PlannedBatch, before: Ledger, ledger: list[Statement]) -> None:
        try:
            if not self._chunks:
                self._late = []
                self._run([BEGIN, ledger_sql.hold(before)])
            late = self._apply_by_unit(prepared, judged=self._pace.judge_chunks)
            light = prepared.lightened(may_die=bool(late))
            self._late += [(write, letter, light) for write, letter in late]
            self._chunks.append(light)
            self._chunk_seqs.append(prepared.seqs())
            self._guard.check(self._chunks)
            hit("apply.chunk")
            if prepared.batch.whole:
                self._finish(ledger)
        except Refused as refused:
            raise self._failed(refused, before) from None
        except Retry as late:
            raise self._slower(late, prepared) from None

    def _finish(self, ledger: list[Statement]) -> None:
        if self._late:
            self._settle_late()
        try:
            self._run([IMMEDIATE])
        except Refused as refused:
            if self._pace.judge_chunks or verdict_of(refused.sqlstate) is Verdict.RETRY:
                raise
            self._pace.judged_by_chunks()
            self._run([ROLLBACK])
            raise Retry(
                f"at the end of a transaction: {safe_message(refused.error)}; it is read again, and its deferred "
                "constraints are judged part by part",
                reason="target_refused",
            ) from None
        self._run([OUR_PATH, *ledger, COMMIT])
        self._guard.remember(self._chunks)
        self._pace.worked()

    def _settle_late(self) -> None:
        """Write what could not be judged in its chunk, now that all chunks are there; the rest are dead letters."""
        self._run([_SAVE_LATE, ROLE_PATH])

        def attempt_late(some: Sequence[_Late]) -> Refused | None:
            self._run([_UNDO_LATE, ROLE_PATH])
            return attempt(self._run, [write_statement(w) for w in arrange([write for write, _, _ in some])])

        good, failed = gathered(self._late, attempt_late)
        in_place(self._run, attempt_late(good))
        for (_, letter, chunk), _ in failed:
            chunk.dead.append(letter)
        self._run([OUR_PATH])
        bury(self._run, self._owner, [letter for (_, letter, _), _ in failed])
        self._guard.check(self._chunks)

    def _slower(self, error: Retry, prepared: PlannedBatch) -> Retry:
        return self._pace.too_slow(len(prepared.batch.events)) if error.reason == "target_slow" else error

    # --- a batch that was refused for its data ------------------------------------------------------

    def _bisect(self, flight: _Flight) -> None:
        """Apply the whole batch again, in halves, until each unit that fails alone is a dead letter."""
        try:
            self._run([BEGIN, *flight.head])
        except Refused as refused:
            raise self._failed(refused, flight.before) from None
        try:
            self._apply_by_unit(flight.prepared, judged=True)
            self._guard.check([flight.prepared])
            hit("bisect.commit")
            self._run(flight.tail)
        except Retry as late:
            raise self._slower(late, flight.prepared) from None
        except Refused as refused:
            self._run([ROLLBACK])
            raise Retry(
                f"the target refused a bisected batch: {safe_message(refused.error)}", reason="target_refused"
            ) from None

    def _apply_by_unit(self, prepared: PlannedBatch, *, judged: bool) -> list[tuple[Write, DeadLetter]]:
        """All effects inside the open transaction; what fails alone goes to `prepared.dead`. judged: with deferred
        constraints. Returns what may be written at the end of a transaction in chunks."""
        refused = attempt(self._run, prepared.effects, judged=judged)
        if refused is None:
            return []
        writes = prepared.planned.writes
        if refused.sqlstate == "23505":  # rows were there already where only new ones were expected
            self.met |= {write.unit for write in writes}
        recent, chunk = self._guard.failures_before, prepared.batch.chunk
        found = Bisection(self._run, writes, recent=recent, judged=judged, chunk=chunk)
        prepared.dead = found.dead_letters()
        record(self._run, self._owner, prepared)
        return found.late
