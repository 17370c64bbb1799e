"""Whether a dead letter's effect comes too late: it would overwrite that of a later event.

An upsert whose key is not the event's identity and that has no `version` is refused when a later event of the ordering
key was applied. docs/guarantees.md, "Order across plans".
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Protocol

import psycopg
from psycopg import sql

from bridge.planning.spec import DestinationSpec, TableSpec
from bridge.postgres.connect import connect
from bridge.postgres.parts import Position, covered
from bridge.postgres.profiles import SOURCE
from bridge.protocol.events import Event
from bridge.stream.spec import StreamSpec

_IDENTITY = ("$meta.id", "$meta.seq", "$meta.idempotency_key")

_LOOK_AT = 500  # read at most this many later events; if there are more, assume that one of them was applied


class Target(Protocol):
    """The target, inside the retry's transaction."""

    def hold(self) -> Sequence[Position]:
        """Lock the checkpoint, and read what it says: of each partition, where there are some."""
        ...

    def still_dead(self, unit: tuple[str, str], event_ids: Sequence[str]) -> set[str]:
        """The events whose own unit is an open dead letter."""
        ...


def keeps_order_itself(spec: DestinationSpec) -> bool:
    """True if an earlier event cannot overwrite a later event's row."""
    if not isinstance(spec, TableSpec) or spec.mode != "upsert" or spec.version is not None:
        return True
    if spec.columns is None:
        return bool({"event_id", "idempotency_key"} & set(spec.key))
    return any(spec.columns.get(name) in _IDENTITY for name in spec.key)


class LateEffects:
    """Reads later events from the outbox. Connects on first use."""

    def __init__(self, plan: StreamSpec) -> None:
        self._plan = plan
        self._connection: psycopg.Connection | None = None
        self._sensitive = {
            (pipeline.name, name): pipeline.events
            for pipeline in plan.pipelines
            for name, spec in pipeline.destinations.items()
            if not keeps_order_itself(spec)
        }

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def why(self, event: Event, unit: tuple[str, str], target: Target) -> str | None:
        """Why the unit must not be applied now; None: it may."""
        patterns = self._sensitive.get(unit)
        if patterns is None:
            return None
        outbox = self._plan.outbox
        if "seq" not in outbox.columns:
            return "the outbox has no seq, so it is unknown whether a later event was applied"
        positions = target.hold()
        if self._connection is None:
            self._connection = connect(self._plan.source_dsn, SOURCE, f"dead/{self._plan.stream}")
        if outbox.has_xid and self._pruned(self._connection, event):
            return "later events of its key may have been applied and then pruned"
        later = self._later(self._connection, event, positions)
        taken = [one for one, kind in later if any(fnmatchcase(kind, pattern) for pattern in patterns)]
        if len(later) < _LOOK_AT and not set(taken) - target.still_dead(unit, taken):
            return None
        of = "(this one has no ordering key)" if event.key is None else "of its key"
        return f"a later event {of} was applied, and {unit[1]} has no `version:` to keep the newer one"

    def _pruned(self, source: psycopg.Connection, event: Event) -> bool:
        row = source.execute("select xid::text from outbox.pruned").fetchone()
        return row is not None and row[0] is not None and int(row[0]) >= int(event.xid)

    def _later(
        self, source: psycopg.Connection, event: Event, positions: Sequence[Position]
    ) -> list[tuple[str, str]]:
        """(id, type) of the applied events after this one; only those of its ordering key, if it has one."""
        outbox = self._plan.outbox.on(source)
        query = sql.SQL("select {}::text, {}::text from {} where {} > {}").format(
            outbox.column("id"),
            outbox.column("type"),
            outbox.name,
            outbox.column("seq"),
            sql.Literal(int(event.seq)),
        )
        if event.key is not None and "key" in outbox.columns:
            key = sql.Literal(event.key.decode(errors="replace"))
            query += sql.SQL(" and {}::text = {}").format(outbox.column("key"), key)
        if outbox.has_xid:  # I6; without xids every row that is there may be applied
            query += sql.SQL(" and {}").format(covered(positions, outbox))
        return source.execute(query + sql.SQL(" limit {}").format(sql.Literal(_LOOK_AT))).fetchall()
