"""Processes held to a share of a core, on a machine that has fewer cores than processes.

Every period each gets the same budget of CPU time, as from a scheduler's quota (cpu.cfs_quota_us): one that has used
up its own is stopped (SIGSTOP) until it is paid back. CPU is counted, not wall-clock: waiting uses nothing up.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from types import TracebackType
from typing import Self

_PERIOD = 0.01  # seconds; a stop later than this is paid back in the periods after it


class Capped:
    """share: of one core, for each process."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._held: dict[int, tuple[float, float]] = {}  # pid -> when it began, CPU that it had used then
        self._stopped: set[int] = set()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cap", daemon=True)

    def hold(self, pid: int) -> None:
        with self._lock:
            self._held[pid] = (time.monotonic(), used(pid))

    def release(self) -> None:
        """All of them run freely from now on."""
        with self._lock:
            self._held.clear()
            for pid in self._stopped:
                _signal(pid, signal.SIGCONT)
            self._stopped.clear()

    def _run(self) -> None:
        while not self._over.wait(_PERIOD):
            with self._lock:
                for pid, (began, before) in self._held.items():
                    with contextlib.suppress(OSError):
                        self._pay(pid, began, before)

    def _pay(self, pid: int, began: float, before: float) -> None:
        budget, spent = (time.monotonic() - began) * self._share, used(pid) - before
        if budget - spent > 10 * _PERIOD * self._share:  # nothing is saved up while it waits
            self._held[pid] = (began + (budget - spent) / self._share - 10 * _PERIOD, before)
        if spent > budget and pid not in self._stopped:
            _signal(pid, signal.SIGSTOP)
            self._stopped.add(pid)
        elif spent <= budget and pid in self._stopped:
            _signal(pid, signal.SIGCONT)
            self._stopped.discard(pid)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self.release()


def used(pid: int) -> float:
    """CPU seconds of a process, to the nanosecond: Linux's clock of another process (clock_getcpuclockid)."""
    return time.clock_gettime((~pid << 3) | 2)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
