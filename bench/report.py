"""What was measured, as a table for people and as build/bench.json for machines."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.drain import Drain
from bench.latency import Latency
from bridge import __version__

PATH = Path("build/bench.json")


def machine() -> dict[str, Any]:
    """Processor, cores, memory, system."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_bytes": pages,
        "system": platform.platform(),
        "load_average_at_start": os.getloadavg()[0],
    }


def versions(postgres: str) -> dict[str, str]:
    """Of everything that takes part."""
    names = ("psycopg", "psycopg-binary", "orjson")
    ours = {"bridge": __version__, "postgres": postgres, "python": platform.python_version()}
    return {**ours, **{name: version(name) for name in names}}


def summary(drains: Sequence[Drain]) -> dict[str, Any]:
    """Medians over the rounds. Rates in events a second, CPU in microseconds an event."""
    parts = dict.fromkeys(part for drain in drains for part in drain.cpu)
    memories = [drain.memory for drain in drains if drain.memory is not None]
    return {
        "rows": drains[0].rows,
        "events_per_second": round(statistics.median(d.rate for d in drains)),
        "events_per_second_by_round": [round(d.rate) for d in drains],
        "events_per_commit": round(statistics.median(d.rows / d.commits for d in drains), 1),
        "seconds_to_first_row": round(statistics.median(d.to_first for d in drains), 2),
        "cpu_microseconds_per_event": {
            part: round(statistics.median(d.cpu[part] for d in drains if part in d.cpu), 2) for part in parts
        },
        **({"peak_rss_bytes": max(memories)} if memories else {}),
    }


def latency_summary(runs: Sequence[Latency]) -> dict[str, Any]:
    """Medians over the rounds, milliseconds."""
    return {
        "events": runs[0].events,
        "p50_ms": round(statistics.median(r.p50 for r in runs), 3),
        "p99_ms": round(statistics.median(r.p99 for r in runs), 3),
        "p99_ms_by_round": [round(r.p99, 3) for r in runs],
        "target_flush_mean_ms": round(statistics.median(r.flush for r in runs), 3),
    }


def paired(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the rounds' own ratios."""
    return round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 3)


def print_drains(title: str, figures: Mapping[str, Mapping[str, Any]]) -> None:
    """One line a contestant."""
    print(f"\n{title}")
    print(f"  {'':44} {'ev/s':>8} {'ev/commit':>10} {'start s':>8} {'RSS MB':>7}   CPU us/event")
    for name, figure in figures.items():
        cpu = "  ".join(f"{part} {used:.1f}" for part, used in figure["cpu_microseconds_per_event"].items())
        memory = f"{figure['peak_rss_bytes'] / 1e6:.0f}" if "peak_rss_bytes" in figure else ""
        print(
            f"  {name:44} {figure['events_per_second']:>8,} {figure['events_per_commit']:>10,}"
            f" {figure['seconds_to_first_row']:>8.2f} {memory:>7}   {cpu}"
        )


def print_latency(title: str, figures: Mapping[str, Mapping[str, Any]]) -> None:
    """One line a contestant."""
    print(f"\n{title}")
    print(f"  {'':44} {'p50 ms':>8} {'p99 ms':>8}   target's flush, mean ms")
    for name, figure in figures.items():
        print(
            f"  {name:44} {figure['p50_ms']:>8.2f} {figure['p99_ms']:>8.2f}"
            f"   {figure['target_flush_mean_ms']:.2f}"
        )


def write(report: dict[str, Any]) -> None:
    """build/bench.json."""
    PATH.parent.mkdir(exist_ok=True)
    report = {"made_at": datetime.now(UTC).isoformat(timespec="seconds"), **report}
    PATH.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\nwritten: {PATH}")
