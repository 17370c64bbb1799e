"""History again, from the outbox to one destination: what its mapping says now, of events that are applied.

Safe to repeat and to kill, because nothing remembers how far it was: tables keyed by an upsert take a row
twice, tables that hold `$meta.id` are asked whether they have it, sinks get ids of this replay. A table with
neither is filled in one transaction, under the checkpoint's lock, and only when empty.

Only events that the ledger's floor shows are replayed: the stream has applied those and brings them no more,
so the two never write the same event at once. docs/guarantees.md, "Order across plans".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from psycopg import sql

from bridge.apply.planning import table_of
from bridge.apply.refusal import structure
from bridge.apply.replay_effects import effects, part_of
from bridge.apply.replay_history import Applied, History
from bridge.apply.replay_order import Order, Way, way_of
from bridge.apply.savepoint import attempt
from bridge.apply.stream_plan import StreamPlan
from bridge.core.event import Event
from bridge.core.pipeline import Planner, answered
from bridge.core.plan import Planned, TableShape
from bridge.core.spec import TableSpec
from bridge.errors import BridgeError, Retry
from bridge.failpoints import hit
from bridge.postgres import wire
from bridge.postgres.enrich import Enricher
from bridge.postgres.safe_error import safe_message
from bridge.postgres.target import BEGIN, COMMIT, IMMEDIATE, ROLLBACK, Refused, Rows, Statement, TargetLink

_TRIES = 6
_NAMED = 20


@dataclass(slots=True)
class Replayed:
    """What a replay did. written: events that went to the destination (rows that were there already included)."""

    read: int = 0
    written: int = 0
    elsewhere: int = 0  # the configuration does not send them there
    emptied: int = 0  # prune left the key and took the payload
    failed: int = 0
    failures: list[str] = field(default_factory=list)  # the first of them: event id and cause
    notes: list[str] = field(default_factory=list)


def replay(plan: StreamPlan, order: Order, *, force: bool = False, deliver: bool = False) -> Replayed:
    """Fill the destination. Raises BridgeError; what earlier batches did stays done, and a second run is safe."""
    if not plan.outbox.has_xid:
        raise BridgeError(
            "the outbox has no xid column, so nothing tells which of its rows are applied",
            reason="no_xid",
            hint="bridge doctor prints the two ALTERs that add it",
        )
    shapes: dict[tuple[str, str], TableShape] = {}
    if isinstance(order.destination, TableSpec):
        shapes[order.unit] = table_of(plan, order.pipeline.events, order.destination)
    way = way_of(order.destination, shapes.get(order.unit), force=force, deliver=deliver)
    with ExitStack() as stack:
        return _Replay(plan, order, way, shapes, stack).run()


class _Replay:
    """One replay over connections of its own."""

    def __init__(
        self,
        plan: StreamPlan,
        order: Order,
        way: Way,
        shapes: Mapping[tuple[str, str], TableShape],
        stack: ExitStack,
    ) -> None:
        self._plan = plan
        self._order = order
        self._way = way
        self._shape = shapes.get(order.unit)
        self._planner = Planner(
            plan.pipelines,
            plan.contracts,
            shapes,
            sinks=plan.sinks,
            only={order.unit},
            max_payload=plan.max_payload,
        )
        self._enricher = Enricher(plan.dsns, f"replay/{plan.stream}", lambda _entity, _result, _count: None)
        stack.callback(self._enricher.close)
        self._link = TargetLink(plan.target_dsn, f"bridge-replay/{plan.stream}")
        stack.callback(self._link.close)
        self._history = History(plan, order)
        stack.callback(self._history.close)
        self.done = Replayed()

    def run(self) -> Replayed:
        whole = self._way == "empty" and not self._order.dry_run
        self._alone()
        if whole:
            self._run(BEGIN)
        applied = self._applied(hold=whole)
        if self._way == "empty":
            self._only_when_empty()
        if self._history.pruned():
            self.done.notes.append("pruned events are gone: what the outbox still holds was replayed")
        for events in self._history.events(applied):
            self.done.read += len(events)
            live = [event for event in events if event.headers != b'{"outbox.pruned": true}']
            self.done.emptied += len(events) - len(live)
            planned = answered(self._planner.plan(live), self._enricher.answer)
            if self._order.dry_run:
                self._count(live, planned, [])
            elif whole:
                self._count(live, planned, self._halve(planned, live))
                hit("replay.batch")
            else:
                self._transaction(live, planned)
        if whole:
            self._run(IMMEDIATE, COMMIT)
        return self.done

    # --- what may be replayed -------------------------------------------------------------------

    def _alone(self) -> None:
        """One replay of a destination at a time."""
        name = f"bridge replay {'/'.join(self._order.unit)}"
        rows = self._run(Statement(b"select pg_try_advisory_lock(hashtextextended($1, 0))", [name.encode()]))
        if rows[0][0][0] != b"t":
            raise BridgeError("another replay of this destination is running", reason="replay_running")

    def _applied(self, *, hold: bool) -> Applied:
        """The floor, and the xids and seqs of the rows listed beyond it. hold: with the checkpoint locked until
        we end, so that the stream waits and all are exact; else the floor alone, which only rises."""
        lock = b" for update" if hold else b""
        rows = self._run(
            Statement(
                b"select floor::text, coalesce(next::text, '') from bridge.checkpoint where stream = $1"
                + lock,
                [self._plan.stream.encode()],
            ),
            Statement(
                b"select coalesce((select array_agg(x)::text from bridge.applied, unnest(xids) as x"
                b" where stream = $1), '{}'), coalesce((select range_agg(r)::text from bridge.applied,"
                b" unnest(seqs) as r where stream = $1), '{}')",
                [self._plan.stream.encode()],
            ),
        )
        if not rows[-2]:
            raise BridgeError(
                f"stream {self._plan.stream} has applied nothing yet",
                reason="ledger_missing",
                hint="bridge run",
            )
        floor, goal = rows[-2][0]
        if hold and goal:
            raise BridgeError(
                "the stream is catching up: what it has applied is known only when that is done",
                reason="catching_up",
                hint="wait until bridge status says streaming",
            )
        xids, seqs = rows[-1][0] if hold else (b"{}", b"{}")
        return Applied((floor or b"").decode(), (xids or b"{}").decode(), (seqs or b"{}").decode())

    def _only_when_empty(self) -> None:
        if self._shape is None:
            return
        table = sql.Identifier(self._shape.schema, self._shape.table)
        query = sql.SQL("select exists (select from {})").format(table).as_string().encode()
        if self._run(Statement(query))[0][0][0] == b"t":
            if not self._order.dry_run:
                self._run(ROLLBACK)
            raise BridgeError(
                f"{self._shape.schema}.{self._shape.table} has rows, and no column tells which events they are of",
                reason="not_empty",
                hint="empty the table (its owner), or map a column from $meta.id",
            )

    # --- writing --------------------------------------------------------------------------------

    def _transaction(self, events: list[Event], planned: Planned) -> None:
        """One batch. A passing refusal is tried again: the stream may hold what it needs."""
        for tried in range(1, _TRIES + 1):
            try:
                self._run(BEGIN)
                failed = self._halve(planned, events)
                hit("replay.batch")
                self._run(IMMEDIATE, COMMIT)
            except Refused as refused:
                self._run(ROLLBACK)
                raise structure(refused) from None
            except Retry:
                if self._link.in_transaction:
                    self._run(ROLLBACK)
                if tried == _TRIES:
                    raise
                wire.wait([], [], 0.05 * 2**tried)
            else:
                self._count(events, planned, failed)
                return

    def _halve(self, planned: Planned, events: Sequence[Event]) -> list[str]:
        """Write inside the open transaction; what fails alone is left out and named."""
        refused = attempt(
            lambda some: self._run(*some), effects(self._plan.stream, self._order, self._way, planned)
        )
        if refused is None:
            return []
        if len(events) == 1:
            return [f"{events[0].id.decode(errors='replace')}: {safe_message(refused.error)}"]
        middle = len(events) // 2
        failed = []
        for part in (events[:middle], events[middle:]):
            chosen = {event.id for event in part}
            failed += self._halve(part_of(planned, chosen), part)
        return failed

    def _count(self, events: Sequence[Event], planned: Planned, failed: list[str]) -> None:
        done = self.done
        letters = [
            f"{letter.event.id.decode(errors='replace')}: {letter.cause}" for letter in planned.dead_letters
        ]
        reached = sum(len(write.events) for write in planned.writes) + len(planned.deliveries)
        done.written += reached - len(failed)
        done.elsewhere += len(events) - reached - len(letters)
        done.failed += len(failed) + len(letters)
        done.failures += [*letters, *failed][: _NAMED - len(done.failures)]

    def _run(self, *statements: Statement) -> Rows:
        return self._link.run_alone(*statements)
