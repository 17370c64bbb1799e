"""The status page: one HTML document rendered on the server, without a build step or foreign assets.

It works offline and under a strict content security policy; a short script swaps the body every two
seconds, and without scripts the page reloads itself. All text goes through the template's HTML escaping.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import minijinja

_WIDTH, _HEIGHT = 240.0, 36.0


def sparkline(values: Sequence[float]) -> str:
    """Points of an SVG polyline, oldest value left, the largest at the top; empty below two values."""
    if len(values) < 2:
        return ""
    top = max(values) or 1.0
    step = _WIDTH / (len(values) - 1)
    return " ".join(
        f"{index * step:.1f},{_HEIGHT - 1 - (value / top) * (_HEIGHT - 2):.1f}"
        for index, value in enumerate(values)
    )


def human_bytes(size: float | None) -> str:
    """1536 -> '1.5 KiB'; None -> a dash."""
    if size is None:
        return "–"  # noqa: RUF001  # an en dash stands for no value
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def human_seconds(seconds: float | None) -> str:
    """0.00042 -> '0.42 ms', 95 -> '1 min 35 s'; None -> a dash."""
    if seconds is None or math.isnan(seconds):
        return "–"  # noqa: RUF001  # as above
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days"


@cache
def _environment() -> minijinja.Environment:
    environment = minijinja.Environment(
        templates={"status.html": (Path(__file__).parent / "status.html").read_text()},
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for filter_ in (human_bytes, human_seconds):
        environment.add_filter(filter_.__name__, filter_)
    environment.add_filter("count", lambda number: f"{number:,}".replace(",", "\u2009"))
    return environment


def render_page(status: Mapping[str, Any], rates: Mapping[str, Sequence[float]], nonce: str) -> str:
    """The document for `status_of()`; `rates` draws events a second for each stream."""
    return _environment().render_template(
        "status.html",
        nonce=nonce,
        status=status,
        uptime=human_seconds(max(0.0, status["now"] - status["started_at"])),
        lines={name: sparkline(values) for name, values in rates.items()},
        peaks={name: max(values, default=0.0) for name, values in rates.items()},
    )
