"""Turns a relay's reports into state, metrics and log lines. Called from its thread."""

from __future__ import annotations

from collections.abc import Mapping

from bridge.observe.metrics import Metrics
from bridge.observe.state import StreamState
from bridge.observe.watch import StreamWatch
from bridge.postgres.source import SlotHealth
from bridge.protocol.events import Lsn


class RelayWatch(StreamWatch):
    """Receives one relay's reports: it is seen as a stream whose target is the log."""

    def __init__(self, metrics: Metrics, state: StreamState) -> None:
        super().__init__(metrics, state)
        self._of_log = metrics.of_log()
        self._log_labels = (self._stream, metrics.label(self._source))
        self._position = Lsn(0)
        for counter in (self._of_log.frames, self._of_log.rows, self._of_log.gaps):
            counter.labels(*self._log_labels)  # from 0, so that the first one is an increase
        self._frames = self._of_log.frames.labels(*self._log_labels)
        self._rows = self._of_log.rows.labels(*self._log_labels)

    def read(self, position: Lsn) -> None:
        """Everything up to here was read from the slot."""
        self._position = position

    def framed(self, partition: int, rows: int, size: int) -> None:
        """A frame is on its way to the log."""
        self._frames.inc()
        if rows:
            self._rows.inc(rows)

    def lags(self, confirmed: Mapping[str, Lsn | None]) -> None:
        """By stream, how far the slot may be confirmed for it."""
        found = {
            name: None if lsn is None else max(0, self._position - lsn) for name, lsn in confirmed.items()
        }
        known = self._state.snapshot
        self._of_log.set_lags(found, self._log_labels[1])
        self._state.update(
            lags=found,
            frames=int(self._frames._value.get()),
            rows=int(self._rows._value.get()),
            applied_lsn=self._position or known.applied_lsn,
        )

    def log_holds(self, size: int, limit: int) -> None:
        """Bytes that the log holds, and that it may (-1: any)."""
        self._of_log.size.labels(*self._log_labels).set(size)
        self._of_log.limit.labels(*self._log_labels).set(max(0, limit))
        self._state.update(log_bytes=size, log_limit=limit if limit > 0 else None)

    def observed(self, health: SlotHealth | None, confirmed: Lsn) -> None:
        self._state.update(safe_lsn=confirmed)
        super().observed(health, confirmed)

    def again(self, partition: int) -> None:
        """A worker misses frames of this partition."""
        self._of_log.gaps.labels(*self._log_labels).inc()
        self._log.info("frames are asked for again", partition=partition)
