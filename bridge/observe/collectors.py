"""What prometheus_client cannot do by itself: a histogram that takes a batch at once, gauges that are read at the
scrape, and a registry that leaves out empty labels. metrics.py names the metrics.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from operator import mul

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from bridge.observe.state import PHASES, Health

PREFIX = "outbox_bridge"

LATENCY_BUCKETS = (
    *(0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0),
)
"""Upper bounds in seconds: dense where a stream lives (0.5 to 25 ms), then up to an outage."""


class LatencyHistogram(Collector):
    """A cumulative histogram that takes a whole batch at once, with one lock and usually one bucket.
    prometheus_client's own needs a lock and a bucket search for each observation, which costs too much per event."""

    def __init__(self, name: str, documentation: str, bounds: tuple[float, ...] = LATENCY_BUCKETS) -> None:
        self._name, self._documentation, self._bounds = name, documentation, bounds
        self._lock = threading.Lock()
        self._counts: dict[
            tuple[str, str], list[int]
        ] = {}  # (pipeline, source) -> a count a bucket, then +Inf
        self._sums: dict[tuple[str, str], float] = {}

    def observe_many(
        self, pipeline: str, now: int, times: Sequence[int], events: Sequence[int], source: str = ""
    ) -> None:
        """Add observations that began at `times` and ended `now` (unix microseconds), with the number of events for
        each. A negative duration (from clocks that differ) counts as 0."""
        bounds, found = self._bounds, [0] * (len(self._bounds) + 1)
        shortest, longest = max(0, now - max(times)), now - min(times)
        bucket = bisect_left(bounds, shortest / 1e6)
        if shortest and bucket == bisect_left(bounds, longest / 1e6):  # nearly every batch
            found[bucket] = sum(events)
            total = now * found[bucket] - sum(map(mul, times, events))
        else:
            total = 0
            for at, count in zip(times, events, strict=True):
                took = max(0, now - at)
                found[bisect_left(bounds, took / 1e6)] += count
                total += took * count
        self._add((pipeline, source), found, total / 1e6)

    def _add(self, key: tuple[str, str], found: list[int], total: float) -> None:
        with self._lock:
            counts = self._counts.get(key)
            if counts is None:
                self._counts[key], self._sums[key] = found, total
            else:
                counts[:] = [a + b for a, b in zip(counts, found, strict=True)]
                self._sums[key] += total

    def _of(self, pipeline: str) -> list[int]:
        """A count a bucket, of all sources."""
        with self._lock:
            found = [counts for key, counts in self._counts.items() if key[0] == pipeline]
            return [sum(column) for column in zip(*found, strict=True)]

    def quantile(self, pipeline: str, q: float) -> float | None:
        """Seconds, interpolated within the bucket like Prometheus's histogram_quantile; None: no events yet."""
        counts = self._of(pipeline)
        wanted = q * sum(counts)
        if not wanted:
            return None
        below = 0
        for index, count in enumerate(counts):
            if count and below + count >= wanted:
                if index == len(self._bounds):
                    break
                low = self._bounds[index - 1] if index else 0.0
                return low + (self._bounds[index] - low) * (wanted - below) / count
            below += count
        return self._bounds[-1]

    def count(self, pipeline: str) -> int:
        """How many events were observed."""
        return sum(self._of(pipeline))

    def describe(self) -> Iterator[Metric]:
        yield self._family()

    def _family(self) -> HistogramMetricFamily:
        return HistogramMetricFamily(self._name, self._documentation, labels=["pipeline", "source"])

    def collect(self) -> Iterator[Metric]:
        family = self._family()
        with self._lock:
            seen = {name: (list(counts), self._sums[name]) for name, counts in self._counts.items()}
        for key, (counts, total) in sorted(seen.items()):
            buckets, running = [], 0
            for bound, count in zip([*map(str, self._bounds), "+Inf"], counts, strict=True):
                running += count
                buckets.append((bound, float(running)))
            family.add_metric(key, buckets=buckets, sum_value=total)
        yield family


class StreamCollector(Collector):
    """Gauges of every stream, read from `Health` at the scrape."""

    def __init__(self, health: Health, label: Callable[[str], str]) -> None:
        self._health = health
        self._label = label

    def describe(self) -> Iterator[Metric]:
        yield from self._families().values()

    def _families(self) -> dict[str, GaugeMetricFamily]:
        def gauge(name: str, documentation: str, *more: str) -> GaugeMetricFamily:
            labels = [*more, "stream"] if "source" in more else [*more, "stream", "source"]
            return GaugeMetricFamily(f"{PREFIX}_{name}", documentation, labels=labels)

        return {
            "pending": gauge(
                "oldest_pending_event_age_seconds",
                "Age of the oldest committed event that is not applied; 0 when nothing waits.",
            ),
            "retained": gauge(
                "slot_retained_wal_bytes", "WAL that the source retains for the stream's slot."
            ),
            "safe": gauge(
                "slot_safe_wal_bytes",
                "WAL that may still be written before Postgres invalidates the slot; absent without a limit.",
            ),
            "full": gauge(
                "slot_wal_full_seconds",
                "Time until the WAL brake or the server's limit, at the rate of the last "
                "minutes; absent unless growing.",
            ),
            "active": gauge("slot_active", "1 while a connection reads from the stream's slot."),
            "halted": gauge("halted", "1 while the stream is halted for this reason, 0 after it.", "reason"),
            "phase": gauge("stream_phase", "1 for the stream's current phase, otherwise 0.", "phase"),
            "info": gauge(
                "stream_info", "1: the source and the connection of the stream.", "connection", "source"
            ),
            "epoch": gauge("stream_epoch", "Fencing token of the stream, incremented at every start."),
        }

    def collect(self) -> Iterator[Metric]:
        families, now = self._families(), self._health.clock()
        for name, state in self._health.streams.items():
            at, known = state.snapshot, state.halted_reasons
            of = (name, self._label(at.source))
            families["info"].add_metric([at.connection, at.source, name], 1)
            if at.pending_known:
                families["pending"].add_metric(of, at.pending_age(now))
            if at.slot_retained_bytes is not None:
                families["retained"].add_metric(of, at.slot_retained_bytes)
            if at.slot_safe_bytes is not None:
                families["safe"].add_metric(of, at.slot_safe_bytes)
            if at.slot_full_in_seconds is not None:
                families["full"].add_metric(of, at.slot_full_in_seconds)
            if at.slot_active is not None:
                families["active"].add_metric(of, int(at.slot_active))
            for reason in sorted(known):
                halted = at.phase == "halted" and at.reason == reason
                families["halted"].add_metric([reason, *of], int(halted))
            for phase in PHASES:
                families["phase"].add_metric([phase, *of], int(at.phase == phase))
            if at.epoch:
                families["epoch"].add_metric(of, at.epoch)
        yield from families.values()


class ReadyCollector(Collector):
    """`outbox_bridge_ready`: what /readyz answers, as a number."""

    def __init__(self, health: Health) -> None:
        self._health = health

    def collect(self) -> Iterator[Metric]:
        ready = GaugeMetricFamily(f"{PREFIX}_ready", "1 when /readyz answers 200.")
        ready.add_metric([], int(self._health.ready))
        yield ready


class Registry(CollectorRegistry):
    """To Prometheus a label without a value is no label: `source` is left out where the file has one source, so that
    a series is called as it always was."""

    def collect(self) -> Iterator[Metric]:
        for family in super().collect():
            family.samples = [
                sample._replace(labels={name: at for name, at in sample.labels.items() if name != "source"})
                if sample.labels.get("source") == ""
                else sample
                for sample in family.samples
            ]
            yield family
