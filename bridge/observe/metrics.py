"""Every metric of the bridge, on its own registry. One attribute here is one row of docs/metrics.md.

Streams, the dispatcher and the ingress write counters and histograms. A stream's state (halted, slot, oldest pending
event, phase) is read from `Health` at the scrape, so a hung thread still shows a growing age. No label contains
customer data: label values are names from the configuration, words of this package and HTTP status codes.
"""

from __future__ import annotations

import platform
import threading
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from operator import mul
from typing import Any

from prometheus_client import (
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from bridge import __version__
from bridge.observe.collectors import PREFIX, ReadyCollector, Registry, StreamCollector
from bridge.observe.log_metrics import LogMetrics
from bridge.observe.state import CAUSE, AloneUntil, Health, Place
from bridge.postgres.left_behind import LeftBehind
from bridge.sinks.model import QUIET_HOURS

LATENCY_BUCKETS = (
    *(0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0),
)
"""Upper bounds in seconds: dense where a stream lives (0.5 to 25 ms), then up to an outage."""


WORK_BUCKETS = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
)


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
        return self.counts(lambda of, _: of == pipeline)

    def counts(self, wanted: Callable[[str, str], bool]) -> list[int]:
        """A count a bucket; of the pipelines and sources that are wanted. Empty: nothing was observed there."""
        with self._lock:
            found = [counts for key, counts in self._counts.items() if wanted(*key)]
            return [sum(column) for column in zip(*found, strict=True)]

    def quantile(self, pipeline: str, q: float) -> float | None:
        """Of all events since the process started; as quantile_in()."""
        return self.quantile_in(self._of(pipeline), q)

    def quantile_in(self, counts: Sequence[int], q: float) -> float | None:
        """Seconds, interpolated within the bucket like Prometheus's histogram_quantile; None: no events yet."""
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


class Metrics:
    """All metrics of one process. Create one, pass its parts to the loops, serve `exposition()`."""

    def __init__(self, health: Health | None = None) -> None:
        # one `_created` series more for each series, that nobody reads
        disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client leaves it untyped
        self.registry = Registry()
        self.sources: tuple[str, ...] = ()  # of a file that has several
        self.health = health or Health()

        def counter(name: str, documentation: str, *labels: str) -> Counter:
            return Counter(f"{PREFIX}_{name}", documentation, labels, registry=self.registry)

        def work(name: str, documentation: str, *labels: str) -> Histogram:
            full = f"{PREFIX}_{name}"
            return Histogram(full, documentation, labels, registry=self.registry, buckets=WORK_BUCKETS)

        def gauge(name: str, documentation: str, *labels: str) -> Gauge:
            return Gauge(f"{PREFIX}_{name}", documentation, labels, registry=self.registry)

        self.events = counter("events", "Events by pipeline and outcome.", "pipeline", "outcome", "source")
        self._events = cache(self.events.labels)  # finding a child costs more than counting
        self.latency = LatencyHistogram(
            f"{PREFIX}_event_latency_seconds", "Time from the producer's commit to the target's commit."
        )
        self.registry.register(self.latency)
        self.batch_seconds = work(
            "batch_seconds", "Time to apply one batch, commit included.", "stream", "source"
        )
        self.table_changes = counter(
            "target_changes", "Target tables that were altered while the bridge ran.", "stream", "source"
        )
        self.retries = counter(
            "retries",
            "Retries of batches and connections, by SQLSTATE or reason.",
            "stream",
            "reason",
            "source",
        )
        self.dead_letters = gauge("dead_letters", "Open dead letters.", "pipeline", "source")
        self.dead: dict[tuple[str, str], int] = {}
        self.deliveries = counter(
            "deliveries",
            "Sends to sinks, and messages to NATS, by outcome.",
            "destination",
            "outcome",
            "source",
        )
        self.delivery_seconds = work(
            "delivery_seconds", "Duration of one send to a sink.", "destination", "source"
        )
        self.deliveries_pending = gauge(
            "deliveries_pending", "Messages that are not sent yet.", "destination", "source"
        )
        self.oldest_delivery = gauge(
            "oldest_pending_delivery_age_seconds",
            "Age of the oldest message that is not sent yet.",
            "destination",
            "source",
        )
        self.waiting: dict[tuple[str, str], tuple[int, float]] = {}
        self.destination_left_alone = gauge(
            "destination_left_alone",
            "1 while nothing is sent there, after failures, as the vendor asks or because it is paused.",
            "destination",
            "source",
        )
        self.destination_paused = gauge(
            "destination_paused",
            "1 while a person has paused it, or messages of a cause or recipient there.",
            "destination",
            "source",
        )
        self.recipients_left_alone = gauge(
            "recipients_left_alone",
            "Recipients that events name and that are left alone for a while.",
            "destination",
            "source",
        )
        self.left_behind = gauge(
            "left_behind",
            "Slots, streams, dead letters and messages that are ours and that nothing serves any more.",
            "kind",
            "name",
        )
        self.left_behind_wal = gauge(
            "left_behind_wal_bytes", "WAL that the source retains for a slot that nothing serves.", "name"
        )
        self.enrich_lookups = counter(
            "enrich_lookups", "Keys looked up for enrichment, by result.", "entity", "result", "source"
        )
        self.ingress_requests = counter(
            "ingress_requests", "HTTP requests to the ingress, by status code.", "endpoint", "code"
        )
        self.config_last_reload_successful = gauge(
            "config_last_reload_successful", "0 after a refused reload; the old configuration stays."
        )
        self.config_last_reload_successful.set(1)
        self.build_info = gauge("build_info", "1; the version is in the labels.", "version", "python")
        self.build_info.labels(__version__, platform.python_version()).set(1)
        self._shared: tuple[Gauge, Gauge, Gauge] | None = None
        self._of_log: LogMetrics | None = None
        self.registry.register(StreamCollector(self.health, self.label))
        self.registry.register(ReadyCollector(self.health))
        ProcessCollector(registry=self.registry)
        self.use_sources(())

    def use_sources(self, names: Collection[str]) -> None:
        """The sources of the file. Where there are several, the series of a stream, pipeline or destination have the
        label `source`. What a reload makes of one source begins anew."""
        several = tuple(names) if len(names) > 1 else ()
        if bool(several) != bool(self.sources):
            for gauge in (self.destination_left_alone, self.destination_paused, self.recipients_left_alone):
                gauge.clear()
        self.sources = several
        for name in several or ("",):
            self.events.labels("", "unmatched", name)  # from 0, so that the first one is an increase
        for place in self.health.left_alone:
            self._show_left_alone(place[0], place[2])

    def label(self, source: str) -> str:
        """The value of the label `source`: "", none, where the file has one source."""
        return source if self.sources else ""

    def count_events(self, outcomes: Mapping[tuple[str, str], int], source: str = "") -> None:
        """Add a batch's (pipeline, outcome) -> events, as the planner counts them. source: as label() has it, here
        and below."""
        for (pipeline, outcome), count in outcomes.items():
            self._events(pipeline, outcome, source).inc(count)

    def set_dead_letters(self, open_letters: Mapping[tuple[str, str], int]) -> None:
        """Replace the gauge: open dead letters by (source, pipeline). Those that are not named have 0."""
        self.dead = {key: open_letters.get(key, 0) for key in self.dead.keys() | open_letters.keys()}
        for (source, pipeline), count in self.dead.items():
            self.dead_letters.labels(pipeline, source).set(count)

    def needs_a_person(self) -> bool:
        """Is something left behind, or a dead letter open, as it was counted last?"""
        return bool(self.health.left_behind) or any(self.dead.values())

    def set_waiting(self, waiting: Mapping[tuple[str, str], tuple[int, float]]) -> None:
        """Replace the gauges: by (source, destination), the unsent messages and the oldest one's age in seconds. Those
        that are not named have none."""
        self.waiting = {name: waiting.get(name, (0, 0.0)) for name in self.waiting.keys() | waiting.keys()}
        for (source, destination), (count, age) in self.waiting.items():
            self.deliveries_pending.labels(destination, source).set(count)
            self.oldest_delivery.labels(destination, source).set(age)

    def set_left_alone(self, place: Place, found: Sequence[AloneUntil]) -> None:
        """Replace who is left alone, of one source's messages to one pipeline's destination."""
        self.health.left_alone = {**self.health.left_alone, place: found}
        self._show_left_alone(place[0], place[2])

    def _show_left_alone(self, source: str, destination: str) -> None:
        here = [
            one
            for each in self.health.left_alone.values()
            for one in each
            if one.destination == destination and (one.source == source or not self.sources)
        ]
        labels = (destination, self.label(source))
        self.destination_left_alone.labels(*labels).set(
            any(not one.recipient and one.code != QUIET_HOURS for one in here)
        )
        self.destination_paused.labels(*labels).set(any(one.until is None for one in here))
        named = [one for one in here if one.recipient and not one.recipient.startswith(CAUSE)]
        self.recipients_left_alone.labels(*labels).set(len(named))

    def set_shared(self, picture: Mapping[str, Any]) -> None:
        """Replace who runs which stream, where bridges share a file (sharing.py). Without that there are no such
        metrics."""
        if self._shared is None:
            self._shared = (
                Gauge(f"{PREFIX}_members", "Bridges that share this file's streams.", registry=self.registry),
                Gauge(f"{PREFIX}_streams_claimed", "Streams that this bridge runs.", registry=self.registry),
                Gauge(f"{PREFIX}_streams_free", "Streams that no bridge runs.", registry=self.registry),
            )
        members, claimed, free = self._shared
        self.health.shared = picture
        members.set(len(picture["members"]))
        mine = [one for one in picture["members"] if one["member"] == picture["member"]]
        claimed.set(sum(len(one["streams"]) for one in mine))
        free.set(len(picture["free"]))

    def of_log(self) -> LogMetrics:
        """Those of a relay. Without one there are no such metrics."""
        if self._of_log is None:
            self._of_log = LogMetrics(self.registry)
        return self._of_log

    def set_left_behind(self, found: Sequence[LeftBehind]) -> None:
        """Replace what nothing serves any more."""
        self.health.left_behind = found
        self.left_behind.clear()
        self.left_behind_wal.clear()
        for one in found:
            self.left_behind.labels(one.kind, one.name).set(one.count)
            if one.kind == "slot":
                self.left_behind_wal.labels(one.name).set(one.retained)

    def exposition(self) -> bytes:
        """The text format that Prometheus scrapes."""
        return generate_latest(self.registry)
