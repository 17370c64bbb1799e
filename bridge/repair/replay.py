"""Write past events from the outbox to one destination again, with the current mapping.

It is safe to kill and repeat, because it stores no progress: an upsert accepts a row twice, a table that holds
`$meta.id` is asked which rows it has, and a sink gets ids of this replay. A table with neither is written in one
transaction, under the checkpoint's lock, and only if it is empty.

Only events that the stream has applied are replayed, and all of those, so the two never write the same event at once.
docs/guarantees.md, "Order across plans".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from psycopg import sql

from bridge.attempts import Backoff, bisect
from bridge.errors import BridgeError, Retry
from bridge.failpoints import hit
from bridge.planning.plan import Owner, Planned, TableShape, Write, arrange
from bridge.planning.planner import Planner, answered
from bridge.planning.spec import TableSpec
from bridge.postgres import parts, wire
from bridge.postgres.assignment import value_sql
from bridge.postgres.entities import Enricher
from bridge.postgres.parts import Position
from bridge.postgres.safe_error import safe_message
from bridge.postgres.target import (
    BEGIN,
    COMMIT,
    IMMEDIATE,
    OUR_PATH,
    ROLE_PATH,
    ROLLBACK,
    Refused,
    ResultRows,
    Statement,
    TargetLink,
    text_array,
)
from bridge.postgres.write import compile_write, delivery_statement, write_statement
from bridge.protocol.events import Event
from bridge.repair.history import History, Order, Way, identity_of, way_of
from bridge.stream.bisection import attempt, may_be_structure
from bridge.stream.published import Publications
from bridge.stream.refusal import structure
from bridge.stream.spec import StreamSpec
from bridge.stream.target_tables import table_of

# Of the dead letters of these units: their effect is there now.
_RESOLVE = b"""
    update bridge.dead_letter set state = 'resolved', retry_at = null, updated_at = now()
    where id = any($1::text[]::uuid[]) and state = 'open'"""


def effects(owner: Owner, order: Order, way: Way, planned: Planned) -> list[Statement]:
    """The writes, the deliveries with this replay's ids, and the dead letters that it resolves."""
    statements = [ROLE_PATH, *(_write(write, way) for write in arrange(planned.writes)), OUR_PATH]
    if planned.deliveries:
        statements.append(delivery_statement(owner, planned.deliveries, again=order.name))
    events = [event for write in planned.writes for event in write.events]
    events += [delivery.event for delivery in planned.deliveries]
    events += [publication.event for publication in planned.publications]
    if events:
        ids = [
            str(owner.unit_id(event.id.decode(errors="backslashreplace"), *order.unit)) for event in events
        ]
        statements.append(Statement(_RESOLVE, [text_array([name.encode() for name in ids])], binary=True))
    return statements


def _write(write: Write, way: Way) -> Statement:
    if way != "absent":
        return write_statement(write)
    identity = identity_of(write.spec, write.shape) or ""
    place = f"r.c{write.names.index(identity)}"
    absent = sql.SQL("not exists (select from {} as there where there.{} = {})").format(
        sql.Identifier(write.shape.schema, write.shape.table),
        sql.Identifier(identity),
        sql.SQL(value_sql(write.shape.columns[identity], place)),
    )
    text = compile_write(write.spec, write.shape, write.names, ["text"] * len(write.names), only=absent)
    return Statement(text, [text_array(column) for column in write.columns], binary=True)


def part_of(planned: Planned, chosen: set[bytes]) -> Planned:
    """The part of the plan that belongs to these events."""
    writes = [
        write.pick([row for row, event in enumerate(write.events) if event.id in chosen])
        for write in planned.writes
    ]
    deliveries = [delivery for delivery in planned.deliveries if delivery.event.id in chosen]
    publications = [one for one in planned.publications if one.event.id in chosen]
    return Planned([write for write in writes if write.events], deliveries, publications)


_TRIES = 6
_AGAIN = Backoff(first=0.1, longest=1.6)  # 2 to 3 s in all: a lock or a deadlock has passed by then
_NAMED = 20


@dataclass(slots=True)
class Replayed:
    """The result of a replay. written: events that went to the destination (including rows that existed already)."""

    read: int = 0
    written: int = 0
    elsewhere: int = 0  # the configuration does not send them there
    emptied: int = 0  # prune left the key and took the payload
    failed: int = 0
    failures: list[str] = field(default_factory=list)  # the first of them: event id and cause
    notes: list[str] = field(default_factory=list)


def replay(
    plan: StreamSpec,
    order: Order,
    *,
    force: bool = False,
    deliver: bool = False,
    told: Callable[[Replayed], None] = lambda _: None,
) -> Replayed:
    """Write the destination. Raises BridgeError; earlier batches stay written, and a second run is safe. told: called
    after each batch with what was done so far; what it raises ends the replay."""
    if not plan.outbox.has_xid:
        raise BridgeError(
            "the outbox has no xid column, so it is unknown which of its rows are applied",
            reason="no_xid",
            hint="bridge doctor prints the two ALTERs that add it",
        )
    shapes: dict[tuple[str, str], TableShape] = {}
    if isinstance(order.destination, TableSpec):
        shapes[order.unit] = table_of(plan, order.pipeline.events, order.destination)
    way = way_of(order.destination, shapes.get(order.unit), force=force, deliver=deliver)
    with ExitStack() as stack:
        return _Replay(plan, order, way, shapes, stack).run(told)


class _Replay:
    """One replay over its own connections."""

    def __init__(
        self,
        plan: StreamSpec,
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
            sinks=plan.messages,
            only={order.unit},
            max_payload=plan.max_payload,
            nulls=plan.outbox.is_foreign,
        )
        self._enricher = Enricher(plan.dsns, f"replay/{plan.stream}")
        stack.callback(self._enricher.close)
        self._link = TargetLink(plan.target_dsn, f"bridge-replay/{plan.stream}")
        stack.callback(self._link.close)
        self._published = Publications(plan.owner, plan.pipelines, plan.buses)
        stack.callback(self._published.close)
        self._history = History(plan, order)
        stack.callback(self._history.close)
        self.done = Replayed()

    def run(self, told: Callable[[Replayed], None]) -> Replayed:
        whole = self._way == "empty" and not self._order.dry_run
        self._alone()
        if whole:
            self._run(BEGIN)
        applied = self._applied(hold=whole)
        if self._way == "empty":
            self._only_when_empty()
        if self._history.pruned():
            self.done.notes.append(
                "pruned events cannot be replayed: only events that are still in the outbox were"
            )
        for events in self._history.events(applied):
            self.done.read += len(events)
            live = [event for event in events if event.headers != b'{"outbox.pruned": true}']
            self.done.emptied += len(events) - len(live)
            planned = answered(self._planner.plan(live), self._enricher.answer)
            if not self._order.dry_run:
                self._published.publish(planned, again=self._order.name)
            if self._order.dry_run:
                self._count(live, planned, [])
            elif whole:
                self._count(live, planned, self._write_all(planned, live))
                hit("replay.batch")
            else:
                self._transaction(live, planned)
            told(self.done)
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

    def _applied(self, *, hold: bool) -> list[Position]:
        """Which rows are applied: the ledger's whole position (I6), read in one statement, because a row that leaves
        the list is in the floor from then on. What is applied stays so. hold: with the checkpoint locked until this
        transaction ends, so that the stream waits."""
        rows = self._plan.rows
        if hold:
            self._run(parts.hold(rows))
        found = parts.read_positions(self._run(parts.positions(rows))[-1])
        if not found:
            raise BridgeError(
                f"stream {self._plan.stream} has applied nothing yet",
                reason="ledger_missing",
                hint="bridge run",
            )
        if hold and any(one.goal != parts.NO_GOAL for one in found):
            raise BridgeError(
                "the stream is catching up: what it has applied is known only afterwards",
                reason="catching_up",
                hint="wait until bridge status says streaming",
            )
        return found

    def _only_when_empty(self) -> None:
        if self._shape is None:
            return
        table = sql.Identifier(self._shape.schema, self._shape.table)
        query = sql.SQL("select exists (select from {})").format(table).as_string().encode()
        if self._run(Statement(query))[0][0][0] == b"t":
            if not self._order.dry_run:
                self._run(ROLLBACK)
            raise BridgeError(
                f"{self._shape.schema}.{self._shape.table} has rows, and no column says which "
                "events they belong to",
                reason="not_empty",
                hint="empty the table (its owner), or map a column from $meta.id",
            )

    # --- writing --------------------------------------------------------------------------------

    def _transaction(self, events: list[Event], planned: Planned) -> None:
        """Write one batch. A temporary refusal is retried, because the stream may hold a lock that it needs."""
        for failures in range(1, _TRIES + 1):
            try:
                self._run(BEGIN)
                failed = self._write_all(planned, events)
                hit("replay.batch")
                self._run(IMMEDIATE, COMMIT)
            except Refused as refused:
                self._run(ROLLBACK)
                raise structure(refused) from None
            except Retry:
                if self._link.in_transaction:
                    self._run(ROLLBACK)
                if failures == _TRIES:
                    raise
                wire.wait([], [], _AGAIN.after(failures))
            else:
                self._count(events, planned, failed)
                return

    def _write_all(self, planned: Planned, events: Sequence[Event]) -> list[str]:
        """Write inside the open transaction; units that fail alone are left out and named."""

        def write(part: Sequence[Event]) -> Refused | None:
            some = planned if len(part) == len(events) else part_of(planned, {event.id for event in part})
            return self._attempt(some)

        failed = bisect(events, write)
        if len(failed) == len(events) and all(may_be_structure(refused) for _, refused in failed):
            raise failed[0][1]  # not one passes
        return [
            f"{event.id.decode(errors='replace')}: {safe_message(refused.error)}" for event, refused in failed
        ]

    def _attempt(self, planned: Planned) -> Refused | None:
        statements = effects(self._plan.owner, self._order, self._way, planned)
        return attempt(lambda some: self._run(*some), statements)

    def _count(self, events: Sequence[Event], planned: Planned, failed: list[str]) -> None:
        done = self.done
        letters = [
            f"{letter.event.id.decode(errors='replace')}: {letter.cause}" for letter in planned.dead_letters
        ]
        reached = sum(len(write.events) for write in planned.writes) + len(planned.deliveries)
        reached += len(planned.publications)
        done.written += reached - len(failed)
        done.elsewhere += len(events) - reached - len(letters)
        done.failed += len(failed) + len(letters)
        done.failures += [*letters, *failed][: _NAMED - len(done.failures)]

    def _run(self, *statements: Statement) -> ResultRows:
        return self._link.run_alone(*statements)
