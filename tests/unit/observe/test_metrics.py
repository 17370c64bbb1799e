"""Names are promises (docs/metrics.md), and a scrape tells the truth while other threads write."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from bridge.dispatch.schedule import LaneSpec
from bridge.errors import Halt
from bridge.observe.metrics import Metrics
from bridge.observe.state import PHASES, AloneUntil, Health, StreamState
from bridge.observe.status import status_of
from bridge.observe.watch import DispatchWatch
from bridge.postgres.left_behind import LeftBehind
from bridge.sinks.model import SINKS

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


def used_metrics(sources: Sequence[str] = ()) -> Metrics:
    """One observation everywhere. sources: of the file, where it has several."""
    health = Health(clock=lambda: 1000.0)
    metrics = Metrics(health)
    metrics.use_sources(sources)
    source = sources[0] if sources else ""
    state = health.add(
        StreamState("outbox_bridge_warehouse", "warehouse", source or "source", clock=health.clock)
    )
    state.enter("streaming", epoch=3, pending_since=990.0)
    state.update(
        slot="outbox_bridge_warehouse_1", slot_active=True, slot_retained_bytes=4096, slot_safe_bytes=1 << 30
    )
    state.update(slot_full_in_seconds=900.0)
    state.halt(Halt("the slot is gone", reason="slot_lost", hint="bridge doctor"))
    metrics.count_events({("usage", "applied"): 3, ("usage", "filtered"): 1}, source)
    metrics.latency.observe_many(
        "usage", NOW, [NOW - 400, NOW - 4000, NOW - 7_200_000_000], [2, 1, 1], source
    )
    metrics.batch_seconds.labels("outbox_bridge_warehouse", source).observe(0.01)
    metrics.retries.labels("outbox_bridge_warehouse", "40001", source).inc()
    metrics.table_changes.labels("outbox_bridge_warehouse", source).inc()
    metrics.set_dead_letters({(source, "usage"): 2})
    metrics.deliveries.labels("nudge", "sent", source).inc()
    metrics.delivery_seconds.labels("nudge", source).observe(0.2)
    metrics.set_waiting({(source, "nudge"): (2, 61.04)})
    metrics.set_left_alone(
        (source or "source", "usage", "nudge"),
        [AloneUntil("usage", "nudge", "", 1010.0, "timeout", source or "source")],
    )
    metrics.set_left_behind([LeftBehind("slot", "outbox_bridge_gone_1", "m", "f", retained=9)])
    of_log = metrics.of_log()
    for one in (of_log.frames, of_log.rows, of_log.gaps):
        one.labels("outbox_bridge_bus", source).inc()
    of_log.size.labels("outbox_bridge_bus", source).set(4096)
    of_log.limit.labels("outbox_bridge_bus", source).set(1 << 30)
    of_log.set_lags({"outbox_bridge_warehouse.1of8": 7, "outbox_bridge_warehouse.2of8": None}, source)
    metrics.set_shared({"member": "a", "members": [{"member": "a", "streams": ["x"]}], "free": []})
    metrics.enrich_lookups.labels("customer", "hit", source).inc()
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
    metrics.set_dead_letters({("", "a"): 2, ("", "b"): 1})
    metrics.set_dead_letters({("", "b"): 4})
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


def test_with_several_sources_all_that_is_of_one_has_the_label() -> None:
    found = labels_by_name(used_metrics(["eu", "us"]))
    of_one = {
        name for name, labels in found.items() if labels & {"stream", "pipeline", "destination", "entity"}
    }
    assert {name for name, labels in found.items() if "source" in labels} == of_one


def test_a_file_with_several_sources_has_the_label_on_what_is_of_one() -> None:
    metrics = used_metrics()
    assert {name for name, labels in labels_by_name(metrics).items() if "source" in labels} == {
        "outbox_bridge_stream_info"
    }
    metrics.use_sources(["eu", "us"])
    metrics.health.add(StreamState("s_eu", "warehouse", "eu", clock=metrics.health.clock)).update(
        pending_since=900.0
    )
    watch = DispatchWatch(metrics)
    sink = SINKS["webhook"](type="webhook", url="https://example.com", secret="whsec_" + "A" * 32)
    eu, us = (LaneSpec("usage", "nudge", "hook", sink, source=name) for name in ("eu", "us"))
    metrics.count_events({("usage", "applied"): 5}, "eu")
    metrics.set_dead_letters({("eu", "usage"): 1, ("us", "usage"): 2})
    metrics.set_waiting({("us", "nudge"): (4, 9.0)})
    watch.delivered(eu, "sent", 0.1)
    watch.left_alone(eu, [("", None, "paused")])
    watch.left_alone(us, [])  # of the same name, and it says nothing of eu's
    values = {
        (name.removeprefix("outbox_bridge_"), labels): at for (name, labels), at in samples(metrics).items()
    }

    def value(name: str, **labels: str) -> float:
        return values[name, frozenset(labels.items())]

    assert value("events_total", pipeline="usage", outcome="applied", source="eu") == 5
    assert value("events_total", pipeline="", outcome="unmatched", source="us") == 0
    assert value("oldest_pending_event_age_seconds", stream="s_eu", source="eu") == 100
    assert value("dead_letters", pipeline="usage", source="us") == 2
    assert value("dead_letters", pipeline="usage") == 0  # of before
    assert value("deliveries_pending", destination="nudge", source="us") == 4
    assert value("deliveries_total", destination="nudge", outcome="sent", source="eu") == 1
    assert value("destination_paused", destination="nudge", source="eu") == 1
    assert value("destination_paused", destination="nudge", source="us") == 0
    assert ("destination_left_alone", frozenset({("destination", "nudge")})) not in values
    state = status_of(metrics)
    assert [one["dead_letters"] for one in state["pipelines"] if one["pipeline"] == "usage"] == [3]
    assert state["by_source"]["us"]["dead_letters"] == {"usage": 2}
    assert state["by_source"]["us"]["waiting_deliveries"]["nudge"]["messages"] == 4
    assert state["deliveries"]["nudge"]["sent"] == 2
    assert [(one["source"], one["destination"]) for one in state["left_alone"] if one["until"] is None] == [
        ("eu", "nudge")
    ]


def test_a_partition_that_reads_the_table_has_no_lag() -> None:
    metrics = Metrics()
    of_log = metrics.of_log()
    of_log.set_lags({"s.1of2": 7, "s.2of2": 9}, "")
    of_log.set_lags({"s.1of2": 0, "s.2of2": None}, "")
    told = metrics.exposition().decode()
    assert 'outbox_bridge_partition_lag_bytes{stream="s.1of2"} 0.0' in told
    assert "s.2of2" not in told
    of_log.set_lags({}, "another source")
    assert "s.1of2" in metrics.exposition().decode()
    of_log.set_lags({}, "")
    assert "s.1of2" not in metrics.exposition().decode()
