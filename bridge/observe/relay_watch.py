"""Turns a relay's reports into state, metrics and log lines. Called from its thread."""

from __future__ import annotations

from collections.abc import Mapping

from bridge.observe.watch import StreamWatch
from bridge.protocol.events import Lsn


class RelayWatch(StreamWatch):
    """Receives one relay's reports: it is seen as a stream whose target is the log."""

    def read(self, position: Lsn) -> None:
        """Everything up to here was read from the slot."""

    def framed(self, partition: int, rows: int, size: int) -> None:
        """A frame is on its way to the log."""

    def lags(self, confirmed: Mapping[str, Lsn | None]) -> None:
        """By stream, how far the slot may be confirmed for it."""

    def again(self, partition: int) -> None:
        """A worker misses frames of this partition."""
        self.retried("log_gap")
