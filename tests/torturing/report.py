"""What happened during the torture, counted, and what must have."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

CLASSES = (
    "kills with a batch open",
    "kills between commit and confirmation",
    "kills at random",
    "freezes",
    "clean stops",
    "target crashes",
    "source crashes",
    "target sessions ended",
    "lost commit answers",
    "links reset",
    "links half open",
    "slots dropped with events pending",
    "slots advanced with events pending",
    "publications toggled",
    "tables missing for a while",
    "table locks",
    "transactions rolled back",
    "transactions in two phases",
    "transactions larger than a batch",
    "duplicate keys",
    "dead letters",
    "takeovers",
)
"""What must have happened at least once."""


class Happened:
    """What happened, counted and written down."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.log: list[dict[str, Any]] = []
        self._began = time.monotonic()
        self._lock = threading.Lock()

    def add(self, what: str, **detail: Any) -> None:
        with self._lock:
            self.counts[what] += 1
            if "transactions" not in what and what != "duplicate keys":
                at = round(time.monotonic() - self._began, 2)
                self.log.append({"at": at, "what": what, **detail})

    def missing(self) -> list[str]:
        """The classes of faults that have not struck."""
        return [name for name in CLASSES if not self.counts[name]]
