"""The failure guard: notice when a destination's units die of one cause. It is the table or the mapping then."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

WINDOW = 200

Unit = tuple[str, str]
"""(pipeline, destination)."""


class FailureGuard:
    """The last WINDOW outcomes of each destination, over sessions. Only what is durable is remembered."""

    def __init__(self) -> None:
        self._seen: dict[Unit, deque[str]] = {}

    def judge(self, unit: Unit, outcomes: Iterable[str]) -> str | None:
        """The cause that more than half of the last WINDOW units died of, with these included; "" is a
        unit that was applied. None: no storm."""
        window = deque(self._seen.get(unit, ()), WINDOW)
        window.extend(outcomes)
        causes = Counter(cause for cause in window if cause)
        cause, count = causes.most_common(1)[0] if causes else ("", 0)
        return cause if count > WINDOW // 2 else None

    def remember(self, unit: Unit, outcomes: Iterable[str]) -> None:
        self._seen.setdefault(unit, deque(maxlen=WINDOW)).extend(outcomes)
