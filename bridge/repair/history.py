"""A replay's parameters, how its destination can be written again safely, and the events to replay.

Nothing is written here. The events are read from the source: those in the outbox that are applied, by seq.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from psycopg import sql

from bridge.attempts import NO_JITTER, Backoff
from bridge.errors import BridgeError, ConfigError, Retry
from bridge.planning.plan import TableShape
from bridge.planning.spec import DestinationSpec, PipelineSpec, TableSpec
from bridge.postgres import wire
from bridge.postgres.connect import connect
from bridge.postgres.outbox import events_of
from bridge.postgres.parts import Position, covered
from bridge.postgres.profiles import SOURCE_ROWS
from bridge.problem import nearest
from bridge.protocol.events import Event
from bridge.stream.spec import StreamSpec

Way = Literal["upsert", "absent", "empty", "deliver"]
"""upsert: the key decides. absent: insert missing rows, by the column that holds `$meta.id`. empty: a table without
identity, in one transaction. deliver: a sink.
"""


@dataclass(frozen=True, slots=True)
class Order:
    """A replay's parameters. name: the replay's name, a part of the ids of a sink's deliveries."""

    pipeline: PipelineSpec
    destination: DestinationSpec
    since: datetime
    until: datetime | None = None
    name: str = ""
    dry_run: bool = False

    @property
    def unit(self) -> tuple[str, str]:
        return self.pipeline.name, self.destination.name


def find(plans: Sequence[StreamSpec], wanted: str) -> tuple[StreamSpec, PipelineSpec, DestinationSpec]:
    """The destination by `PIPELINE/NAME`, or by its name where that is enough. Raises ConfigError."""
    found = [
        (plan, pipeline, spec)
        for plan in plans
        for pipeline in plan.pipelines
        for name, spec in pipeline.destinations.items()
        if wanted in (name, f"{pipeline.name}/{name}") and _owns(plan, (pipeline.name, name), spec)
    ]
    if len(found) == 1:
        return found[0]
    every = [f"{pipeline.name}/{name}" for pipeline in plans[0].pipelines for name in pipeline.destinations]
    names = {*every, *(one.rpartition("/")[2] for one in every)}
    if not found and (hint := nearest(wanted, names)):
        raise ConfigError(f"{wanted} is not a destination", hint=hint)
    several = "is the name of several destinations" if found else "is not a destination"
    raise ConfigError(f"{wanted} {several}", hint=f"--destination with one of: {', '.join(every)}")


def _owns(plan: StreamSpec, unit: tuple[str, str], spec: DestinationSpec) -> bool:
    return spec.connection == plan.connection if isinstance(spec, TableSpec) else unit in plan.messages


def way_of(spec: DestinationSpec, shape: TableShape | None, *, force: bool, deliver: bool) -> Way:
    """How this destination can be written again. Raises BridgeError if it must not be."""
    if not isinstance(spec, TableSpec) or shape is None:
        if deliver:
            return "deliver"
        raise BridgeError(
            f"{spec.name} is a sink: every event would be sent once more",
            reason="sink",
            hint="if you want that, add --deliver",
        )
    identity = identity_of(spec, shape)
    if not spec.key:
        return "absent" if identity else "empty"
    if spec.mode == "upsert" and identity not in spec.key and spec.version is None and not force:
        raise BridgeError(
            f"{spec.name} keeps the last event of a key ({', '.join(spec.key)}) and has no "
            "`version`: a replayed older event would overwrite a newer one",
            reason="older_over_newer",
            hint="add `version: $meta.seq` and a column for it; or stop the bridge, replay up to "
            "now, and add --force",
        )
    return "upsert"


def identity_of(spec: TableSpec, shape: TableShape) -> str | None:
    """The column that holds the event's id."""
    if spec.columns is None:
        return "event_id" if "event_id" in shape.columns else None
    return next((name for name, value in spec.columns.items() if value == "$meta.id"), None)


_BATCH = 1000
_LOOKS = 11
_AGAIN = Backoff(first=0.01, longest=5.12, jitter=NO_JITTER)  # 10 s in all; nobody else looks


class History:
    """Reads the outbox over its own connection, in one read-only transaction. Close it."""

    def __init__(self, plan: StreamSpec, order: Order) -> None:
        self._order = order
        self._source = connect(plan.source_dsn, SOURCE_ROWS, f"replay/{plan.stream}")
        self._outbox = plan.outbox.on(self._source)

    def close(self) -> None:
        self._source.close()

    def pruned(self) -> bool:
        """Whether prune has deleted events of this outbox."""
        query = "select pruned_at from outbox.pruned where xid is not null"
        return self._source.execute(query).fetchone() is not None

    def events(self, applied: Sequence[Position]) -> Iterator[list[Event]]:
        """Applied events of the requested period, by seq."""
        outbox, order = self._outbox, self._order
        query = sql.SQL(
            "declare history no scroll cursor for select {columns} from {table} as e"
            " where {applied} and {at} >= {since} and ({until}::timestamptz is null or {at} < {until}) order by {seq}"
        ).format(
            columns=outbox.placed_list(),
            table=outbox.name,
            applied=covered(applied, outbox),
            at=outbox.column("occurred_at"),
            since=sql.Literal(order.since),
            until=sql.Literal(order.until),
            seq=outbox.order(),
        )
        self._see([one.xids for one in applied])
        self._source.execute(query)
        while True:
            fetched = self._source.execute(f"fetch forward {_BATCH} from history".encode())
            events = events_of(fetched.pgresult, outbox)
            if not events:
                return
            yield events

    def _see(self, listed: Sequence[str]) -> None:
        """Begin a snapshot in which everything that the ledger lists is visible: the stream can run ahead of
        visibility."""
        for failures in range(_LOOKS):
            wire.wait([], [], _AGAIN.after(failures))
            self._source.begin("isolation level repeatable read, read only")
            row = self._source.execute(
                "select coalesce(bool_and(pg_visible_in_snapshot(x, pg_current_snapshot())), true)"
                " from unnest(%s::text[]) as l, unnest(l::xid8[]) as x",
                [list(listed)],
            ).fetchone()
            if row and row[0]:
                return
            self._source.rollback()
        raise Retry(
            "transactions that the ledger lists are not visible at the source yet", reason="not_visible"
        )
