"""Turns the reports of streams and dispatchers into state, metrics and log lines. Called from the stream's thread.

A stream does not depend on Prometheus or logging: it declares its reports (stream/spec.py, Watcher).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Protocol

from bridge.errors import BridgeError
from bridge.log import Log
from bridge.observe.metrics import Metrics
from bridge.observe.state import AloneUntil, StreamState
from bridge.planning.taken import UNMATCHED_FIX
from bridge.postgres.source import SlotHealth
from bridge.protocol.events import Batch, Lsn, format_lsn
from bridge.protocol.facts import Ledger, Phase

PART = "dispatcher"


class SinkPlace(Protocol):
    """One source's messages to one destination of one pipeline."""

    @property
    def source(self) -> str: ...
    @property
    def destination(self) -> str: ...
    @property
    def name(self) -> tuple[str, str]: ...


class DispatchWatch:
    """Receives the dispatchers' reports. A sink that is down does not make the bridge unready."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._log = Log("bridge.dispatch")
        self._troubled: set[str] = set()
        self._count = cache(metrics.deliveries.labels)  # finding a child costs more than counting
        self._time = cache(metrics.delivery_seconds.labels)

    def delivered(self, lane: SinkPlace, outcome: str, seconds: float) -> None:
        source = self._metrics.label(lane.source)
        self._count(lane.destination, outcome, source).inc()
        self._time(lane.destination, source).observe(seconds)

    def left_alone(self, lane: SinkPlace, found: Sequence[tuple[str, float | None, str]]) -> None:
        """found: a recipient's label ("": the whole destination), the seconds that are left, the failure's code."""
        now = time.time()
        self._metrics.set_left_alone(
            (lane.source, *lane.name),
            [
                AloneUntil(*lane.name, who, None if seconds is None else now + seconds, code, lane.source)
                for who, seconds, code in found
            ],
        )

    def works(self, stream: str) -> None:
        self._troubled.discard(stream)
        if not self._troubled:
            self._metrics.health.part_works(PART)

    def troubled(self, stream: str, error: BridgeError) -> None:
        self._troubled.add(stream)
        self._metrics.health.part_failed(PART, error)

    def log(self, level: str, event: str, **fields: object) -> None:
        getattr(self._log, level)(event, **fields)


class ShareWatch:
    """Receives what this bridge sees of those that share its file."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def shared(self, picture: Mapping[str, Any]) -> None:
        """picture: as /status shows it."""
        self._metrics.set_shared(picture)

    def part_failed(self, where: str, error: BridgeError) -> None:
        self._metrics.health.part_failed(where, error)

    def part_works(self, where: str) -> None:
        self._metrics.health.part_works(where)


class StreamWatch:
    """Receives one stream's reports."""

    def __init__(
        self, metrics: Metrics, state: StreamState, nudge: Callable[[str], None] = lambda _: None
    ) -> None:
        """nudge: called with the stream's name when it has committed deliveries."""
        self._metrics = metrics
        self._state = state
        self._nudge = nudge
        self._stream = state.snapshot.stream
        self._log = Log("bridge.stream", stream=self._stream)
        self._last: tuple[str, str] = ("", "")  # the halt or trouble that was logged last
        self._source = state.snapshot.source
        self._batch_seconds = cache(metrics.batch_seconds.labels)  # finding a child costs more than counting
        metrics.table_changes.labels(*self._labels())  # from 0, so that the first change is an increase

    def _labels(self, *more: str) -> tuple[str, ...]:
        """The values of `stream`, of those named, and of `source`."""
        return self._stream, *more, self._metrics.label(self._source)

    def phase(self, phase: Phase, ledger: Ledger | None = None, *, slot: str | None = None) -> None:
        if self._state.snapshot.phase == phase and ledger is None and slot is None:
            return
        if self._state.snapshot.phase != phase:
            self._log.info("phase", phase=phase)
        facts: dict[str, Any] = {}
        if ledger is not None:
            facts = {
                "epoch": ledger.epoch,
                "mode": ledger.mode.value,
                "applied_lsn": ledger.applied_lsn,
                "safe_lsn": ledger.safe_lsn,
            }
        if slot is not None:
            facts |= {"slot": slot, "slot_active": True}
        self._state.enter(phase, **facts)
        if phase != "starting":
            self._last = ("", "")

    def saved(self, ledger: Ledger) -> None:
        """The ledger row was written without events."""
        self._state.update(mode=ledger.mode.value, applied_lsn=ledger.applied_lsn, safe_lsn=ledger.safe_lsn)

    def waiting(self, what: str) -> None:
        """The transaction that slot creation waits for; "" when it is done."""
        if what and self._state.snapshot.waiting_for != what:
            self._log.warning("waiting", what=what)
        self._state.update(waiting_for=what)
        if not what:
            self._state.calm()

    def applied(
        self, ledger: Ledger, outcomes: Mapping[tuple[str, str], int], batch: Batch, seconds: float
    ) -> None:
        """A batch is durable."""
        now = time.time_ns() // 1000
        times, rows = batch.commit_times, batch.commit_rows
        source = self._metrics.label(self._source)
        self._metrics.count_events(outcomes, source)
        self._batch_seconds(self._stream, source).observe(seconds)
        for (pipeline, outcome), count in outcomes.items():
            if outcome == "applied" and count > 0 and times:
                if count == len(batch.events):
                    self._metrics.latency.observe_many(pipeline, now, times, rows, source)
                else:
                    self._metrics.latency.observe_many(pipeline, now, times[:1], [count], source)
        self._state.applied(
            len(batch.events),
            applied_lsn=ledger.applied_lsn,
            safe_lsn=ledger.safe_lsn,
            last_event_at=times[-1] / 1_000_000 if times else None,
        )

    def deliveries(self, count: int) -> None:
        """Messages for sinks are durable."""
        self._nudge(self._stream)

    def published(self, destination: str, outcome: str, count: int) -> None:
        """Messages of a log: stored there, or given up."""
        self._metrics.deliveries.labels(destination, outcome, self._metrics.label(self._source)).inc(count)

    def unmatched(self, events: Mapping[bytes, int]) -> None:
        """Events that no pipeline takes, by type. The log names each type once."""
        for name, near in self._metrics.health.unmatched.count(events):
            if name:
                self._log.warning("no pipeline takes this type", type=name, near=near, fix=UNMATCHED_FIX)
            else:
                self._log.warning("no pipeline takes more types than the log names", fix="bridge status")

    def pending(self, oldest: float | None) -> None:
        """Producer commit (unix seconds) of the oldest event that was read and is not durable in the target yet."""
        self._state.pending(oldest)

    def observed(self, health: SlotHealth | None, confirmed: Lsn) -> None:
        if health is not None:
            self._state.update(
                slot_active=health.active,
                slot_retained_bytes=health.retained,
                slot_safe_bytes=health.safe,
            )
        self._state.calm()
        self._log.debug("confirmed", lsn=format_lsn(confirmed))

    def enriched(self, entity: str, result: str, count: int) -> None:
        if count:
            self._metrics.enrich_lookups.labels(entity, result, self._metrics.label(self._source)).inc(count)

    def retried(self, reason: str) -> None:
        self._metrics.retries.labels(*self._labels(reason)).inc()
        self._log.info("retry", reason=reason)

    def halted(self, error: BridgeError) -> None:
        self._state.halt(error)
        if self._last != ("halted", str(error)):
            self._log.error("halted", reason=error.reason, message=str(error.args[0]), fix=error.hint)
        self._last = ("halted", str(error))

    def troubled(self, error: BridgeError) -> None:
        self._state.trouble(error)
        self._metrics.retries.labels(*self._labels(error.reason)).inc()
        if self._last != ("troubled", error.reason):
            self._log.warning("trouble", reason=error.reason, message=str(error.args[0]), fix=error.hint)
        self._last = ("troubled", error.reason)

    def altered(self, table: str, what: str) -> None:
        """A target table was altered while the bridge ran."""
        self._state.altered(table, what)
        self._metrics.table_changes.labels(*self._labels()).inc()
        self._log.warning("target table altered", table=table, what=what)

    def log(self, event: str, **fields: object) -> None:
        """What is given up has the dispatcher's level for it."""
        getattr(self._log, "warning" if event == "dead letter" else "info")(event, **fields)
