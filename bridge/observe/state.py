"""The current state of each stream, written by the stream's thread and read by all others.

Metrics, /readyz, /status and the status page read the same facts, so they cannot disagree. Loops do not import this
module; the daemon passes a `StreamState` to them through a Protocol that they declare.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Literal

from bridge.errors import BridgeError
from bridge.observe.unmatched import Unmatched
from bridge.postgres.left_behind import LeftBehind
from bridge.protocol.events import format_lsn
from bridge.protocol.facts import Phase
from bridge.section import SOURCE

_WINDOW_SECONDS = 300.0


class WalForecast:
    """Takes the retained bytes and returns seconds. limit: bytes at which the WAL brake drops the slot."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: deque[tuple[float, int]] = deque()

    def seconds(self, now: float, retained: int, safe: int | None) -> float | None:
        """Until the WAL brake, or until Postgres invalidates the slot if that comes first. None: not growing."""
        self._seen.append((now, retained))
        while now - self._seen[0][0] > _WINDOW_SECONDS:
            self._seen.popleft()
        began, first = self._seen[0]
        if now <= began or retained <= first:
            return None
        left = self._limit - retained if safe is None else min(self._limit - retained, safe)
        return max(0.0, left) * (now - began) / (retained - first)


ModeName = Literal["new", "catchup", "stream", "poll"]

PHASES: tuple[Phase, ...] = ("starting", "standby", "catchup", "streaming", "polling", "halted", "stopped")
"""Set by the stream's thread, never stored: the ledger's `mode` survives a restart.

starting   connecting, fence and preflight; also the back-off before the first batch
standby    another bridge holds the stream; this one waits to take over
catchup    rows come from the outbox table, because a slot does not have all of them
streaming  rows come from the slot
polling    rows come from the outbox table by configuration (`capture: poll`)
halted     nothing is applied or confirmed until someone fixes the cause; retried automatically
stopped    the thread has ended
"""

READY_PHASES = frozenset({"standby", "catchup", "streaming", "polling"})
"""Standing by is ready: the bridge does all it should, and a rolling update must not wait for it."""

_FOR_EVER = 2
"""Troubles of one reason, without progress between them: the stream retries, and does not deliver."""

_CALM_SECONDS = 3.0
"""Three looks at the source: a stream that works and has nothing to do."""

_SAMPLES = 121  # two minutes, one a second: what the status page draws


@dataclass(frozen=True, slots=True)
class StreamSnapshot:
    """One consistent view of a stream. Times are unix seconds, LSNs integers, sizes bytes."""

    stream: str
    connection: str
    source: str
    phase: Phase = "starting"
    since: float = 0.0  # when this phase began
    mode: ModeName | None = None  # the ledger's
    reason: str | None = None  # the reason of a halt or fault: a word of docs/operations.md
    message: str = ""
    hint: str = ""  # the command or SQL that fixes it
    waiting_for: str = ""  # slot creation: the pid, database or gid waited for
    epoch: int = 0
    applied_lsn: int = 0
    safe_lsn: int = 0
    last_event_at: float | None = None  # when the newest applied event was committed by its producer
    pending_since: float | None = None  # producer commit of the oldest event not applied; None: nothing waits
    pending_known: bool = False  # False: it has not begun yet, and nobody has looked at its source
    events: int = 0  # applied since the process started
    batches: int = 0
    altered: str = ""  # the target table that was altered last while the bridge ran, and what; "": none
    slot: str | None = None
    slot_active: bool | None = None  # None: not known, or no slot
    slot_retained_bytes: int | None = None
    slot_safe_bytes: int | None = None  # None: max_slot_wal_keep_size sets no limit
    slot_full_in_seconds: float | None = None  # until the WAL brake at the present rate; None: not growing
    group: str = ""  # of a partition over a log: its target's stream
    is_relay: bool = False  # it puts events into the log `connection`
    frames: int = 0  # a relay's, and their rows, since the process started
    rows: int = 0
    log_bytes: int | None = None  # that the log holds; None: not asked yet
    log_limit: int | None = None
    lags: Mapping[str, int | None] = field(
        default_factory=dict
    )  # partition -> bytes of WAL; None: it reads the table

    def pending_age(self, now: float) -> float:
        """Seconds that the oldest unapplied event has waited. Grows even when the thread hangs."""
        return 0.0 if self.pending_since is None else max(0.0, now - self.pending_since)

    def as_dict(self, now: float) -> dict[str, Any]:
        """The JSON form of /status. LSNs as Postgres prints them."""
        return {
            "stream": self.stream,
            "source": self.source,
            "connection": self.connection,
            "phase": self.phase,
            "since": self.since,
            "mode": self.mode,
            "reason": self.reason,
            "message": self.message,
            "hint": self.hint,
            "waiting_for": self.waiting_for,
            "epoch": self.epoch,
            "applied_lsn": format_lsn(self.applied_lsn),
            "safe_lsn": format_lsn(self.safe_lsn),
            "last_event_at": self.last_event_at,
            "oldest_pending_event_age_seconds": round(self.pending_age(now), 3)
            if self.pending_known
            else None,
            "events": self.events,
            "batches": self.batches,
            "altered": self.altered,
            "group": self.group,
            "relay": {
                "frames": self.frames,
                "rows": self.rows,
                "log_bytes": self.log_bytes,
                "log_limit_bytes": self.log_limit,
                "lag_bytes": dict(self.lags),
            }
            if self.is_relay
            else None,
            "slot": {
                "name": self.slot,
                "active": self.slot_active,
                "retained_wal_bytes": self.slot_retained_bytes,
                "safe_wal_bytes": self.slot_safe_bytes,
                "full_in_seconds": self.slot_full_in_seconds,
            },
        }


def _told(error: BridgeError) -> dict[str, str]:
    return {"reason": error.reason, "message": str(error.args[0]), "hint": error.hint}


class StreamState:
    """The state that one stream writes and others read. A read is one attribute, so it needs no lock."""

    def __init__(
        self,
        stream: str,
        connection: str,
        source: str = SOURCE,
        *,
        alive: Callable[[], bool] | None = None,
        clock: Callable[[], float] = time.time,
        max_retained_wal: int = 8 << 30,
        group: str = "",
        is_relay: bool = False,
    ) -> None:
        """`alive`: does the stream's thread still run? /livez fails if it does not."""
        self._forecast = WalForecast(max_retained_wal)
        self._clock = clock
        self._alive = alive
        self._lock = threading.Lock()
        self.snapshot = StreamSnapshot(
            stream, connection, source, since=clock(), group=group, is_relay=is_relay
        )
        self.halted_reasons: frozenset[str] = frozenset()  # every reason it ever halted for, in this process
        self._trouble: BridgeError | None = None  # the last one; nothing has gone well since
        self._repeats = 0  # of its reason, one after the other

    def enter(self, phase: Phase, **changes: Any) -> None:
        """Enter a phase. Clears reason, message, hint and waiting_for unless they are given."""
        cleared: dict[str, Any] = {"reason": None, "message": "", "hint": "", "waiting_for": ""}
        with self._lock:
            since = self.snapshot.since if self.snapshot.phase == phase else self._clock()
            if self.snapshot.phase not in READY_PHASES and phase in READY_PHASES:
                cleared["pending_since"] = None  # what others saw while it was away; now it tells itself
            if self._trouble is not None and self._repeats >= _FOR_EVER and phase != "standby":
                cleared |= _told(
                    self._trouble
                )  # it has begun again and again: a new beginning is no progress
            if phase in ("catchup", "streaming", "polling"):
                cleared["pending_known"] = True
            self.snapshot = replace(self.snapshot, **{**cleared, **changes, "phase": phase, "since": since})

    def update(self, **changes: Any) -> None:
        """Change single facts (slot gauges, pending_since, epoch, ...) without changing the phase."""
        if "pending_since" in changes:
            changes["pending_known"] = True
        with self._lock:
            self.snapshot = replace(self.snapshot, **changes)
            if (retained := changes.get("slot_retained_bytes")) is not None:
                left = self._forecast.seconds(self._clock(), retained, changes.get("slot_safe_bytes"))
                self.snapshot = replace(self.snapshot, slot_full_in_seconds=left)

    def pending(self, since: float | None) -> None:
        """Told twice a batch: a snapshot is made only where it says something new."""
        if self.snapshot.pending_since != since or not self.snapshot.pending_known:
            self.update(pending_since=since)

    def halt(self, error: BridgeError) -> None:
        """Halted until the cause is fixed: not ready, and `outbox_bridge_halted` is 1 for this reason."""
        reason, message = error.reason, str(error.args[0])
        with self._lock:
            self._trouble, self._repeats = None, 0
            self.halted_reasons |= {reason}
            same = self.snapshot.phase == "halted" and self.snapshot.reason == reason
            self.snapshot = replace(
                self.snapshot,
                phase="halted",
                since=self.snapshot.since if same else self._clock(),
                reason=reason,
                message=message,
                hint=error.hint,
            )

    def trouble(self, error: BridgeError) -> None:
        """A temporary fault (an unreachable server, a conflict): not ready, with its reason; the phase stays."""
        same = self._trouble is not None and self._trouble.reason == error.reason
        self._trouble, self._repeats = error, self._repeats + 1 if same else 1
        self.update(**_told(error))

    def calm(self) -> None:
        """The stream has looked at the source, and nothing waits: that ends a trouble that has not come back for a
        while."""
        now = self.snapshot
        if self._trouble is None or now.pending_since is not None or now.phase not in READY_PHASES:
            return
        if self._clock() - now.since >= _CALM_SECONDS:
            self._trouble, self._repeats = None, 0
            self.update(reason=None, message="", hint="")

    def altered(self, table: str, what: str) -> None:
        """A target table is not as it was; the bridge goes by what it is now."""
        self.update(altered=f"{table}: {what}")

    def applied(
        self,
        events: int,
        *,
        applied_lsn: int | None = None,
        safe_lsn: int | None = None,
        last_event_at: float | None = None,
        pending_since: float | None = None,
    ) -> None:
        """One batch is durable in the target; clears a temporary fault."""
        with self._lock:
            self._trouble, self._repeats = None, 0
            was = self.snapshot
            self.snapshot = replace(
                was,
                reason=None,
                message="",
                hint="",
                events=was.events + events,
                batches=was.batches + 1,
                applied_lsn=was.applied_lsn if applied_lsn is None else applied_lsn,
                safe_lsn=was.safe_lsn if safe_lsn is None else safe_lsn,
                last_event_at=was.last_event_at if last_event_at is None else last_event_at,
                pending_since=pending_since,
            )

    @property
    def alive(self) -> bool:
        """False if the stream's thread has ended without being asked to."""
        return self._alive is None or self.snapshot.phase == "stopped" or self._alive()


@dataclass(frozen=True, slots=True)
class HealthProblem:
    """One reason why the bridge is not ready."""

    where: str  # the stream, or a part such as "dispatcher"
    reason: str
    message: str = ""
    hint: str = ""

    def as_dict(self) -> dict[str, str]:
        """The JSON form of /readyz."""
        return {"where": self.where, "reason": self.reason, "message": self.message, "hint": self.hint}


CAUSE = "cause "
"""Before a code, in the place of a recipient: its messages that were refused so."""


@dataclass(frozen=True, slots=True)
class AloneUntil:
    """A destination, or a recipient of it, to which nothing is sent before `until` (unix seconds; None: a person
    resumes it). recipient: its label; "" for the whole destination; CAUSE and a code. code: of the failure that is
    the cause, or who paused it and why. source: that of its messages."""

    pipeline: str
    destination: str
    recipient: str
    until: float | None
    code: str
    source: str = SOURCE

    def as_dict(self) -> dict[str, str | float | None]:
        """The JSON form of /status."""
        return {
            "source": self.source,
            "pipeline": self.pipeline,
            "destination": self.destination,
            "recipient": self.recipient,
            "until": None if self.until is None else round(self.until, 1),
            "code": self.code,
        }


Place = tuple[str, str, str]
"""Source, pipeline and destination."""


class Health:
    """The health of every stream and every other part. Thread-safe."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.started_at = clock()
        self._lock = threading.Lock()
        self._streams: dict[str, StreamState] = {}
        self._parts: dict[str, HealthProblem] = {}
        self._rates: dict[str, deque[tuple[float, int]]] = {}
        self.reload_refused: Mapping[str, Any] | None = (
            None  # the last one: `at` (unix seconds), `message`, `pid`
        )
        self.suppressed: Mapping[str, int] | None = None  # by event type, of all time; None: not looked yet
        self.left_behind: Sequence[LeftBehind] = ()
        self.shared: Mapping[str, Any] | None = None  # who runs which stream, where bridges share a file
        self.unmatched = Unmatched(clock=clock)
        self.left_alone: dict[Place, Sequence[AloneUntil]] = {}

    def add(self, state: StreamState) -> StreamState:
        """Register a stream. A reload that rebuilds a stream with the same name replaces it."""
        with self._lock:
            self._streams = {**self._streams, state.snapshot.stream: state}
        return state

    def remove(self, stream: str) -> None:
        """A reload took this stream away."""
        with self._lock:
            self._streams = {name: state for name, state in self._streams.items() if name != stream}
            self._rates.pop(stream, None)

    @property
    def streams(self) -> Mapping[str, StreamState]:
        """Streams by name, in the order they were added."""
        return MappingProxyType(self._streams)

    def part_failed(self, where: str, error: BridgeError) -> None:
        """A part that is not a stream (dispatcher, ingress, prune) has a fault: not ready."""
        problem = HealthProblem(where, error.reason, str(error.args[0]), error.hint)
        with self._lock:
            self._parts = {**self._parts, where: problem}

    def part_works(self, where: str) -> None:
        """That part works again."""
        if where in self._parts:
            with self._lock:
                self._parts = {name: part for name, part in self._parts.items() if name != where}

    def problems(self) -> list[HealthProblem]:
        """Why the bridge is not ready; empty if it is."""
        found = []
        for state in self._streams.values():
            now = state.snapshot
            if now.phase not in READY_PHASES or now.reason is not None:
                found.append(HealthProblem(now.stream, now.reason or now.phase, now.message, now.hint))
        if not self._streams and self.shared is None:  # one that shares may have none to run
            found.append(HealthProblem("bridge", "starting", "no stream has been set up yet"))
        return found + list(self._parts.values())

    @property
    def ready(self) -> bool:
        """True if every stream applies or stands by and no part has a fault."""
        return not self.problems()

    @property
    def live(self) -> bool:
        """False if a stream's thread has died, which only a restart fixes. A halt is not a death."""
        return all(state.alive for state in self._streams.values())

    def sample(self) -> None:
        """Record each stream's event count, once a second, for `rate` and the graph."""
        now = self.clock()
        for name, state in self._streams.items():
            self._rates.setdefault(name, deque(maxlen=_SAMPLES)).append((now, state.snapshot.events))

    def rate(self, stream: str, seconds: float = 10.0) -> float:
        """Events per second over the last `seconds`; 0.0 while there are too few samples."""
        samples = list(self._rates.get(stream, ()))
        if len(samples) < 2:
            return 0.0
        end, count = samples[-1]
        start, first = next(((at, n) for at, n in samples if at >= end - seconds), samples[0])
        return max(0.0, (count - first) / (end - start)) if end > start else 0.0

    def rates(self, stream: str) -> list[float]:
        """Events per second, one value per sample, oldest first."""
        samples = list(self._rates.get(stream, ()))
        return [
            max(0.0, (count - before) / (at - earlier)) if at > earlier else 0.0
            for (earlier, before), (at, count) in pairwise(samples)
        ]
