"""The demo's output: a live line while it runs, then the figures, and the same as one HTML file.

The file has no script and makes no request. This module computes no figures.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bridge.demo.story import Outcome, Progress
from bridge.demo.world import Delivered


@contextmanager
def live(console: Console, progress: Progress) -> Iterator[None]:
    """Update a live line on a terminal; elsewhere only the sentences are printed."""
    if not console.is_terminal:
        yield
        return
    began = time.monotonic()

    def line() -> Text:
        waiting = max(0, progress.committed - progress.delivered)
        return Text(
            f"{progress.phase:<9}{progress.delivered:>9,} delivered of {progress.committed:,} committed"
            f"  ({waiting:,} waiting, {len(progress.kills)} kills, {time.monotonic() - began:.0f} s)",
            style="bold",
        )

    stop = threading.Event()
    with Live(line(), console=console, refresh_per_second=8, transient=True) as display:

        def draw() -> None:
            while not stop.wait(0.12):
                display.update(line())

        thread = threading.Thread(target=draw, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def figures(outcome: Outcome) -> list[tuple[str, str]]:
    """(label, value) in the order of the output; the report has the same."""
    verdict = outcome.verdict

    def milliseconds(percent: float, *phases: str) -> str:
        return f"{verdict.percentile(percent, *phases) * 1000:,.1f} ms"

    waiting = ", ".join(f"{kill.waiting:,}" for kill in outcome.kills)
    back = max((kill.back_after for kill in outcome.kills), default=0.0)
    return [
        ("events committed", f"{verdict.events:,} in {outcome.transactions:,} transactions"),
        (
            "not events",
            f"{outcome.rolled_back:,} rolled back, {outcome.repeated:,} repeated idempotency keys",
        ),
        (
            "SIGKILL mid-stream",
            f"{len(outcome.kills)}, with {waiting} events waiting; back in {back:.1f} s",
        ),
        *(
            [("killed", ", ".join(kill.what for kill in outcome.kills))]
            if any(kill.what for kill in outcome.kills)
            else []
        ),
        *(
            (
                f"source {name}",
                f"{one.events:,} events, {one.rows:,} rows; lost {one.lost}  duplicates {one.duplicates}",
            )
            for name, one in outcome.sources.items()
        ),
        ("rows in the table", f"{verdict.rows:,}"),
        ("altered fields", f"{verdict.altered:,}"),
        ("effects of no event", f"{verdict.unexpected:,}"),
        ("dead letters", f"{verdict.dead_letters:,}"),
        ("messages at Slack", _messages(outcome.slack)),
        ("latency, steady", f"p50 {milliseconds(50, 'steady')}  p99 {milliseconds(99, 'steady')}"),
        (
            "latency, with kills",
            f"p50 {milliseconds(50, 'steady', 'rush')}  p99 {milliseconds(99, 'steady', 'rush')}"
            f"  max {milliseconds(100, 'steady', 'rush')}",
        ),
        ("throughput", _throughput(verdict.rate("backlog"), outcome.backlog)),
        ("servers", f"two PostgreSQL {outcome.server_version}, durable commits on both"),
    ]


def _throughput(rate: float, backlog: int) -> str:
    """A rate is taken between the first commit and the last: a small backlog has only one."""
    return f"{rate:,.0f} events/s, draining {backlog:,}" if rate else f"{backlog:,} drained in one commit"


def _messages(slack: Delivered) -> str:
    return (
        f"{slack.messages:,} for {slack.expected:,} customers at twice their limit, to "
        f"{slack.channels} account owners; missing {slack.missing}, repeated {slack.again}"
    )


def sentence(outcome: Outcome) -> str:
    """The verdict in one line."""
    return f"lost {outcome.verdict.lost}  duplicates {outcome.verdict.duplicates}"


def show(console: Console, outcome: Outcome) -> None:
    """Figures, one row, the verdict."""
    table = Table.grid(padding=(0, 2))
    for what, value in figures(outcome):
        table.add_row(Text(what, style="dim"), Text(value))
    console.print()
    console.print(table)
    console.print(
        "\none row of events.usage_limits (mrr, csm and renewal looked up at the source):", style="dim"
    )
    console.print(
        "  " + "  ".join(f"{name}={value}" for name, value in outcome.sample.items()), soft_wrap=True
    )
    console.print("\none message:", style="dim")
    console.print(Text(f"  {outcome.slack.sample}"), soft_wrap=True)
    console.print()
    for example in outcome.verdict.examples:
        console.print(Text(f"  {example}", style="red"))
    good = outcome.holds
    console.print(Text(sentence(outcome), style="bold green" if good else "bold red"), highlight=False)
    if not good:
        console.print(Text("the promise does NOT hold: see the figures above", style="bold red"))


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>bridge demo: {sentence}</title>
<style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }}
body {{ max-width: 46rem; margin: 2rem auto; padding: 0 1rem }}
h1 {{ font-size: 1.6rem; color: {color} }}
td {{ padding: .15rem 1rem .15rem 0; vertical-align: top }}
td:first-child {{ opacity: .7; white-space: nowrap }}
code {{ overflow-wrap: anywhere }} svg {{ width: 100%; height: auto }} rect {{ fill: {color} }}
text {{ fill: currentColor; font-size: 11px }}
</style></head><body>
<h1>{sentence}</h1>
<table>{rows}</table>
<h2>Latency, source commit to target commit</h2>
{chart}
<h2>One row</h2>
<table>{sample}</table>
{examples}
</body></html>
"""


def html(outcome: Outcome) -> str:
    """The page."""
    return _PAGE.format(
        sentence=escape(sentence(outcome)),
        color="#1a7f37" if outcome.holds else "#cf222e",
        rows=_rows(figures(outcome)),
        chart=_histogram([value for values in outcome.verdict.latencies.values() for value in values]),
        sample=_rows(list(outcome.sample.items())),
        examples="".join(f"<p><code>{escape(example)}</code></p>" for example in outcome.verdict.examples),
    )


def _rows(pairs: list[tuple[str, str]]) -> str:
    return "".join(f"<tr><td>{escape(what)}</td><td>{escape(value)}</td></tr>" for what, value in pairs)


def _histogram(seconds: list[float], bins: int = 36) -> str:
    """Counts over a logarithmic axis from 0.1 ms to 100 s, six bins a decade."""
    counts = [0] * bins
    for value in seconds:
        counts[min(bins - 1, max(0, int((math.log10(max(value, 1e-9)) + 4) * bins / 6)))] += 1
    top = max([*counts, 1])
    bars = "".join(
        f'<rect x="{n * 20 + 1}" y="{150 - height:.1f}" width="18" height="{height:.1f}">'
        f"<title>{count} events</title></rect>"
        for n, (count, height) in enumerate((count, 150 * count / top) for count in counts)
    )
    names = ("0.1 ms", "1 ms", "10 ms", "100 ms", "1 s", "10 s")
    ticks = "".join(f'<text x="{n * bins * 20 // 6}" y="166">{name}</text>' for n, name in enumerate(names))
    label = "histogram of latencies"
    return f'<svg viewBox="0 0 {bins * 20} 170" role="img" aria-label="{label}">{bars}{ticks}</svg>'
