"""What an event may cost the bridge's own process, counted and not timed: `python -m bench.budget`, in `make check`.

Of decode, plan and encode (hot_path.py): the bytecode instructions, the calls of C functions and the peak of allocated
bytes, an event. They are the same on a busy machine. More than BUDGET is an error: make it cheaper, or raise the budget
in the commit that says what is bought with it. Less than nine tenths asks for a smaller one.
"""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from types import FrameType
from typing import Any

from bench.hot_path import customers, decode, messages, planner, prepare

PYTHON = (3, 11)
"""Another one has other instructions: there nothing is compared."""


@dataclass(frozen=True, slots=True)
class Cost:
    """An event. instructions: of bytecode; calls: of C functions; peak: bytes allocated at once."""

    instructions: float
    calls: float
    peak: float

    def __str__(self) -> str:
        return f"{self.instructions:7.1f} instructions, {self.calls:6.1f} calls, {self.peak:8,.0f} bytes"


@dataclass(frozen=True, slots=True)
class Backlog:
    """rows: of a transaction; alone: every transaction is a batch of its own, as at a low rate; note: bytes of the
    longest value."""

    events: int
    rows: int
    alone: bool = False
    note: int = 150


BACKLOGS = {
    "single": Backlog(2000, 1),
    "bulk": Backlog(2000, 1000),
    "alone": Backlog(200, 1, alone=True),
    "wide": Backlog(500, 100, note=10_000),
}
BUDGET = {
    "single": Cost(320, 6.5, 2_700),
    "bulk": Cost(370, 9.0, 2_550),
    "alone": Cost(5_250, 195, 1_430),
    "wide": Cost(430, 11.5, 39_500),
}


def main() -> int:
    """Print each backlog's cost; 1 where it is not within its budget."""
    if sys.version_info[:2] != PYTHON:
        print(f"budgets are of Python {PYTHON[0]}.{PYTHON[1]}: not compared")
        return 0
    off = []
    for name, backlog in BACKLOGS.items():
        cost = measured(backlog)
        print(f"{name:7} {cost}")
        for part in ("instructions", "calls", "peak"):
            most, used = getattr(BUDGET[name], part), getattr(cost, part)
            if not 0.9 * most <= used <= most:
                off.append(f"{name}: {used:.1f} {part} an event, and the budget is {most:.1f}")
    for words in off:
        print(f"bench/budget.py: {words}", file=sys.stderr)
    return 1 if off else 0


def measured(backlog: Backlog) -> Cost:
    """Each figure in a run of its own: what counts one of them changes the others."""
    run = work(backlog)
    run()  # what is cached has been cached
    gc.collect()
    return Cost(instructions(run) / backlog.events, calls(run) / backlog.events, peak(run) / backlog.events)


def work(backlog: Backlog) -> Callable[[], None]:
    """Decode, plan and encode everything once."""
    data = list(chain(messages(backlog.events, backlog.rows, note=backlog.note)))
    known, plans = customers(), planner()
    size = 3 * backlog.rows if backlog.alone else len(data)  # begin, insert, commit
    parts = [data[:1], *(data[at : at + size] for at in range(1, len(data), size))]

    def run() -> None:
        for batch in decode(parts):
            prepare(plans, batch, known)

    return run


def instructions(run: Callable[[], None]) -> int:
    """Bytecode instructions of every Python function that it calls."""
    count = 0

    def one(_frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        count += event == "opcode"
        return one

    def each(frame: FrameType, _event: str, _: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return one

    before = sys.gettrace()
    sys.settrace(each)
    try:
        run()
    finally:
        sys.settrace(before)
    return count


def calls(run: Callable[[], None]) -> int:
    """Calls of functions that are written in C."""
    count = 0

    def each(_frame: FrameType, event: str, _: Any) -> None:
        nonlocal count
        count += event == "c_call"

    sys.setprofile(each)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count


def peak(run: Callable[[], None]) -> int:
    """Bytes at the moment when most were allocated."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


if __name__ == "__main__":
    sys.exit(main())
