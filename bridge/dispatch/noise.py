"""Fewer messages for people: quiet hours, at most so many messages to one recipient, many messages as one.

Nothing is dropped: a message waits, and what waits too long becomes a dead letter. Pure: time is an argument.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo


@dataclass(frozen=True, slots=True)
class Quiet:
    """Hours of the day in which nothing is sent. begin after end: over midnight."""

    begin: time
    end: time
    zone: ZoneInfo

    def seconds(self, now: datetime) -> float:
        """Until the quiet hours that hold at `now` are over; 0.0: there are none now. A day on which the clocks change
        is longer or shorter."""
        here = now.astimezone(self.zone)
        at = here.time()
        over_midnight = self.begin >= self.end
        inside = (at >= self.begin or at < self.end) if over_midnight else self.begin <= at < self.end
        if not inside:
            return 0.0
        day = here.date() + timedelta(days=1 if over_midnight and at >= self.begin else 0)
        until = datetime.combine(day, self.end, self.zone).astimezone(UTC)
        return max(0.0, (until - now).total_seconds())


@dataclass(slots=True)
class Throttle:
    """At most `most` messages to one recipient in any `seconds`."""

    most: int
    seconds: float
    _sent: dict[str, deque[float]] = field(default_factory=dict)
    _tidy_at: int = 1000
    """How many recipients are remembered before those of long ago are forgotten."""

    def wait(self, recipient: str, now: float) -> float:
        """Seconds until it may have one more; 0.0: now."""
        times = self._sent.get(recipient)
        if times is None:
            return 0.0
        while times and times[0] <= now - self.seconds:
            times.popleft()
        if not times:
            del self._sent[recipient]
            return 0.0
        return times[0] + self.seconds - now if len(times) >= self.most else 0.0

    def took(self, recipient: str, at: float) -> None:
        """One more is sent."""
        if len(self._sent) >= self._tidy_at:
            self._sent = {name: times for name, times in self._sent.items() if times[-1] > at - self.seconds}
            self._tidy_at = max(1000, 2 * len(self._sent))
        self._sent.setdefault(recipient, deque(maxlen=self.most)).append(at)

    @property
    def remembered(self) -> int:
        """Of how many recipients something is known."""
        return len(self._sent)

    def back(self, recipient: str, at: float) -> None:
        """What was taken at that time was not sent."""
        times = self._sent.get(recipient)
        if times is not None and at in times:
            times.remove(at)
            if not times:
                del self._sent[recipient]


@dataclass(slots=True)
class Digests:
    """When the messages of one group go as one: `every` seconds after the oldest of them, or when there are `most`."""

    every: float
    most: int
    _windows: dict[str, _Window] = field(default_factory=dict)

    def wait(self, group: str, identity: str, age: float, now: float) -> float:
        """Seconds for which this message waits for others; 0.0: the group goes now. age: of the message, in seconds."""
        ends = now + self.every - age
        window = self._windows.get(group)
        if window is None:
            window = self._windows[group] = _Window(ends)
        window.ends = min(window.ends, ends)
        window.messages.add(identity)
        return 0.0 if len(window.messages) >= self.most else max(0.0, window.ends - now)

    def gone(self, group: str) -> None:
        """The group was taken: what comes now begins a new window."""
        self._windows.pop(group, None)


@dataclass(slots=True)
class _Window:
    ends: float
    messages: set[str] = field(default_factory=set)
