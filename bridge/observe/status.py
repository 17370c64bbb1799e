"""What `bridge status` and the page show, as JSON values."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable
from typing import Any

import prometheus_client

from bridge import __version__
from bridge.observe.metrics import Metrics
from bridge.observe.state import Health

_ALONE_TOLD = 20


def waiting_of(waiting: Iterable[tuple[str, tuple[int, float]]]) -> dict[str, dict[str, float]]:
    """Destinations with waiting messages: how many, and the age of the oldest."""
    told: dict[str, dict[str, float]] = {}
    for name, (count, age) in sorted(waiting):
        if count:
            known = told.setdefault(name, {"messages": 0, "oldest_seconds": 0.0})
            known["messages"] += count
            known["oldest_seconds"] = max(known["oldest_seconds"], round(age, 1))
    return told


def status_of(metrics: Metrics) -> dict[str, Any]:
    """Everything that `bridge status` and the page show, as JSON values, without row values."""
    health = metrics.health
    now = health.clock()
    events, deliveries = counts_of(metrics.events, "pipeline"), counts_of(metrics.deliveries, "destination")
    outcomes = _of_all(events)
    dead: Counter[str] = Counter()
    for (_, pipeline), count in metrics.dead.items():
        dead[pipeline] += count
    names = sorted({*outcomes, *dead})
    problems = [problem.as_dict() for problem in health.problems()]
    return {
        "version": __version__,
        "python": platform.python_version(),
        "now": now,
        "started_at": health.started_at,
        "live": health.live,
        "ready": not problems,
        "problems": problems,
        "last_reload_successful": bool(
            next(iter(metrics.config_last_reload_successful.collect())).samples[0].value
        ),
        "reload_refused": None if health.reload_refused is None else dict(health.reload_refused),
        "streams": [
            {**state.snapshot.as_dict(now), "events_per_second": round(health.rate(name), 1)}
            for name, state in health.streams.items()
        ],
        "pipelines": [
            {
                "pipeline": name,
                "events": outcomes.get(name, {}),
                "dead_letters": dead.get(name, 0),
                "latency_p50_seconds": metrics.latency.quantile(name, 0.5),
                "latency_p99_seconds": metrics.latency.quantile(name, 0.99),
            }
            for name in names
        ],
        "deliveries": _of_all(deliveries),
        "waiting_deliveries": waiting_of((name, found) for (_, name), found in metrics.waiting.items()),
        "by_source": {
            source: {
                "events": events.get(source, {}),
                "dead_letters": {
                    pipeline: count
                    for (of, pipeline), count in sorted(metrics.dead.items())
                    if of == source and count
                },
                "deliveries": deliveries.get(source, {}),
                "waiting_deliveries": waiting_of(
                    (name, found) for (of, name), found in metrics.waiting.items() if of == source
                ),
            }
            for source in metrics.sources
        },
        "suppressed": None if health.suppressed is None else dict(health.suppressed),
        "unmatched": health.unmatched.as_dict(),
        "left_behind": [one.as_dict() for one in health.left_behind],
        "left_alone": alone_of(health),
        "shared": None if health.shared is None else dict(health.shared),
    }


def counts_of(counter: prometheus_client.Counter, label: str) -> dict[str, dict[str, dict[str, int]]]:
    """source -> value of the label -> outcome -> count."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for sample in next(iter(counter.collect())).samples:
        at = sample.labels
        if sample.value or at[label]:
            found.setdefault(at["source"], {}).setdefault(at[label], {})[at["outcome"]] = int(sample.value)
    return found


def _of_all(by_source: dict[str, dict[str, dict[str, int]]]) -> dict[str, dict[str, int]]:
    """The same of all sources."""
    found: dict[str, Counter[str]] = {}
    for names in by_source.values():
        for name, outcomes in names.items():
            found.setdefault(name, Counter()).update(outcomes)
    return {name: dict(outcomes) for name, outcomes in found.items()}


def alone_of(health: Health) -> list[dict[str, str | float | None]]:
    """Destinations and recipients to which nothing is sent for a while: of each destination, the first of them."""
    now = health.clock()
    return [
        one.as_dict()
        for found in health.left_alone.values()
        for one in sorted(found, key=lambda one: (one.recipient != "", one.until or 0.0))[:_ALONE_TOLD]
        if one.until is None or one.until > now
    ]
