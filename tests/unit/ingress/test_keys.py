"""API keys: found by their digest, limited each for itself."""

from __future__ import annotations

import pytest

from bridge.ingress.settings import Keys


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_key_is_found_whole_and_only_as_a_bearer() -> None:
    keys = Keys(["one", "two"])
    assert keys.find(b"Bearer one") is not None
    assert keys.find(b"bearer  two ") is not None
    assert keys.find(b"Bearer one") != keys.find(b"Bearer two")
    for wrong in (b"", b"Bearer", b"Bearer on", b"Bearer one two", b"one", b"Basic one", b"Bearer \xff"):
        assert keys.find(wrong) is None
    assert Keys([]).find(b"Bearer ") is None


def test_without_a_rate_nothing_is_limited() -> None:
    keys = Keys(["one"])
    assert keys.take(b"d", 10**9) == 0.0


def test_a_burst_of_a_second_then_the_rate() -> None:
    clock = Clock()
    keys = Keys(["one"], 10, clock=clock)
    assert [keys.take(b"d", 1) for _ in range(10)] == [0.0] * 10
    assert keys.take(b"d", 1) == pytest.approx(0.1)
    assert keys.take(b"other", 1) == 0.0
    clock.now = 0.1
    assert keys.take(b"d", 1) == 0.0
    assert keys.take(b"d", 1) > 0
    clock.now = 100.0
    assert [keys.take(b"d", 1) for _ in range(11)][-1] > 0  # no more than a burst is saved up


def test_more_than_a_burst_at_once_is_owed() -> None:
    clock = Clock()
    keys = Keys(["one"], 10, clock=clock)
    assert keys.take(b"d", 100) == 0.0
    clock.now = 5.0
    assert keys.take(b"d", 1) == pytest.approx(4.1)
    clock.now = 9.2
    assert keys.take(b"d", 1) == 0.0
