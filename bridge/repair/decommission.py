"""A stream ends for good: its slot, its registration and its ledger go, and what it has not delivered is given up.

`losses` says beforehand what that is. The target's row is locked and written first, then the source's, then the target
commits, then the slots go: what is interrupted is finished by running it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from bridge.errors import BridgeError
from bridge.postgres import progress
from bridge.postgres.outbox import Outbox
from bridge.postgres.slots import drop_slot
from bridge.repair.recover import check_stopped


@dataclass(frozen=True, slots=True)
class Remains:
    """What there is of a stream. pending: events that it has not applied, at most progress.PENDING_LIMIT; None: not
    known. letters, messages: open dead letters and unsent messages; None: its target cannot be asked."""

    stream: str
    database: str | None  # that it is registered for
    slots: Sequence[tuple[str, int, bool]]  # name, bytes of WAL that it retains, whether somebody reads it
    pending: int | None = None
    letters: int | None = None
    messages: int | None = None
    ledger: bool = False

    @property
    def nothing(self) -> bool:
        return not (self.database or self.slots or self.ledger)


def remains(
    source: psycopg.Connection, target: psycopg.Connection | None, outbox: Outbox, stream: str
) -> Remains:
    """Read from both sides; nothing is changed."""
    registered = progress.registered(source, stream)
    slots = [
        (str(name), int(retained), bool(active))
        for name, retained, active in source.execute(
            "select slot_name, coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint, active"
            " from pg_catalog.pg_replication_slots where database = current_database() and plugin = 'pgoutput'"
            " and starts_with(slot_name::text, %(name)s) and substr(slot_name::text, length(%(name)s) + 1) ~ '^[0-9]+$'"
            " order by 1",
            {"name": f"{stream}_"},
        )
    ]
    database = (registered["target_database"] or "(not said)") if registered else None
    found = Remains(stream, database, slots)
    row = progress.checkpoint(target, stream) if target is not None else None
    if registered is None and row is None:
        return found
    floor = row["floor"] if row else registered["floor"] if registered else "3:3:"
    applied = progress.listed(target, stream) if target is not None else []
    counts: tuple[int | None, int | None] = (None, None)
    if target is not None:
        counts = target.execute(
            "select (select count(*) from bridge.dead_letter where stream = %(stream)s and state = 'open')::int,"
            " (select count(*) from bridge.delivery where stream = %(stream)s and state = 'pending')::int",
            {"stream": stream},
        ).fetchone() or (0, 0)
    return Remains(
        stream,
        found.database,
        slots,
        pending=progress.pending(source, outbox, floor, applied),
        letters=counts[0],
        messages=counts[1],
        ledger=row is not None,
    )


def decommission(source: psycopg.Connection, target: psycopg.Connection | None, found: Remains) -> None:
    """End it. Raises BridgeError while it runs; nothing is changed then."""
    stream = found.stream
    if target is not None:
        check_stopped(target, stream)
    if reading := [name for name, _, active in found.slots if active]:
        raise BridgeError(
            f"slot {', '.join(reading)} is being read: nothing was changed",
            hint=f"stop the bridge of stream {stream} first",
        )
    if target is None:
        source.execute("delete from outbox.stream where stream = %s", [stream])
    else:
        with target.transaction():
            target.execute("delete from bridge.checkpoint where stream = %s", [stream])
            target.execute("delete from bridge.applied where stream = %s", [stream])
            target.execute(
                "update bridge.dead_letter set state = 'discarded', retry_at = null, updated_at = now()"
                " where stream = %s and state = 'open'",
                [stream],
            )
            target.execute(
                "update bridge.delivery set state = 'discarded', settled_at = now()"
                " where stream = %s and state = 'pending'",
                [stream],
            )
            for table in ("sink_pause", "sink", "sink_hold"):
                if target.execute("select to_regclass(%s)", [f"bridge.{table}"]).fetchone() != (None,):
                    target.execute(f"delete from bridge.{table} where stream = %s", [stream])
            source.execute("delete from outbox.stream where stream = %s", [stream])
    for name, _, _ in found.slots:
        drop_slot(source, name)
