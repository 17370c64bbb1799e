"""The protocol's requests to the target, except batches: facts, fence, ledger row, the rows of `applied`."""

from __future__ import annotations

from collections.abc import Callable

import psycopg

from bridge.failpoints import hit
from bridge.postgres import ledger as ledger_sql
from bridge.postgres.profiles import working
from bridge.postgres.target import BEGIN, COMMIT, ROLLBACK, Refused, ResultRows, Statement, TargetLink
from bridge.postgres.versions import ledger_older
from bridge.protocol.events import Listed, listed
from bridge.protocol.facts import Ledger, Mode, TargetFacts
from bridge.protocol.preflight import name_taken
from bridge.protocol.requests import Fence, ReadApplied, Save
from bridge.stream.spec import StreamSpec, Watcher
from bridge.stream.transaction import Transactions

_LATELY_SECONDS = (
    3.0  # three looks at the source: a bridge that works says something to the target more often
)


class Checkpoint:
    """One session's ledger row."""

    def __init__(
        self,
        spec: StreamSpec,
        link: TargetLink,
        transactions: Transactions,
        watcher: Watcher,
        *,
        wait: Callable[[], None],
    ) -> None:
        self._spec = spec
        self._link = link
        self._transactions = transactions
        self._watcher = watcher
        self._wait = wait
        self._judged = False

    def _prefix(self) -> bytes:
        """The prefix of the application_name of this stream's working sessions."""
        return working(self._spec.stream).encode()

    def _lately(self) -> float:
        """Seconds within which a bridge that works on this stream sends something to the target."""
        return _LATELY_SECONDS + (0 if self._spec.capture == "slot" else 3 * self._spec.poll_interval)

    def _run(self, *statements: Statement) -> ResultRows:
        try:
            return self._link.run(statements, self._wait)
        except Refused as refused:
            if isinstance(refused.error, psycopg.errors.UndefinedColumn):
                raise ledger_older() from None
            if self._link.in_transaction:
                self._link.run([ROLLBACK], self._wait)
            raise refused.error from None

    def facts(self) -> TargetFacts:
        stream = self._spec.stream.encode()
        identity, rows, busy, divided = self._run(
            Statement(ledger_sql.IDENTITY),
            Statement(ledger_sql.READ, [stream]),
            Statement(ledger_sql.BUSY, [self._prefix(), b"%f" % self._lately()]),
            Statement(ledger_sql.DIVIDED, [stream]),
        )
        system, database = identity[0]
        return TargetFacts(
            (system or b"").decode(),
            (database or b"").decode(),
            ledger_sql.read_row(rows[0]) if rows else None,
            busy[0][0] == b"t",
            tuple((name or b"").decode() for (name,) in divided),
        )

    def fence(self, request: Fence) -> Ledger | None:
        hit("session.start")
        stream, source = self._spec.stream, request.source
        ours = ledger_sql.fence(stream, request.session, source, request.since, create=request.create)
        fence = [BEGIN, *ours, COMMIT]
        try:
            answer = self._run(*fence)
        except psycopg.errors.LockNotAvailable:  # a session of ours that is stuck holds the row
            self._run(Statement(ledger_sql.EVICT, [self._prefix()]))
            answer = self._run(*fence)
        fenced, there = answer[-3], answer[-2]
        if not there:
            return None
        ledger = ledger_sql.read_row(there[0])
        if not fenced:
            raise name_taken(stream, ledger, source)
        name = f"{working(stream)}{ledger.epoch}"
        self._run(Statement(b"select set_config('application_name', $1, false)", [name.encode()]))
        self._watcher.phase("starting", ledger)
        hit("session.fenced")
        return ledger

    def save(self, request: Save) -> None:
        stream = self._spec.stream
        more = [ledger_sql.thin(stream, request.thin)] if request.thin is not None else []
        if request.forget_above is not None:
            more.append(ledger_sql.forget_above(stream, request.forget_above))
        if request.after.mode is Mode.CATCHUP:
            self._watcher.phase("catchup", request.after)
        self._transactions.save(request.before, request.after, more)
        self._watcher.saved(request.after)
        if not self._judged:
            self._judged = True
            hit("session.judged")
        if request.before.mode is not request.after.mode:
            self._watcher.log("mode", mode=request.after.mode.value, before=request.before.mode.value)

    def applied(self, request: ReadApplied) -> Listed:
        incarnation = None if request.except_incarnation is None else b"%d" % request.except_incarnation
        rows = self._run(Statement(ledger_sql.LISTED, [self._spec.stream.encode(), incarnation]))[0]
        return listed(map(ledger_sql.read_listed, rows))
