"""Gauges that are read at the scrape, and a registry that leaves out empty labels. metrics.py names the metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from bridge.observe.state import PHASES, Health

PREFIX = "outbox_bridge"


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
            if at.group:
                at = replace(at, slot_retained_bytes=None, slot_safe_bytes=None, slot_full_in_seconds=None)
                at = replace(at, slot_active=None)  # the slot is the relay's
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
