"""The demo's outcome as one HTML file without a script or a request to anywhere."""

from __future__ import annotations

import math
from html import escape

from bridge.demo.screen import figures, sentence
from bridge.demo.story import Outcome

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
