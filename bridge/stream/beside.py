"""One piece of work in a thread of its own, while its caller does another."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Generic, Protocol, TypeVar


class Closing(Protocol):
    """What holds a connection."""

    def close(self) -> None: ...


T = TypeVar("T", bound=Closing)


class Beside(Generic[T]):
    """Begins at once. result(): waits for it, or raises its error. abandon(): closes it, as soon as it is there."""

    def __init__(self, work: Callable[[], T], name: str) -> None:
        self._work = work
        self._future: Future[T] = Future()
        threading.Thread(target=self._body, name=name, daemon=True).start()

    def _body(self) -> None:
        try:
            made = self._work()
        except BaseException as error:
            self._future.set_exception(error)
        else:
            self._future.set_result(made)

    def result(self) -> T:
        return self._future.result()

    def abandon(self) -> None:
        self._future.add_done_callback(_close)


def _close(future: Future[T]) -> None:
    with suppress(Exception):
        future.result().close()
