"""Every metric of the bridge, on its own registry. One attribute here is one row of docs/metrics.md.

Streams, the dispatcher and the ingress write counters and histograms. A stream's state (halted, slot, oldest pending
event, phase) is read from `Health` at the scrape, so a hung thread still shows a growing age. No label contains
customer data: label values are names from the configuration, words of this package and HTTP status codes.
"""

from __future__ import annotations

import platform
import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from operator import mul
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from bridge import __version__
from bridge.observe.state import CAUSE, PHASES, AloneUntil, Health
from bridge.postgres.left_behind import LeftBehind
from bridge.sinks.model import QUIET_HOURS

PREFIX = "outbox_bridge"

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
        self._counts: dict[str, list[int]] = {}  # pipeline -> a count a bucket, the last one +Inf
        self._sums: dict[str, float] = {}

    def observe_many(self, pipeline: str, now: int, times: Sequence[int], events: Sequence[int]) -> None:
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
        self._add(pipeline, found, total / 1e6)

    def _add(self, pipeline: str, found: list[int], total: float) -> None:
        with self._lock:
            counts = self._counts.get(pipeline)
            if counts is None:
                self._counts[pipeline], self._sums[pipeline] = found, total
            else:
                counts[:] = [a + b for a, b in zip(counts, found, strict=True)]
                self._sums[pipeline] += total

    def quantile(self, pipeline: str, q: float) -> float | None:
        """Seconds, interpolated within the bucket like Prometheus's histogram_quantile; None: no events yet."""
        with self._lock:
            counts = list(self._counts.get(pipeline, ()))
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
        with self._lock:
            return sum(self._counts.get(pipeline, ()))

    def describe(self) -> Iterator[Metric]:
        yield HistogramMetricFamily(self._name, self._documentation, labels=["pipeline"])

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._documentation, labels=["pipeline"])
        with self._lock:
            seen = {name: (list(counts), self._sums[name]) for name, counts in self._counts.items()}
        for pipeline, (counts, total) in sorted(seen.items()):
            buckets, running = [], 0
            for bound, count in zip([*map(str, self._bounds), "+Inf"], counts, strict=True):
                running += count
                buckets.append((bound, float(running)))
            family.add_metric([pipeline], buckets=buckets, sum_value=total)
        yield family


class StreamCollector(Collector):
    """Gauges of every stream, read from `Health` at the scrape."""

    def __init__(self, health: Health) -> None:
        self._health = health

    def describe(self) -> Iterator[Metric]:
        yield from self._families().values()

    def _families(self) -> dict[str, GaugeMetricFamily]:
        def gauge(name: str, documentation: str, *more: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"{PREFIX}_{name}", documentation, labels=[*more, "stream"])

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
            families["info"].add_metric([at.connection, at.source, name], 1)
            if at.pending_known:
                families["pending"].add_metric([name], at.pending_age(now))
            if at.slot_retained_bytes is not None:
                families["retained"].add_metric([name], at.slot_retained_bytes)
            if at.slot_safe_bytes is not None:
                families["safe"].add_metric([name], at.slot_safe_bytes)
            if at.slot_full_in_seconds is not None:
                families["full"].add_metric([name], at.slot_full_in_seconds)
            if at.slot_active is not None:
                families["active"].add_metric([name], int(at.slot_active))
            for reason in sorted(known):
                halted = at.phase == "halted" and at.reason == reason
                families["halted"].add_metric([reason, name], int(halted))
            for phase in PHASES:
                families["phase"].add_metric([phase, name], int(at.phase == phase))
            if at.epoch:
                families["epoch"].add_metric([name], at.epoch)
        yield from families.values()


class ReadyCollector(Collector):
    """`outbox_bridge_ready`: what /readyz answers, as a number."""

    def __init__(self, health: Health) -> None:
        self._health = health

    def collect(self) -> Iterator[Metric]:
        ready = GaugeMetricFamily(f"{PREFIX}_ready", "1 when /readyz answers 200.")
        ready.add_metric([], int(self._health.ready))
        yield ready


class Metrics:
    """All metrics of one process. Create one, pass its parts to the loops, serve `exposition()`."""

    def __init__(self, health: Health | None = None) -> None:
        # one `_created` series more for each series, that nobody reads
        disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client leaves it untyped
        self.registry = CollectorRegistry()
        self.health = health or Health()

        def counter(name: str, documentation: str, *labels: str) -> Counter:
            return Counter(f"{PREFIX}_{name}", documentation, labels, registry=self.registry)

        def work(name: str, documentation: str, *labels: str) -> Histogram:
            full = f"{PREFIX}_{name}"
            return Histogram(full, documentation, labels, registry=self.registry, buckets=WORK_BUCKETS)

        def gauge(name: str, documentation: str, *labels: str) -> Gauge:
            return Gauge(f"{PREFIX}_{name}", documentation, labels, registry=self.registry)

        self.events = counter("events", "Events by pipeline and outcome.", "pipeline", "outcome")
        self.events.labels("", "unmatched")  # from 0, so that the first one is an increase
        self.latency = LatencyHistogram(
            f"{PREFIX}_event_latency_seconds", "Time from the producer's commit to the target's commit."
        )
        self.registry.register(self.latency)
        self.batch_seconds = work("batch_seconds", "Time to apply one batch, commit included.", "stream")
        self.table_changes = counter(
            "target_changes", "Target tables that were altered while the bridge ran.", "stream"
        )
        self.retries = counter(
            "retries", "Retries of batches and connections, by SQLSTATE or reason.", "stream", "reason"
        )
        self.dead_letters = gauge("dead_letters", "Open dead letters.", "pipeline")
        self._dead_letter_pipelines: set[str] = set()
        self.deliveries = counter("deliveries", "Sends to sinks by outcome.", "destination", "outcome")
        self.delivery_seconds = work("delivery_seconds", "Duration of one send to a sink.", "destination")
        self.deliveries_pending = gauge(
            "deliveries_pending", "Messages that are not sent yet.", "destination"
        )
        self.oldest_delivery = gauge(
            "oldest_pending_delivery_age_seconds",
            "Age of the oldest message that is not sent yet.",
            "destination",
        )
        self.waiting: dict[str, tuple[int, float]] = {}
        self.destination_left_alone = gauge(
            "destination_left_alone",
            "1 while nothing is sent there, after failures, as the vendor asks or because it is paused.",
            "destination",
        )
        self.destination_paused = gauge(
            "destination_paused",
            "1 while a person has paused it, or messages of a cause or recipient there.",
            "destination",
        )
        self.recipients_left_alone = gauge(
            "recipients_left_alone",
            "Recipients that events name and that are left alone for a while.",
            "destination",
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
            "enrich_lookups", "Keys looked up for enrichment, by result.", "entity", "result"
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
        self.registry.register(StreamCollector(self.health))
        self.registry.register(ReadyCollector(self.health))
        ProcessCollector(registry=self.registry)

    def count_events(self, outcomes: Mapping[tuple[str, str], int]) -> None:
        """Add a batch's (pipeline, outcome) -> events, as the planner counts them."""
        for (pipeline, outcome), count in outcomes.items():
            self.events.labels(pipeline, outcome).inc(count)

    def set_dead_letters(self, open_letters: Mapping[str, int]) -> None:
        """Replace the gauge: open dead letters by pipeline. Pipelines that are not named have 0."""
        self._dead_letter_pipelines |= open_letters.keys()
        for pipeline in self._dead_letter_pipelines:
            self.dead_letters.labels(pipeline).set(open_letters.get(pipeline, 0))

    def needs_a_person(self) -> bool:
        """Is something left behind, or a dead letter open, as it was counted last?"""
        letters = next(iter(self.dead_letters.collect())).samples
        return bool(self.health.left_behind) or any(sample.value for sample in letters)

    def set_waiting(self, waiting: Mapping[str, tuple[int, float]]) -> None:
        """Replace the gauges: by destination, the unsent messages and the oldest one's age in seconds. Destinations
        that are not named have none."""
        self.waiting = {name: waiting.get(name, (0, 0.0)) for name in self.waiting.keys() | waiting.keys()}
        for destination, (count, age) in self.waiting.items():
            self.deliveries_pending.labels(destination).set(count)
            self.oldest_delivery.labels(destination).set(age)

    def set_left_alone(self, lane: tuple[str, str], found: Sequence[AloneUntil]) -> None:
        """Replace who is left alone, of one pipeline's destination."""
        known = self.health.left_alone
        self.health.left_alone = known = {**known, lane: found}
        here = [one for each in known.values() for one in each if one.destination == lane[1]]
        self.destination_left_alone.labels(lane[1]).set(
            any(not one.recipient and one.code != QUIET_HOURS for one in here)
        )
        self.destination_paused.labels(lane[1]).set(any(one.until is None for one in here))
        named = [one for one in here if one.recipient and not one.recipient.startswith(CAUSE)]
        self.recipients_left_alone.labels(lane[1]).set(len(named))

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
