"""Lines over a logarithmic axis, as SVG: small panels side by side. No library draws them, because the report needs
nothing else of one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 300, 230, 40, 12, 46, 44
_COLORS = ("#2563eb", "#d97706", "#059669", "#7c3aed")


@dataclass(frozen=True, slots=True)
class Series:
    """points: (x, y), x from 0 on."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Panel:
    """title: what grows, below its axis."""

    title: str
    series: Sequence[Series]


def chart(subtitle: str, panels: Sequence[Panel]) -> str:
    """The file. y begins at 0 and is the same in all panels, so that flat looks flat."""
    top = max(y for panel in panels for series in panel.series for _, y in series.points) * 1.15
    width, height = _WIDTH * len(panels), _HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
        ' font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="16" fill="#333333">{escape(subtitle)}</text>',
    ]
    names = list(dict.fromkeys(series.name for panel in panels for series in panel.series))
    for place, name in enumerate(names):
        x = _LEFT + 110 * place
        color = _COLORS[place % len(_COLORS)]
        parts.append(f'<rect x="{x}" y="24" width="14" height="4" fill="{color}"/>')
        parts.append(f'<text x="{x + 20}" y="30" fill="#333333">{escape(name)}</text>')
    for place, panel in enumerate(panels):
        parts += _panel(panel, place * _WIDTH, top, names)
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, left: int, top: float, names: Sequence[str]) -> list[str]:
    steps = sorted({x for series in panel.series for x, _ in series.points})
    low, high = _log(steps[0]), max(_log(steps[-1]), _log(steps[0]) + 1)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (_log(x) - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)
        up = y / top * (_HEIGHT - _TOP - _BOTTOM)
        return left + _LEFT + across, _HEIGHT - _BOTTOM - up

    parts = []
    for tick in range(5):
        value = top * tick / 4
        x, y = place(steps[0], value)
        parts.append(
            f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{left + _WIDTH - _RIGHT}" y2="{y:.1f}" stroke="#dddddd"/>'
        )
        parts.append(
            f'<text x="{x - 5:.1f}" y="{y + 4:.1f}" text-anchor="end" fill="#666666">{value:.0f}</text>'
        )
    for step in steps:
        x, y = place(step, 0)
        parts.append(
            f'<text x="{x:.1f}" y="{y + 14:.1f}" text-anchor="middle" fill="#666666">{_short(step)}</text>'
        )
    middle = left + _LEFT + (_WIDTH - _LEFT - _RIGHT) / 2
    parts.append(
        f'<text x="{middle:.1f}" y="{_HEIGHT - 10}" text-anchor="middle" fill="#333333">{escape(panel.title)}</text>'
    )
    for series in panel.series:
        color = _COLORS[names.index(series.name) % len(_COLORS)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in series.points))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
    return parts


def _log(x: float) -> float:
    return math.log10(max(x, 1.0))


def _short(x: float) -> str:
    if x >= 1e6:
        return f"{x / 1e6:g}M"
    return f"{x / 1e3:g}k" if x >= 1e3 else f"{x:g}"
