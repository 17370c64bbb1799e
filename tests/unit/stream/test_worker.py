"""What a worker is asked between two sessions: a stop or another plan is never missed, whenever it comes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, cast

import pytest

from bridge.errors import BridgeError
from bridge.stream.planned import FailureGuard
from bridge.stream.spec import StreamSpec, Watcher
from bridge.stream.worker import Worker

SPEC = StreamSpec("s_w", "w", "source", "p", "", "", {}, [], {}, frozenset())
FIRST, SECOND, THIRD = (replace(SPEC, stream=name) for name in ("first", "second", "third"))
MOST = 4  # sessions


class Interrupted(threading.Event):
    """Somebody else's thread comes in once, just before or just after `clear`."""

    def __init__(self, when: Literal["before", "after"], what: Callable[[], None]) -> None:
        super().__init__()
        self._when = when
        self._what: Callable[[], None] | None = what
        self.armed = False

    def clear(self) -> None:
        if self._when == "before":
            self._come()
        super().clear()
        if self._when == "after":
            self._come()

    def _come(self) -> None:
        if self.armed and self._what is not None:
            what, self._what = self._what, None
            what()


class Asked(Worker):
    """Its first session is asked to begin anew; a later one runs until it is asked to end, which ends the test."""

    def __init__(self, when: Literal["before", "after"], what: Callable[[Asked], None]) -> None:
        super().__init__(FIRST, cast(Watcher, None), FailureGuard(), lambda: None, None)
        self.ran: list[str] = []
        self._session_over = self.interrupted = Interrupted(when, lambda: what(self))

    def _session(self) -> BridgeError | None:
        self.ran.append(self.plan.stream)
        assert len(self.ran) <= MOST, f"sessions that end at once: {self.ran}"
        if len(self.ran) == 1:
            self.interrupted.armed = True
            self.reload(SECOND)
        elif not self._session_over.is_set():
            assert not self._stopping.is_set(), "it was asked to stop, and this session would never end"
            self.ran.append("until it is stopped")
            self.stop()
        return None


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_stop_between_two_sessions_is_not_missed(when: Literal["before", "after"]) -> None:
    worker = Asked(when, Worker.stop)
    worker.run()
    assert worker.ran == ["first"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_plan_that_comes_between_two_sessions_is_run(when: Literal["before", "after"]) -> None:
    worker = Asked(when, lambda worker: worker.reload(THIRD))
    worker.run()
    assert worker.ran[-2:] == ["third", "until it is stopped"]
    assert "second" not in worker.ran
