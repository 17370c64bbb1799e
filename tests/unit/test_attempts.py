"""bridge/attempts.py: what fails alone is named, at the promised cost, and waits double up to their bound."""

from __future__ import annotations

import ast
import asyncio
import random
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from math import ceil, log2
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.attempts import (
    EQUAL_JITTER,
    FULL_JITTER,
    NO_JITTER,
    Backoff,
    Retries,
    bisect,
    bisect_async,
    gathered,
)

batches = st.lists(st.booleans(), max_size=200)
"""Of each item, whether it is bad."""


class Attempts:
    """Fails for parts with a bad item; remembers each part, and what has passed."""

    def __init__(self, bad: Sequence[bool]) -> None:
        self.bad = bad
        self.parts: list[list[int]] = []
        self.passed: list[int] = []

    def __call__(self, part: Sequence[int]) -> str | None:
        self.parts.append(list(part))
        wrong = [item for item in part if self.bad[item]]
        if wrong:
            return f"{wrong}"
        self.passed += part
        return None


def most_attempts(items: int, failing: int) -> int:
    """A failing part has two halves that are attempted; at each depth no more parts fail than items do."""
    if not items:
        return 0
    depths = ceil(log2(items))
    return 1 + 2 * sum(min(2**depth, failing) for depth in range(depths))


@given(batches)
def test_exactly_the_bad_items_are_named_in_order(bad):
    found = bisect(range(len(bad)), Attempts(bad))
    assert found == [(item, f"[{item}]") for item, wrong in enumerate(bad) if wrong]


@given(batches)
def test_what_passes_is_attempted_in_order_and_once(bad):
    attempts = Attempts(bad)
    bisect(range(len(bad)), attempts)
    assert attempts.passed == [item for item, wrong in enumerate(bad) if not wrong]


@given(batches)
def test_a_part_is_attempted_when_all_before_it_is_decided(bad):
    """Effects happen in the order of the items, whatever fails."""
    attempts = Attempts(bad)
    named = bisect(range(len(bad)), attempts)
    decided: set[int] = set()
    for part in attempts.parts:
        assert decided >= set(range(part[0]))
        if len(part) == 1 or not any(bad[item] for item in part):
            decided.update(part)
    assert decided == set(range(len(bad)))
    assert len(named) == sum(bad)


@given(batches)
def test_the_cost_is_bounded(bad):
    attempts = Attempts(bad)
    bisect(range(len(bad)), attempts)
    assert len(attempts.parts) <= most_attempts(len(bad), sum(bad))
    assert [] not in attempts.parts


@pytest.mark.parametrize("failing", [1, 2, 3, 10, 100, 1000, 1024])
def test_the_cost_is_about_what_the_docstring_says(failing):
    items = 1024
    bad = [item in set(random.Random(failing).sample(range(items), failing)) for item in range(items)]
    attempts = Attempts(bad)
    bisect(range(items), attempts)
    assert len(attempts.parts) <= 2 * failing * log2(items / failing) + 2 * failing


@given(batches)
def test_no_failure_costs_one_attempt(bad):
    good = [False] * len(bad)
    attempts = Attempts(good)
    assert bisect(range(len(good)), attempts) == []
    assert attempts.parts == ([[*range(len(good))]] if good else [])


@given(batches.filter(any))
def test_a_failure_that_is_known_is_not_attempted_again(bad):
    whole, told = Attempts(bad), Attempts(bad)
    found = bisect(range(len(bad)), whole)
    error = Attempts(bad)(range(len(bad)))
    assert bisect(range(len(bad)), told, failed=error) == found
    assert told.parts == whole.parts[1:]


@given(batches)
def test_awaited_attempts_are_the_same(bad):
    attempts, awaited = Attempts(bad), Attempts(bad)

    async def attempt(part: Sequence[int]) -> str | None:
        await asyncio.sleep(0)
        return awaited(part)

    found = asyncio.run(bisect_async(range(len(bad)), attempt))
    assert found == bisect(range(len(bad)), attempts)
    assert awaited.parts == attempts.parts


def test_items_that_fail_only_together_are_not_named():
    """Two that meet: the second half passes once the first one is in."""
    assert bisect([1, 2], lambda part: "they meet" if len(part) == 2 else None) == []


def test_what_is_nobodys_fault_ends_the_search():
    attempted: list[Sequence[int]] = []

    def attempt(part: Sequence[int]) -> str | None:
        attempted.append(part)
        if len(part) == 1:
            raise ConnectionError("gone")
        return "wrong"

    with pytest.raises(ConnectionError, match="gone"):
        bisect([1, 2, 3, 4], attempt)
    assert attempted == [[1, 2, 3, 4], [1, 2], [1]]


@given(
    st.floats(0.001, 10),
    st.floats(10, 1000),
    st.sampled_from([NO_JITTER, EQUAL_JITTER, FULL_JITTER]),
    st.floats(0, 1, exclude_max=True),
)
def test_waits_double_up_to_the_longest(first, longest, jitter, chance):
    backoff = Backoff(first, longest, jitter)
    bounds = [backoff.bound(failures) for failures in range(200)]
    assert bounds[:2] == [0.0, first]
    assert bounds[-1] == longest
    for one, next_one in pairwise(bounds[1:]):
        assert next_one == min(longest, 2 * one)
    for failures, bound in enumerate(bounds):
        wait = backoff.after(failures, chance)
        assert bound * (1 - jitter) <= wait <= bound
        assert bound * (1 - jitter) <= backoff.after(failures) <= bound


def test_jitter_is_the_part_that_is_drawn():
    assert Backoff(4.0, 4.0, NO_JITTER).after(1, 0.25) == 4.0
    assert Backoff(4.0, 4.0, EQUAL_JITTER).after(1, 0.25) == 2.5
    assert Backoff(4.0, 4.0, FULL_JITTER).after(1, 0.25) == 1.0


def test_failures_in_a_row_wait_longer_until_it_worked_a_while():
    retries = Retries(Backoff(1.0, 10.0, NO_JITTER))
    assert [retries.failed() for _ in range(5)] == [1.0, 2.0, 4.0, 8.0, 10.0]
    retries.ran(10.0)
    assert retries.failed() == 10.0
    retries.ran(10.1)
    assert [retries.failed(), retries.failed()] == [1.0, 2.0]
    retries.ran(6.0)
    assert retries.failed() == 4.0
    retries.worked()
    assert retries.failed() == 1.0


def test_a_first_run_of_any_length_leaves_the_first_wait():
    for seconds in (0.0, 0.01, 1e6):
        retries = Retries(Backoff(1.0, 10.0, NO_JITTER))
        retries.ran(seconds)
        assert retries.failed() == 1.0


# --- items that need each other ---------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=12))
def test_what_passes_together_is_kept_and_only_the_culprits_are_named(
    items: list[tuple[int, bool]],
) -> None:
    """Each item needs another one (by its number, which may not exist), and may be bad by itself."""
    numbered = list(enumerate(items))

    def sound(some: list[tuple[int, tuple[int, bool]]]) -> bool:
        there = {n for n, _ in some}
        return all(not bad and (needs == n or needs in there) for n, (needs, bad) in some)

    good, failed = gathered(numbered, lambda some: None if sound(some) else "no")
    assert sound(good)
    assert sorted([*good, *(one for one, _ in failed)]) == numbered
    for one, error in failed:
        assert error == "no"
        assert not sound([*good, one])


def test_children_that_come_before_their_parents_cost_few_attempts() -> None:
    children, parents = [("child", n) for n in range(500)], [("parent", n) for n in range(500)]
    attempts = 0

    def attempt(some: list[tuple[str, int]]) -> str | None:
        nonlocal attempts
        attempts += 1
        there = {n for kind, n in some if kind == "parent"}
        return None if all(n in there for kind, n in some if kind == "child") else "no"

    good, failed = gathered([*children, ("child", 1000), *parents], attempt)
    assert [one for one, _ in failed] == [("child", 1000)]
    assert len(good) == 1000
    assert attempts < 120


# --- one policy: nothing else in bridge/ halves or doubles by hand ---------------------------------------

BRIDGE = Path(__file__).parents[2] / "bridge"
Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def functions(source: str) -> list[Function]:
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, Function)]


def is_operation(node: ast.AST, operator: type[ast.operator], number: int) -> bool:
    return (
        isinstance(node, ast.BinOp)
        and isinstance(node.op, operator)
        and isinstance(node.right, ast.Constant)
        and node.right.value == number
    )


def halves(function: Function) -> bool:
    """It computes a middle, and goes on with parts: slices, ranges, or calls of itself."""
    nodes = [*ast.walk(function)]
    middle = any(is_operation(n, ast.FloorDiv, 2) or is_operation(n, ast.RShift, 1) for n in nodes)
    calls = {ast.unparse(node.func).rpartition(".")[2] for node in nodes if isinstance(node, ast.Call)}
    return middle and (any(isinstance(n, ast.Slice) for n in nodes) or bool(calls & {"range", function.name}))


def doubles(function: Function) -> bool:
    """It raises two to a power that is not written down: how long to wait after so many failures."""
    return any(
        isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Pow)
        and isinstance(node.left, ast.Constant)
        and not isinstance(node.right, ast.Constant)
        for node in ast.walk(function)
    )


def doubles_in_place(function: Function) -> bool:
    """It makes a wait of the last one: `wait *= 2`, `min(longest, wait * 2)`."""
    return any(
        (isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Mult))
        or (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) == "min"
            and any(is_operation(part, ast.Mult, 2) for part in ast.walk(node))
        )
        for node in ast.walk(function)
    )


def found_in_bridge(judge: Callable[[Function], bool]) -> list[str]:
    paths = sorted(BRIDGE.rglob("*.py"))
    assert len(paths) > 100
    return [
        f"{path.relative_to(BRIDGE)}:{function.name}"
        for path in paths
        for function in functions(path.read_text())
        if judge(function)
    ]


@pytest.mark.parametrize(
    ("judge", "only"),
    [
        (halves, ["attempts.py:halves"]),
        (doubles, ["attempts.py:bound"]),
        (doubles_in_place, ["attempts.py:worked"]),
    ],
)
def test_bisection_and_back_off_stand_once(judge, only):
    assert found_in_bridge(judge) == only


@pytest.mark.parametrize(
    ("judge", "body"),
    [
        (halves, "m = len(x) // 2; return f(x[:m]) + f(x[m:])"),
        (halves, "m = len(x) >> 1; return [*self.f(x, m), *self.f(m, x)]"),
        (halves, "n = len(x); return [g(x.pick(range(n // 2)))]"),
        (doubles, "sleep(0.1 * 2 ** tries)"),
        (doubles, "return min(60, 2.0 ** (self.failures - 5))"),
        (doubles_in_place, "pause *= 2"),
        (doubles_in_place, "return min(LONGEST, pause * 2 or 0.25)"),
    ],
)
def test_what_would_be_a_second_one_is_recognised(judge, body):
    [function] = functions(f"def f(self, x, tries): {body}")
    assert judge(function)
