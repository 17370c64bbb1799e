"""When will the slot's WAL reach its limit, at the rate of the last minutes. A guess, for people and alerts."""

from __future__ import annotations

from collections import deque

_WINDOW_SECONDS = 300.0


class WalForecast:
    """Feed it what the slot retains; it answers in seconds. limit: bytes at which the bridge gives the slot up."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: deque[tuple[float, int]] = deque()

    def seconds(self, now: float, retained: int, safe: int | None) -> float | None:
        """Until the WAL brake, or until Postgres invalidates the slot if that comes first. None: not growing."""
        self._seen.append((now, retained))
        while now - self._seen[0][0] > _WINDOW_SECONDS:
            self._seen.popleft()
        began, first = self._seen[0]
        if now <= began or retained <= first:
            return None
        left = self._limit - retained if safe is None else min(self._limit - retained, safe)
        return max(0.0, left) * (now - began) / (retained - first)
