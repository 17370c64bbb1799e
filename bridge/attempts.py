"""What to do after an attempt has failed: find the items to blame by halves, attempt less, or wait before the next one.

Nothing here waits, reads a clock or knows what is attempted. `bisection` is a generator that is sent each attempt's
result; `bisect` and `bisect_async` drive it. `Backoff` says how long to wait; the caller sleeps.
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
            first, second = halves(part)
            waiting += (second, first)
    return failed


def halves(part: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """The first one is the smaller, if they differ."""
    middle = len(part) // 2
    return part[:middle], part[middle:]


def bisect(
    items: Sequence[T], attempt: Callable[[Sequence[T]], E | None], *, failed: E | None = None
) -> list[tuple[T, E]]:
    """The items that fail alone, in their order, each with its error; see bisection().

    attempt: returns the error of these items, None if they pass. It raises an error that no item causes (a lost
    connection), which ends the search. It is never called without items. failed: the error of an attempt at all of them
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


def gathered(items: Sequence[T], attempt: Callable[[list[T]], E | None]) -> tuple[list[T], list[tuple[T, E]]]:
    """As many items as pass together, and those that fail with all of these in place, each with its error.

    Where bisect() judges an item alone, this judges it among the others: one may need another that comes later.
    attempt: gets all that are to pass, in no order; what it did before is undone. A part that fails is tried again when
    others have joined, and only then cut.
    """
    good: list[T] = []
    parts: list[Sequence[T]] = [items] if items else []
    while True:
        failed: list[tuple[Sequence[T], E]] = []
        joined = False
        for part in parts:
            error = attempt([*good, *part])
            if error is None:
                good, joined = [*good, *part], True
            else:
                failed.append((part, error))
        if not failed or (not joined and all(len(part) == 1 for part, _ in failed)):
            return good, [(part[0], error) for part, error in failed]
        parts = [
            half for part, _ in failed for half in ((part,) if joined or len(part) == 1 else halves(part))
        ]


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
    """Counts consecutive failures of something that is repeated; starts again after it has worked for a while."""

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


@dataclass(slots=True)
class Limit:
    """How much to attempt at once: half of what was too much, and twice as much with each success, up to `most`."""

    most: int
    now: int = 0

    def __post_init__(self) -> None:
        self.now = self.now or self.most

    def too_much(self, tried: int) -> None:
        """So much has failed for its size."""
        self.now = max(1, min(self.now, tried) >> 1)

    def worked(self) -> None:
        """An attempt has succeeded."""
        self.now = min(self.most, self.now * 2)
