"""Names are promises (docs/metrics.md), and a scrape tells the truth while other threads write."""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from bridge.errors import Halt
from bridge.observe.metrics import Metrics
from bridge.observe.state import PHASES, AloneUntil, Health, StreamState
from bridge.postgres.left_behind import LeftBehind

DOCUMENT = Path(__file__).parents[3] / "docs" / "metrics.md"

NOW = 1_763_900_000_000_000  # unix microseconds

FIXED_NAMES = {
    "events_total": {"pipeline", "outcome"},
    "event_latency_seconds": {"pipeline"},
    "batch_seconds": {"stream"},
    "oldest_pending_event_age_seconds": {"stream"},
    "slot_retained_wal_bytes": {"stream"},
    "slot_safe_wal_bytes": {"stream"},
    "slot_active": {"stream"},
    "deliveries_total": {"destination", "outcome"},
    "delivery_seconds": {"destination"},
    "deliveries_pending": {"destination"},
    "oldest_pending_delivery_age_seconds": {"destination"},
    "destination_left_alone": {"destination"},
    "recipients_left_alone": {"destination"},
    "dead_letters": {"pipeline"},
    "enrich_lookups_total": {"entity", "result"},
    "ingress_requests_total": {"endpoint", "code"},
    "halted": {"reason", "stream"},
    "build_info": {"version", "python"},
}


def used_metrics() -> Metrics:
    """One observation everywhere."""
    health = Health(clock=lambda: 1000.0)
    metrics = Metrics(health)
    state = health.add(StreamState("outbox_bridge_warehouse", "warehouse", clock=health.clock))
    state.enter("streaming", epoch=3, pending_since=990.0)
    state.update(
        slot="outbox_bridge_warehouse_1", slot_active=True, slot_retained_bytes=4096, slot_safe_bytes=1 << 30
    )
    state.update(slot_full_in_seconds=900.0)
    state.halt(Halt("the slot is gone", reason="slot_lost", hint="bridge doctor"))
    metrics.count_events({("usage", "applied"): 3, ("usage", "filtered"): 1})
    metrics.latency.observe_many("usage", NOW, [NOW - 400, NOW - 4000, NOW - 7_200_000_000], [2, 1, 1])
    metrics.batch_seconds.labels("outbox_bridge_warehouse").observe(0.01)
    metrics.retries.labels("outbox_bridge_warehouse", "40001").inc()
    metrics.table_changes.labels("outbox_bridge_warehouse").inc()
    metrics.set_dead_letters({"usage": 2})
    metrics.deliveries.labels("nudge", "sent").inc()
    metrics.delivery_seconds.labels("nudge").observe(0.2)
    metrics.set_waiting({"nudge": (2, 61.04)})
    metrics.set_left_alone(("usage", "nudge"), [AloneUntil("usage", "nudge", "", 1010.0, "timeout")])
    metrics.set_left_behind([LeftBehind("slot", "outbox_bridge_gone_1", "m", "f", retained=9)])
    metrics.set_shared({"member": "a", "members": [{"member": "a", "streams": ["x"]}], "free": []})
    metrics.enrich_lookups.labels("customer", "hit").inc()
    metrics.ingress_requests.labels("events", "202").inc()
    return metrics


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.exposition().decode())
        for sample in family.samples
    }


def labels_by_name(metrics: Metrics) -> dict[str, set[str]]:
    """Metric name as one queries it (with _total, without _bucket) -> its labels."""
    found: dict[str, set[str]] = {}
    for family in metrics.registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        found.setdefault(name, set()).update(labels)
    return found


def test_every_fixed_name_exists_with_its_labels() -> None:
    found = labels_by_name(used_metrics())
    assert {name: found.get(f"outbox_bridge_{name}") for name in FIXED_NAMES} == FIXED_NAMES


def test_document_and_registry_name_the_same_metrics_types_and_labels() -> None:
    metrics = used_metrics()
    types = {
        f"{family.name}_total" if family.type == "counter" else family.name: family.type
        for family in metrics.registry.collect()
    }
    labels = labels_by_name(metrics)
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|([^|]*)\|([^|]*)\|([^|]*)\|$", DOCUMENT.read_text(), re.M)
    if sys.platform != "linux":  # there is no /proc to read them from
        rows = [row for row in rows if not row[0].startswith("process_")]
    documented = {name: (kind, set(re.findall(r"`(\w+)`", names))) for name, kind, names, _, _ in rows}
    assert documented == {name: (types[name], labels[name]) for name in types}
    for name, _, _, unit, meaning in rows:
        assert unit.strip(), name
        assert len(meaning) > 10, name


def test_a_halt_shows_as_one_and_as_zero_after_it() -> None:
    metrics = used_metrics()
    key = (
        "outbox_bridge_halted",
        frozenset({("reason", "slot_lost"), ("stream", "outbox_bridge_warehouse")}),
    )
    assert samples(metrics)[key] == 1
    metrics.health.streams["outbox_bridge_warehouse"].enter("streaming")
    assert samples(metrics)[key] == 0


def test_exactly_one_phase_is_one() -> None:
    values = {
        dict(labels)["phase"]: value
        for (name, labels), value in samples(used_metrics()).items()
        if name == "outbox_bridge_stream_phase"
    }
    assert values == {phase: float(phase == "halted") for phase in PHASES}


def test_the_age_of_the_oldest_event_grows_while_the_thread_says_nothing() -> None:
    now = [100.0]
    health = Health(clock=lambda: now[0])
    metrics = Metrics(health)
    health.add(StreamState("s", "c", clock=health.clock)).update(pending_since=100.0)
    key = ("outbox_bridge_oldest_pending_event_age_seconds", frozenset({("stream", "s")}))
    assert samples(metrics)[key] == 0
    now[0] = 160.0
    assert samples(metrics)[key] == 60


def test_latency_buckets_are_cumulative_and_count_events_not_observations() -> None:
    values = samples(used_metrics())

    def bucket(bound: str) -> float:
        name = "outbox_bridge_event_latency_seconds_bucket"
        return values[name, frozenset({("pipeline", "usage"), ("le", bound)})]

    assert [bucket("0.0005"), bucket("0.003"), bucket("0.005"), bucket("1800.0"), bucket("+Inf")] == [
        2,
        2,
        3,
        3,
        4,
    ]
    assert values["outbox_bridge_event_latency_seconds_count", frozenset({("pipeline", "usage")})] == 4
    total = values["outbox_bridge_event_latency_seconds_sum", frozenset({("pipeline", "usage")})]
    assert total == pytest.approx(7200.0048)


def test_a_bound_belongs_to_its_bucket_and_clocks_that_differ_count_as_zero() -> None:
    metrics = Metrics()
    metrics.latency.observe_many("p", NOW, [NOW - 500, NOW + 3_000_000], [1, 1])
    values = samples(metrics)
    name = "outbox_bridge_event_latency_seconds"
    assert values[f"{name}_bucket", frozenset({("pipeline", "p"), ("le", "0.0005")})] == 2
    assert values[f"{name}_sum", frozenset({("pipeline", "p")})] == pytest.approx(0.0005)


def test_quantiles_are_interpolated_as_prometheus_does() -> None:
    latency = Metrics().latency
    assert latency.quantile("p", 0.5) is None
    latency.observe_many("p", NOW, [NOW - 1500], [100])  # all in (0.001, 0.0015]
    assert latency.quantile("p", 0.5) == pytest.approx(0.00125)
    latency.observe_many("p", NOW, [NOW - 10**12], [900])
    assert latency.quantile("p", 0.99) == 1800.0


@given(st.lists(st.tuples(st.integers(-50, 3000), st.integers(1, 9)), min_size=1, max_size=20))
def test_a_batch_counts_as_its_observations_one_by_one(some: list[tuple[int, int]]) -> None:
    together, apart = Metrics(), Metrics()
    together.latency.observe_many("p", NOW, [NOW - took for took, _ in some], [count for _, count in some])
    for took, count in some:
        apart.latency.observe_many("p", NOW, [NOW - took], [count])
    ours, theirs = samples(together), samples(apart)
    assert [key for key in theirs if ours[key] != pytest.approx(theirs[key]) and "latency" in key[0]] == []


def test_no_observation_is_lost_between_writing_and_scraping_threads() -> None:
    metrics = Metrics()
    done = threading.Event()

    def write() -> None:
        for _ in range(300):
            metrics.latency.observe_many("p", NOW, [NOW - 1000, NOW - 20_000], [2, 3])
            metrics.count_events({("p", "applied"): 5})

    def scrape() -> None:
        while not done.is_set():
            for family in metrics.latency.collect():
                counts = [s.value for s in family.samples if s.name.endswith("_bucket")]
                assert counts == sorted(counts)

    writers = [threading.Thread(target=write) for _ in range(4)]
    reader = threading.Thread(target=scrape)
    for thread in [*writers, reader]:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert metrics.latency.count("p") == 4 * 300 * 5
    assert (
        samples(metrics)["outbox_bridge_events_total", frozenset({("pipeline", "p"), ("outcome", "applied")})]
        == 6000
    )


def test_dead_letters_fall_to_zero_when_a_pipeline_has_none_left() -> None:
    metrics = Metrics()
    metrics.set_dead_letters({"a": 2, "b": 1})
    metrics.set_dead_letters({"b": 4})
    values = samples(metrics)
    key = "outbox_bridge_dead_letters"
    assert values[key, frozenset({("pipeline", "a")})] == 0
    assert values[key, frozenset({("pipeline", "b")})] == 4


@pytest.mark.fault(78)
def test_labels_come_from_a_short_list_of_names() -> None:
    allowed = {"pipeline", "outcome", "destination", "entity", "result", "endpoint", "code", "reason"}
    allowed |= {"stream", "source", "connection", "kind", "name", "phase", "version", "python"}
    assert set().union(*labels_by_name(used_metrics()).values()) <= allowed


def test_two_processes_worth_of_metrics_do_not_share_anything() -> None:
    first, second = Metrics(), Metrics()
    first.count_events({("p", "applied"): 1})
    assert (
        "outbox_bridge_events_total",
        frozenset({("pipeline", "p"), ("outcome", "applied")}),
    ) not in samples(second)
