"""Would a late effect undo a later one? Asked before a dead letter is retried.

Only of upserts whose key is not the event's identity and that carry no `version:`. docs/guarantees.md, "Order
across plans". Apart from the retry because it looks at the source, under a lock on the target's checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Protocol

import psycopg
from psycopg import sql

from bridge.apply.stream_plan import StreamPlan
from bridge.core.event import Event
from bridge.core.spec import DestinationSpec, TableSpec
from bridge.postgres.source import connect_source

_IDENTITY = ("$meta.id", "$meta.seq", "$meta.idempotency_key")

_LOOK_AT = 500  # later events at most, before it is taken that one of them was applied


class Target(Protocol):
    """The target, inside the retry's transaction."""

    def hold(self) -> tuple[str | None, frozenset[int]]:
        """Lock the checkpoint; its floor as text (None: no row) and the applied xids that it does not show."""
        ...

    def still_dead(self, unit: tuple[str, str], event_ids: Sequence[str]) -> set[str]:
        """Those of the events whose unit is an open dead letter itself."""
        ...


def keeps_order_itself(spec: DestinationSpec) -> bool:
    """True where an earlier event cannot write over a later one's row."""
    if not isinstance(spec, TableSpec) or spec.mode != "upsert" or spec.version is not None:
        return True
    if spec.columns is None:
        return bool({"event_id", "idempotency_key"} & set(spec.key))
    return any(spec.columns.get(name) in _IDENTITY for name in spec.key)


class Overtaken:
    """Looks at the outbox for later events. Connects when first asked."""

    def __init__(self, plan: StreamPlan) -> None:
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
        """Why the unit must not be applied now, None when it may."""
        patterns = self._sensitive.get(unit)
        if patterns is None:
            return None
        outbox = self._plan.outbox
        if "seq" not in outbox.columns:
            return "the outbox has no seq, so nobody knows whether a later event was applied"
        floor, listed = target.hold()
        if self._connection is None:
            self._connection = connect_source(self._plan.source_dsn, f"dead/{self._plan.stream}")
        if outbox.has_xid and self._pruned(self._connection, event):
            return "later events of its key may have been applied and pruned since"
        later = self._later(self._connection, event, floor, listed)
        taken = [one for one, kind in later if any(fnmatchcase(kind, pattern) for pattern in patterns)]
        if len(later) < _LOOK_AT and not set(taken) - target.still_dead(unit, taken):
            return None
        of = "(it has no ordering key)" if event.key is None else "of its key"
        return f"a later event {of} was applied, and {unit[1]} has no version: to tell them apart"

    def _pruned(self, source: psycopg.Connection, event: Event) -> bool:
        row = source.execute("select xid::text from outbox.pruned").fetchone()
        return row is not None and row[0] is not None and int(row[0]) >= int(event.xid)

    def _later(
        self, source: psycopg.Connection, event: Event, floor: str | None, listed: frozenset[int]
    ) -> list[tuple[str, str]]:
        """(id, type) of the applied events after this one; of its ordering key, where it has one."""
        outbox = self._plan.outbox
        query = sql.SQL("select {}::text, {}::text from {} where {} > %(seq)s").format(
            outbox.column("id"), outbox.column("type"), outbox.name, outbox.column("seq")
        )
        if event.key is not None and "key" in outbox.columns:
            query += sql.SQL(" and {}::text = %(key)s").format(outbox.column("key"))
        if outbox.has_xid:  # I6; without xids every row that is there may be applied
            query += sql.SQL(
                " and (pg_visible_in_snapshot({xid}, %(floor)s::pg_snapshot) or {xid} = any(%(listed)s::xid8[]))"
            ).format(xid=outbox.column("xid"))
        return source.execute(
            query + sql.SQL(" limit %(limit)s"),
            {
                "seq": int(event.seq),
                "key": None if event.key is None else event.key.decode(errors="replace"),
                "floor": floor or "3:3:",
                "listed": "{" + ",".join(map(str, listed)) + "}",
                "limit": _LOOK_AT,
            },
        ).fetchall()
