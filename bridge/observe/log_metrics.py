"""The metrics of a relay and its log. One attribute here is one row of docs/metrics.md."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge

from bridge.observe.collectors import PREFIX


class LogMetrics:
    """stream: the relay's name; of the lag, the partition's."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("stream", "source")

        def gauge(name: str, documentation: str) -> Gauge:
            return Gauge(f"{PREFIX}_{name}", documentation, labels, registry=registry)

        def counter(name: str, documentation: str) -> Counter:
            return Counter(f"{PREFIX}_{name}", documentation, labels, registry=registry)

        self.frames = counter("log_frames", "Frames that the relay has put into the log.")
        self.rows = counter("log_rows", "Events that the relay has put into the log.")
        self.gaps = counter("log_gap", "Times that a worker missed frames and had the relay send them again.")
        self.size = gauge("log_bytes", "What the log holds of this relay's frames.")
        self.limit = gauge("log_limit_bytes", "What it may hold (scale.log_size); 0: any size.")
        self.lag = gauge(
            "partition_lag_bytes", "WAL between what the relay has read and what it is told is applied."
        )
        self._lagging: dict[str, str] = {}

    def set_lags(self, lags: Mapping[str, int | None], source: str) -> None:
        """Replace one source's. None: the partition reads the table, and has no place in the log."""
        found = {name: lag for name, lag in lags.items() if lag is not None}
        for name in [name for name, of in self._lagging.items() if of == source and name not in found]:
            self.lag.remove(name, source)
            del self._lagging[name]
        for name, lag in found.items():
            self.lag.labels(name, source).set(lag)
            self._lagging[name] = source
