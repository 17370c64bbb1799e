"""A stream ends for good: its slot, its registration and its ledger go, and what it has not applied is given up. What
becomes of its messages and dead letters, a person decides.

`remains` says beforehand what there is. The target's rows are locked and written first, then the source's, then the
target commits, then the slots go: what is interrupted is finished by running it again.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import psycopg

from bridge.errors import BridgeError
from bridge.failpoints import hit
from bridge.postgres import progress
from bridge.postgres.outbox import Outbox
from bridge.postgres.partitions import ledger_rows, registered_rows
from bridge.postgres.parts import partition_in
from bridge.postgres.served import DATED_SECONDS, at_source, at_target, attending
from bridge.postgres.slots import drop_slot, slots_of
from bridge.repair.recover import BridgeRuns

Choice = Literal["discard", "keep"]

_ENDING_SECONDS = 2.0
"""A session ends a moment after its process."""

_WATCH_SECONDS = 4.0
"""A bridge whose stream is halted or stands by has a session every 3 seconds (worker.py, upkeep.py), for a moment."""
_LOOK_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Remains:
    """What there is of a stream. pending: events that it has not applied, at most progress.PENDING_LIMIT; None: not
    known. letters, messages: open dead letters and unsent messages; None: its target cannot be asked. written: seconds
    since its ledger was written; None: there is none. dated: seconds since its registration was; None: there is none.
    """

    stream: str
    database: str | None  # that it is registered for
    slots: Sequence[tuple[str, int, bool]]  # name, bytes of WAL that it retains, whether somebody reads it
    pending: int | None = None
    letters: int | None = None
    messages: int | None = None
    written: float | None = None
    dated: float | None = None
    rows: Sequence[str] = ()  # of the ledger and the registry: one, or its partitions

    @property
    def lately(self) -> bool:
        """A bridge may have it still: it would have dated it by now (served.py)."""
        seconds = self.written if self.dated is None else self.dated
        return seconds is not None and seconds < 2 * DATED_SECONDS

    @property
    def nothing(self) -> bool:
        return not (self.database or self.slots or self.written is not None or self.letters or self.messages)


def remains(
    source: psycopg.Connection, target: psycopg.Connection | None, outbox: Outbox, stream: str
) -> Remains:
    """Read from both sides; nothing is changed."""
    known = [progress.registered(source, row) for row in registered_rows(source, stream)]
    registered = next((row for row in known if row is not None), None)
    rows = ledger_rows(target, stream) if target is not None else []
    waiting = [
        *(_pending_by_ledger(source, target, outbox, row) for row in rows if target is not None),
        *(
            progress.pending(source, outbox, row["floor"], [], partition_in(name))
            for name, row in zip(registered_rows(source, stream), known, strict=True)
            if row is not None and name not in rows
        ),
    ]
    counted = [count for count in waiting if count is not None]
    pending = sum(counted) if counted else None
    letters, messages, written = None, None, None
    if target is not None:
        letters, messages, written = target.execute(
            "select (select count(*) from bridge.dead_letter where stream = %(stream)s and state = 'open')::int,"
            " (select count(*) from bridge.delivery where stream = %(stream)s and state = 'pending')::int,"
            " (select extract(epoch from now() - max(updated_at))::float8 from bridge.checkpoint"
            "  where stream = any(%(rows)s))",
            {"stream": stream, "rows": rows},
        ).fetchone() or (0, 0, None)
    return Remains(
        stream,
        (registered["target_database"] or "(not said)") if registered else None,
        slots_of(source, stream),
        pending,
        letters,
        messages,
        written,
        min((row["dated"] for row in known if row is not None), default=None),
        sorted({*rows, *registered_rows(source, stream)}) or [stream],
    )


def _pending_by_ledger(
    source: psycopg.Connection, target: psycopg.Connection, outbox: Outbox, row: str
) -> int | None:
    found = progress.checkpoint(target, row)
    floor = found["floor"] if found else "3:3:"
    return progress.pending(source, outbox, floor, progress.listed(target, row), partition_in(row))


def check_unused(
    source: psycopg.Connection | None, target: psycopg.Connection | None, stream: str, *, watch: bool = False
) -> None:
    """Raise BridgeRuns while a bridge has a session for this stream at either side. source: None where the stream is
    not this source's. watch: for as long as a bridge whose stream is halted or stands by would need to show itself; it
    would make the stream anew."""
    end = time.monotonic() + _ENDING_SECONDS
    while (found := _sessions(source, target, stream)) is not None and time.monotonic() < end:
        time.sleep(_LOOK_SECONDS)
    end = time.monotonic() + _WATCH_SECONDS
    while watch and found is None and time.monotonic() < end:
        time.sleep(_LOOK_SECONDS)
        found = _sessions(source, target, stream)
    if found is not None:
        side, pids = found
        raise BridgeRuns(
            f"a bridge has stream {stream} (pid {', '.join(map(str, pids))} at the {side}): nothing was changed",
            hint=f"stop every bridge that has this stream first; left behind by one that is gone, at the {side}: "
            f"select pg_terminate_backend({pids[0]});",
        )


def _sessions(
    source: psycopg.Connection | None, target: psycopg.Connection | None, stream: str
) -> tuple[str, list[int]] | None:
    """At which side, and their pids."""
    names = {stream}
    names |= set(ledger_rows(target, stream)) if target is not None else set()
    names |= set(registered_rows(source, stream)) if source is not None else set()
    for name in sorted(names):
        there = [*at_target(target, name), *attending(target, name)] if target is not None else []
        if there:
            return "target", there
        here = at_source(source, name) if source is not None else []
        if here:
            return "source", here
    return None


def decommission(
    source: psycopg.Connection,
    target: psycopg.Connection | None,
    found: Remains,
    *,
    messages: Choice,
    letters: Choice,
) -> None:
    """End it. messages, letters: what becomes of those that wait; kept ones wait for a stream of this name. Raises
    BridgeError while it runs; nothing is changed then."""
    stream = found.stream
    if reading := [name for name, _, active in found.slots if active]:
        raise BridgeError(
            f"slot {', '.join(reading)} is being read: nothing was changed",
            hint=f"stop the bridge of stream {stream} first",
        )
    rows = list(found.rows)
    if target is None:
        source.execute("delete from outbox.stream where stream = any(%s)", [rows])
    else:
        with target.transaction():
            _end_ledger(target, stream, rows, messages=messages, letters=letters)
            source.execute("delete from outbox.stream where stream = any(%s)", [rows])
            hit("decommission.source")
    hit("decommission.target")
    for name, _, _ in found.slots:
        drop_slot(source, name)


def _end_ledger(
    target: psycopg.Connection, stream: str, rows: Sequence[str], *, messages: Choice, letters: Choice
) -> None:
    target.execute("delete from bridge.checkpoint where stream = any(%s)", [list(rows)])
    target.execute("delete from bridge.applied where stream = any(%s)", [list(rows)])
    if target.execute("select to_regclass('bridge.sample')").fetchone() != (None,):
        target.execute("delete from bridge.sample where stream = any(%s)", [[stream, *rows]])
    if letters == "discard":
        target.execute(
            "update bridge.dead_letter set state = 'discarded', retry_at = null, updated_at = now()"
            " where stream = %s and state = 'open'",
            [stream],
        )
    if messages == "keep":
        return  # with what is known of their destinations, and their pauses
    target.execute(
        "update bridge.delivery set state = 'discarded', settled_at = now()"
        " where stream = %s and state = 'pending'",
        [stream],
    )
    for table in ("sink_pause", "sink", "sink_hold"):
        if target.execute("select to_regclass(%s)", [f"bridge.{table}"]).fetchone() != (None,):
            target.execute(f"delete from bridge.{table} where stream = %s", [stream])


def idle_relays(
    source: psycopg.Connection, publication: str, but: Collection[str]
) -> list[tuple[str, str, bool]]:
    """Relays of this publication that serve no stream any more: name, slot, whether somebody reads that. but: those
    that the configuration has."""
    if source.execute("select to_regclass('outbox.relay')").fetchone() == (None,):
        return []
    rows = source.execute(
        "select r.relay, r.relay || '_' || r.incarnation, coalesce(s.active, false) from outbox.relay r"
        " left join pg_catalog.pg_replication_slots s on s.slot_name = r.relay || '_' || r.incarnation"
        " where starts_with(r.relay, %(publication)s || '_') and not r.relay = any(%(but)s)"
        " and not exists (select from outbox.stream t where t.relay = r.relay) order by 1",
        {"publication": publication, "but": list(but)},
    ).fetchall()
    return [(str(relay), str(slot), bool(active)) for relay, slot, active in rows]


def end_relay(source: psycopg.Connection, relay: str, slot: str) -> None:
    """Forget the relay, and drop its slot."""
    source.execute("delete from outbox.relay where relay = %s", [relay])
    hit("decommission.relay")
    drop_slot(source, slot)
