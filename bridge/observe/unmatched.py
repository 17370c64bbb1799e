"""Events that no pipeline takes, counted by type since the process started.

Producers choose types, so their number is bounded: the KEPT types with the most events, the newest of equal ones, have
a line of their own, and the others are one number. The log names a type when it gets its line, at most LOGGED times
an hour. A type is not a label of a metric: labels have names from the configuration only, and
`outbox_bridge_events_total{outcome="unmatched"}` counts all of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bridge.planning.taken import UNMATCHED_FIX, TypesTaken, did_you_mean, name_of, shown

KEPT = 50
LOGGED = 50
_HOUR = 3600.0
_TOLD = 10  # types in a text


@dataclass(slots=True)
class _Line:
    events: int
    first_at: float
    last_at: float


class Unmatched:
    """The counts of one process. A stream's thread counts; others read."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._since = clock()
        self._taken = TypesTaken()
        self._lines: dict[str, _Line] = {}
        self._others = 0
        self._logged: tuple[float, int] = (0.0, 0)  # the hour's beginning, lines logged in it

    def use(self, taken: TypesTaken) -> None:
        """A configuration is in force. Types that it takes or ignores are not reported any more."""
        with self._lock:
            self._taken = taken
            self._lines = {name: line for name, line in self._lines.items() if taken.unmatched(name)}

    def count(self, events: Mapping[bytes, int]) -> list[tuple[str, str]]:
        """Add a batch's events by type. Returns the types to log, each with `near`; one named "" says that the log
        names no more of them for a while."""
        now = self._clock()
        told: list[tuple[str, str]] = []
        with self._lock:
            for raw, number in events.items():
                name = name_of(raw)
                line = self._lines.get(name)
                if line is not None:
                    line.events += number
                    line.last_at = now
                    continue
                if len(self._lines) >= KEPT:
                    self._let_go()
                self._lines[name] = _Line(number, now, now)
                logged = self._count_log(now)
                if logged < LOGGED:
                    told.append((name, self._taken.near(name)))
                elif logged == LOGGED:
                    told.append(("", ""))
        return told

    def _let_go(self) -> None:
        """The line with the fewest events; of equal ones the oldest."""
        least = min(self._lines, key=lambda name: (self._lines[name].events, self._lines[name].last_at))
        self._others += self._lines.pop(least).events

    def _count_log(self, now: float) -> int:
        """How many lines this hour has before this one."""
        began, lines = self._logged
        if not 0 <= now - began < _HOUR:
            began, lines = now, 0
        self._logged = began, lines + 1
        return lines

    def as_dict(self) -> dict[str, Any]:
        """The JSON form of /status. Times are unix seconds."""
        with self._lock:
            lines = {name: (line.events, line.first_at, line.last_at) for name, line in self._lines.items()}
            others, taken, since = self._others, self._taken, self._since
        return {
            "since": since,
            "events": others + sum(line[0] for line in lines.values()),
            "types": [
                {"type": name, "events": events, "first_at": first, "last_at": last, "near": taken.near(name)}
                for name, (events, first, last) in sorted(lines.items(), key=lambda one: (-one[1][0], one[0]))
            ],
            "others": others,
            "fix": UNMATCHED_FIX if lines or others else "",
        }


def of_newest(taken: TypesTaken, counts: Mapping[str, int]) -> dict[str, Any]:
    """The JSON form, from the outbox's newest events: without times, because nobody has watched."""
    found = taken.passed_over(counts)
    types = [{"type": name, "events": count, "near": near} for name, count, near in found]
    return {
        "since": None,
        "newest": sum(counts.values()),
        "events": sum(count for _, count, _ in found),
        "types": types,
        "others": 0,
        "fix": UNMATCHED_FIX if found else "",
    }


def lines(unmatched: Mapping[str, Any] | None) -> list[str]:
    """The text; empty where every event has a pipeline."""
    if not unmatched or not unmatched["events"]:
        return []
    if unmatched["since"] is None:
        among = f"of the {unmatched['newest']} newest"
    else:
        among = f"since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(unmatched['since']))}"
    total = unmatched["events"]
    found = [f"no pipeline takes {total} event{'' if total == 1 else 's'} {among}; they are passed over:"]
    told = sorted(
        unmatched["types"], key=lambda one: not one["near"]
    )  # a misspelt type first, then the most frequent
    for one in told[:_TOLD]:
        words = [f"{one['events']} {shown(one['type'])}", did_you_mean(one["near"])]
        if "last_at" in one:
            words.insert(1, f"the last at {time.strftime('%H:%M:%S', time.localtime(one['last_at']))}")
        found.append("  " + "; ".join(filter(None, words)))
    rest = unmatched["others"] + sum(one["events"] for one in told[_TOLD:])
    return [*found, *([f"  {rest} of other types"] if rest else []), f"  fix: {unmatched['fix']}"]
