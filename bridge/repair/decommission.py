"""A stream ends for good: its slot, its registration and its ledger go, and what it has not applied is given up. What
becomes of its messages and dead letters, a person decides.

`remains` says beforehand what there is. The target's rows are locked and written first, then the source's, then the
target commits, then the slots go: what is interrupted is finished by running it again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

import psycopg

from bridge.errors import BridgeError
from bridge.failpoints import hit
from bridge.postgres import progress
from bridge.postgres.outbox import Outbox
from bridge.postgres.served import DATED_SECONDS, at_source, at_target, attending
from bridge.postgres.slots import drop_slot, slots_of
from bridge.records import dataclass
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
    registered = progress.registered(source, stream)
    row = progress.checkpoint(target, stream) if target is not None else None
    applied = progress.listed(target, stream) if target is not None else []
    pending = None
    if registered is not None or row is not None:
        floor = row["floor"] if row else registered["floor"] if registered else "3:3:"
        pending = progress.pending(source, outbox, floor, applied)
    letters, messages, written = None, None, None
    if target is not None:
        letters, messages, written = target.execute(
            "select (select count(*) from bridge.dead_letter where stream = %(stream)s and state = 'open')::int,"
            " (select count(*) from bridge.delivery where stream = %(stream)s and state = 'pending')::int,"
            " (select extract(epoch from now() - updated_at)::float8 from bridge.checkpoint where stream = %(stream)s)",
            {"stream": stream},
        ).fetchone() or (0, 0, None)
    return Remains(
        stream,
        (registered["target_database"] or "(not said)") if registered else None,
        slots_of(source, stream),
        pending,
        letters,
        messages,
        written,
        registered["dated"] if registered else None,
    )


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
    there = [*at_target(target, stream), *attending(target, stream)] if target is not None else []
    if there:
        return "target", there
    here = at_source(source, stream) if source is not None else []
    return ("source", here) if here else None


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
    if target is None:
        source.execute("delete from outbox.stream where stream = %s", [stream])
    else:
        with target.transaction():
            _end_ledger(target, stream, messages=messages, letters=letters)
            source.execute("delete from outbox.stream where stream = %s", [stream])
            hit("decommission.source")
    hit("decommission.target")
    for name, _, _ in found.slots:
        drop_slot(source, name)


def _end_ledger(target: psycopg.Connection, stream: str, *, messages: Choice, letters: Choice) -> None:
    target.execute("delete from bridge.checkpoint where stream = %s", [stream])
    target.execute("delete from bridge.applied where stream = %s", [stream])
    if target.execute("select to_regclass('bridge.sample')").fetchone() != (None,):
        target.execute("delete from bridge.sample where stream = %s", [stream])
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
