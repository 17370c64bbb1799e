"""A stream whose source cannot be reached from here goes to a bridge that may reach it (bridge/protocol/cut_off.py)."""

from __future__ import annotations

from bridge.protocol.cut_off import PATIENCE_SECONDS, CutOff
from bridge.protocol.sharing import View


def seen(claimer: str | None, *willing: str) -> View:
    return View(["s"], {"s": set(willing)}, {} if claimer is None else {"s": claimer})


def test_it_is_handed_over_after_a_while_and_not_wanted_back_at_once() -> None:
    cut = CutOff()
    both = seen("a", "a", "b")
    for now in (0.0, PATIENCE_SECONDS - 1):
        assert cut.look(both, "a", failing={"s"}, working=(), now=now) == (set(), set())
    now = PATIENCE_SECONDS
    for _ in range(3):  # until it is done: there may be several targets, each with a look of its own
        assert cut.look(both, "a", failing={"s"}, working=(), now=now) == ({"s"}, {"s"})
    assert cut.look(seen("b", "b"), "a", failing=(), working=(), now=now + 1) == (set(), {"s"})
    assert cut.due(now + 14) == set()
    assert cut.due(now + 15) == {"s"}
    assert cut.due(now + 16) == set()  # somebody tries it
    cut.tried("s", reached=False, now=now + 20)
    assert cut.look(seen("b", "b"), "a", failing=(), working=(), now=now + 21) == (set(), {"s"})
    assert cut.due(now + 50) == {"s"}
    cut.tried("s", reached=True, now=now + 50)
    assert cut.look(seen("b", "b"), "a", failing=(), working=(), now=now + 51) == (set(), set())


def test_where_nobody_else_would_take_it_it_stays() -> None:
    cut = CutOff()
    for now in (0.0, 100.0, 200.0):
        assert cut.look(seen("a", "a"), "a", failing={"s"}, working=(), now=now) == (set(), set())


def test_where_both_are_cut_off_one_keeps_it() -> None:
    """b shuns it too, so nobody is willing but whoever has it."""
    cut = CutOff()
    cut.look(seen("a", "a", "b"), "a", failing={"s"}, working=(), now=0.0)
    assert cut.look(seen("a", "a", "b"), "a", failing={"s"}, working=(), now=20.0)[0] == {"s"}
    assert cut.look(seen(None), "a", failing=(), working=(), now=21.0) == (set(), set())  # wanted again


def test_what_fails_for_a_moment_between_attempts_counts_from_the_first() -> None:
    """Between two attempts a stream starts, without a reason; only what works ends the time."""
    cut = CutOff()
    both = seen("a", "a", "b")
    cut.look(both, "a", failing={"s"}, working=(), now=0.0)
    cut.look(both, "a", failing=(), working=(), now=5.0)
    assert cut.look(both, "a", failing={"s"}, working=(), now=10.0)[0] == {"s"}
    fresh = CutOff()
    fresh.look(both, "a", failing={"s"}, working=(), now=0.0)
    fresh.look(both, "a", failing=(), working={"s"}, now=5.0)
    assert fresh.look(both, "a", failing={"s"}, working=(), now=10.0)[0] == set()


def test_each_time_it_is_tried_later() -> None:
    cut, waits = CutOff(), []
    cut.look(seen("a", "a", "b"), "a", failing={"s"}, working=(), now=0.0)
    cut.look(seen("a", "a", "b"), "a", failing={"s"}, working=(), now=10.0)
    now = began = 10.0
    for _ in range(6):
        while not cut.due(now):
            now += 1
        waits.append(now - began)
        cut.tried("s", reached=False, now=now)
        began = now
    assert waits == [15, 30, 60, 120, 240, 300]
