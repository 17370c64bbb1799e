"""The figures as a table for people and as JSON for machines."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.drain import Drain
from bench.latency import Latency
from bench.peers.measure import Kills

JSON = Path("build/bench-peers.json")
MARKDOWN = Path("build/bench-peers.md")

# column: the figure and how it is printed
_COLUMNS: dict[str, tuple[str, str]] = {
    "drain, events/s": ("events_per_second", "{:,.0f}"),
    "first row after, s": ("seconds_to_first_row", "{:.2f}"),
    "p50 ms": ("p50_ms", "{:.2f}"),
    "p99 ms": ("p99_ms", "{:.1f}"),
    "drain CPU us/event, process": ("drain_cpu_process", "{:.0f}"),
    "drain CPU, Postgres": ("drain_cpu_postgres", "{:.0f}"),
    "trickle CPU us/event, process": ("trickle_cpu_process", "{:.0f}"),
    "trickle CPU, Postgres": ("trickle_cpu_postgres", "{:.0f}"),
    "peak MB": ("peak_rss_megabytes", "{:.0f}"),
    "missing": ("missing", "{:,}"),
    "doubled": ("doubled", "{:,}"),
}
PRODUCT = "bridge"  # how its contestant's name begins
_BEGIN, _END = "<!-- make bench-peers -->", "<!-- end of make bench-peers -->"
_MORE_IS_BETTER = {"events_per_second"}


def figures(
    drains: Mapping[str, Sequence[Drain]],
    latencies: Mapping[str, Sequence[Latency]],
    killed: Mapping[str, Kills],
) -> dict[str, dict[str, float]]:
    """Medians over the rounds by contestant; what a contestant did not do is left out."""
    found: dict[str, dict[str, float]] = {}
    for name in drains:
        one = found[name] = {}
        if some := drains[name]:
            one["events_per_second"] = statistics.median(d.rate for d in some)
            one["seconds_to_first_row"] = statistics.median(d.to_first for d in some)
            one["rows"] = statistics.median(d.rows for d in some)
            one |= {f"drain_cpu_{part}": used for part, used in _cpu([d.cpu for d in some]).items()}
            if memories := [d.memory for d in some if d.memory is not None]:
                one["peak_rss_megabytes"] = max(memories) / 1e6
        if runs := latencies[name]:
            one["p50_ms"] = statistics.median(r.p50 for r in runs)
            one["p99_ms"] = statistics.median(r.p99 for r in runs)
            one |= {f"trickle_cpu_{part}": used for part, used in _cpu([r.cpu for r in runs]).items()}
        if name in killed:
            one |= {"missing": killed[name].missing, "doubled": killed[name].doubled}
            one |= {f"killed_at_{n}": seen for n, seen in enumerate(killed[name].killed_at, 1)}
    return found


def _cpu(some: Sequence[Mapping[str, float]]) -> dict[str, float]:
    parts = dict.fromkeys(part for one in some for part in one)
    return {part: statistics.median(one[part] for one in some if part in one) for part in parts}


def markdown(
    found: Mapping[str, Mapping[str, float]],
    notes: Sequence[tuple[str, str, str]],
    failed: Mapping[str, str],
    *,
    machine: Mapping[str, Any],
    postgres: str,
    payload: int,
    command: str,
    options: Mapping[str, Any],
) -> str:
    """The table with what it takes to read it. The best figure of each column is bold, whoever has it."""
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}, {machine['cores']} cores ({machine['processor']}), load"
        f" {machine['load_average_at_start']:.1f} at the start, PostgreSQL {postgres}, two clusters,"
        f" TCP, payloads of {payload} bytes; `{command}`",
        "",
        "| | " + " | ".join(_COLUMNS) + " |",
        "| --- |" + " --- |" * len(_COLUMNS),
    ]
    for name, one in sorted(found.items(), key=lambda item: -item[1].get("events_per_second", 0)):
        if not one:
            continue
        cells = [_cell(found, one, key, form) for key, form in _COLUMNS.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Medians of {options['rounds']} rounds; bold is the best of a column. Drain: {options['events']:,} commits"
        f" of one event, at most {options['limit']:.0f} s; the rate leaves the start out. p50 and p99: from the"
        f" producer's commit to the row's, {options['rate']:.0f} commits a second for {options['seconds']:.0f} s"
        " (trickle). Postgres: all processes of both servers, at the trickle with the producer's inserts. Peak MB:"
        " of the process, while draining. Missing and doubled: two SIGKILLs on the way through"
        f" {options['killed']:,} events, each within milliseconds of a commit (native: of its apply worker, which takes"
        " the target's whole server down and up), effects counted by a trigger of the target; missing is what had not"
        f" come when nothing had come for {options['patience']:.0f} s. All but the two natives with"
        " synchronous_commit = off are durable in the target.",
        "",
        *_better(found),
        *(f"- {name} ({version}): {configured}" for name, version, configured in notes if name in found),
        *(f"- Not measured: {name}: {why}" for name, why in failed.items()),
    ]
    return "\n".join(lines)


def _better(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Who has a better figure than the bridge, by column."""
    ours = next((one for name, one in found.items() if name.startswith(PRODUCT)), {})
    lines = []
    for title, (key, form) in _COLUMNS.items():
        sign = -1 if key in _MORE_IS_BETTER else 1
        ahead = [
            (sign * other[key], f"{name} {form.format(other[key])}")
            for name, other in found.items()
            if key in ours and key in other and sign * other[key] < sign * ours[key]
        ]
        if ahead:
            lines.append(
                f"- {title}, {form.format(ours[key])}: " + "; ".join(text for _, text in sorted(ahead))
            )
    return ["Better than the bridge in this run:", "", *lines, ""] if lines else []


def _cell(found: Mapping[str, Mapping[str, float]], one: Mapping[str, float], key: str, form: str) -> str:
    if key not in one:
        return ""
    values = [other[key] for other in found.values() if key in other]
    best = max(values) if key in _MORE_IS_BETTER else min(values)
    text = form.format(one[key])
    return f"**{text}**" if text == form.format(best) and len(values) > 1 else text


def place(text: str, document: str) -> str:
    """The document with the table between its marks instead of the one that was there."""
    before, begun, rest = document.partition(_BEGIN)
    _, ended, after = rest.partition(_END)
    if not begun or not ended:
        raise ValueError(f"no place for the table: it goes between the lines {_BEGIN} and {_END}")
    return f"{before}{_BEGIN}\n\n{text}\n\n{_END}{after}"


def write(text: str, report: Mapping[str, Any]) -> None:
    """build/bench-peers.md and build/bench-peers.json."""
    JSON.parent.mkdir(exist_ok=True)
    MARKDOWN.write_text(text + "\n")
    stamped = {"made_at": datetime.now(UTC).isoformat(timespec="seconds"), **report}
    JSON.write_text(json.dumps(stamped, indent=2) + "\n")
