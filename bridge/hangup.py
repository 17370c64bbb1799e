"""SIGHUP that comes before the daemon listens to it: remembered, where the kernel's default would end the process.

systemd counts a unit as started when the process exists, so a `systemctl reload` or a rotated secret's hook may be
early. What is left is the start of the interpreter itself.
"""

from __future__ import annotations

import signal

_asked: list[int] = []


def remember() -> None:
    """From now on; until the daemon's own handler stands."""
    signal.signal(signal.SIGHUP, lambda number, _: _asked.append(number))


def was_asked() -> bool:
    """Since remember() was called."""
    return bool(_asked)
