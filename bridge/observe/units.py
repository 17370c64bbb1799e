"""Sizes and durations for people."""

from __future__ import annotations

import math


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
