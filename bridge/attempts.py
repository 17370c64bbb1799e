"""What to do after an attempt that failed: find by halves which items are to blame, or wait before the next one.

Nothing here waits, reads a clock or knows what is attempted. `bisection` is a generator that is told how each
attempt went; `bisect` and `bisect_async` drive it. `Backoff` says how long to wait; the caller sleeps.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")
E = TypeVar("E")


def bisection(items: Sequence[T]) -> Generator[Sequence[T], E | None, list[tuple[T, E]]]:
    """Yields what to attempt next and is sent its error, None where it passed. Returns the items that fail alone.

    All of them first, then the halves of what failed, from left to right: a part is attempted when everything
    before it has passed or has been named. What passed is not attempted again, so an attempt may have effects,
    as long as one that fails has none.

    k of n items that fail cost at most 2k * log2(n / k) + 2k attempts, about; none costs one. The parts that wait
    are on a list and not on the call stack: a generator cannot recurse cheaply.
    """
    failed: list[tuple[T, E]] = []
    waiting = [items] if items else []
    while waiting:
        part = waiting.pop()
        error = yield part
        if error is None:
            continue
        if len(part) == 1:
            failed.append((part[0], error))
        else:
            middle = len(part) // 2
            waiting += (part[middle:], part[:middle])
    return failed


def bisect(
    items: Sequence[T], attempt: Callable[[Sequence[T]], E | None], *, failed: E | None = None
) -> list[tuple[T, E]]:
    """The items that fail alone, in their order, each with its error; see bisection().

    attempt: the error of these items, None where they pass; what is nobody's fault (a lost connection) it raises,
    and that ends the search. It is never called without items. failed: the error of an attempt at all of them
    that was already made; they are not attempted together again.
    """
    search: Generator[Sequence[T], E | None, list[tuple[T, E]]] = bisection(items)
    try:
        part = next(search)
        if failed is not None:
            part = search.send(failed)
        while True:
            part = search.send(attempt(part))
    except StopIteration as end:
        found: list[tuple[T, E]] = end.value
        return found


async def bisect_async(
    items: Sequence[T], attempt: Callable[[Sequence[T]], Awaitable[E | None]]
) -> list[tuple[T, E]]:
    """As bisect(), where an attempt is awaited."""
    search: Generator[Sequence[T], E | None, list[tuple[T, E]]] = bisection(items)
    try:
        part = next(search)
        while True:
            part = search.send(await attempt(part))
    except StopIteration as end:
        found: list[tuple[T, E]] = end.value
        return found


NO_JITTER = 0.0
EQUAL_JITTER = 0.5
FULL_JITTER = 1.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait after so many failures in a row: `first` seconds, then twice as long each time, at most
    `longest`.

    jitter: the part of a wait that is drawn at random, so that what failed together does not come back together
    ("Exponential Backoff And Jitter", AWS Architecture Blog): none, half of it (equal), or all of it (full).
    """

    first: float
    longest: float
    jitter: float = EQUAL_JITTER

    def bound(self, failures: int) -> float:
        """The longest wait after so many failures; 0.0 after none."""
        if failures < 1:
            return 0.0
        return min(self.longest, self.first * 2.0 ** min(failures - 1, 64))  # 2.0**1024 would overflow

    def after(self, failures: int, chance: float | None = None) -> float:
        """Seconds to wait after so many failures. chance: uniform in [0, 1); drawn where it is not given."""
        if chance is None:
            chance = random.random()  # noqa: S311  jitter, no secret
        return self.bound(failures) * (1.0 - self.jitter + self.jitter * chance)


@dataclass(slots=True)
class Retries:
    """Counts the failures in a row of something that runs again and again; begins anew when it worked for a while."""

    backoff: Backoff
    chance: Callable[[], float] = field(default=random.random)
    failures: int = 0

    def ran(self, seconds: float) -> None:
        """It ended after so long. Three times the last wait, or the longest one, is a while: the fault is another."""
        if seconds > min(3 * self.backoff.bound(self.failures), self.backoff.longest):
            self.failures = 0

    def worked(self) -> None:
        """It is known to work: the next failure is the first."""
        self.failures = 0

    def failed(self) -> float:
        """It failed once more; seconds to wait before the next attempt."""
        self.failures += 1
        return self.backoff.after(self.failures, self.chance())
