"""What the console knows of its bridge, shared by all who look: the status for a second, the last day for twenty.

What asks a server runs in threads, two at a time: a slow ledger holds up neither the bridge nor the other pages.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import psycopg

from bridge.config.model import Config
from bridge.console.running_jobs import Jobs
from bridge.errors import BridgeError
from bridge.observe.metrics import Metrics
from bridge.observe.samples import MINUTE, Sample, Sampler, read
from bridge.observe.status import status_of

_T = TypeVar("_T")
STATUS_SECONDS = 1.0
"""Ten viewers ask as often as one."""
HISTORY_SECONDS = 20.0
"""A minute's sample is not younger than that for long."""
DAY_SECONDS = 24 * 3600.0
_THREADS = 2


@dataclass(frozen=True, slots=True)
class Day:
    """The samples of the last 24 hours, oldest first. kept: by the ledgers; otherwise only since the start, and `older`
    names the streams whose ledgers do not have the table."""

    samples: list[Sample]
    older: tuple[str, ...] = ()


class Desk:
    """One for the process."""

    def __init__(
        self,
        metrics: Metrics,
        config: Callable[[], Config],
        sampler: Sampler,
        fresh: Callable[[], Awaitable[None]],
    ) -> None:
        """config: the one that runs. fresh: counts anew what a page is about to tell."""
        self.metrics = metrics
        self.config = config
        self.sampler = sampler
        self.fresh = fresh
        self.jobs = Jobs()
        self._turns = asyncio.Semaphore(_THREADS)
        self._status: tuple[float, dict[str, Any]] = (-STATUS_SECONDS, {})
        self._recent: dict[str, tuple[float, dict[str, Any]]] = {}
        self._day: tuple[float, Day] = (-HISTORY_SECONDS, Day([]))
        self._reading: asyncio.Task[Day] | None = None

    async def work(self, work: Callable[..., _T], *args: Any, **named: Any) -> _T:
        """Run what asks a server, in a thread that does not outlive the process. Raises what it raises."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[_T] = loop.create_future()

        def tell(settle: Callable[[], None]) -> None:
            if not answer.done():
                settle()

        def run() -> None:
            try:
                done = work(*args, **named)
            except BaseException as error:
                settle = partial(answer.set_exception, error)
            else:
                settle = partial(answer.set_result, done)
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(tell, settle)

        async with self._turns:
            threading.Thread(target=run, name="console", daemon=True).start()
            return await answer

    def status(self) -> dict[str, Any]:
        """As /status tells it, at most a second old."""
        at, told = self._status
        if time.monotonic() - at >= STATUS_SECONDS:
            told = status_of(self.metrics)
            self._status = (time.monotonic(), told)
        return told

    def recent(self, hours: str) -> dict[str, Any] | None:
        """What the overview of this period told, at most a second ago."""
        at, told = self._recent.get(hours, (-STATUS_SECONDS, None))
        return told if time.monotonic() - at < STATUS_SECONDS else None

    def keep_recent(self, hours: str, told: dict[str, Any]) -> None:
        self._recent[hours] = (time.monotonic(), told)

    def running(self) -> Mapping[str, Any] | None:
        """For what asks the running bridge: it is this one."""
        return self.status()

    async def day(self) -> Day:
        """One read for all who ask at once."""
        at, told = self._day
        if time.monotonic() - at >= HISTORY_SECONDS:
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self._read(), name="console-history")
            told = await asyncio.shield(self._reading)
        return told

    async def _read(self) -> Day:
        told = await self.work(self._read_ledgers)
        self._day = (time.monotonic(), told)
        return told

    def read_day(self) -> Day:
        """As day(), for an operation, which runs in a thread."""
        at, told = self._day
        if time.monotonic() - at >= HISTORY_SECONDS:
            told = self._read_ledgers()
            self._day = (time.monotonic(), told)
        return told

    def _read_ledgers(self) -> Day:
        from bridge.operate.connect import connect_ledger  # noqa: PLC0415  only when somebody looks
        from bridge.plans import stream_plans  # noqa: PLC0415

        found: dict[tuple[str, int], Sample] = {}
        older = []
        for plan in stream_plans(self.config()):
            try:
                with connect_ledger(plan, "console") as connection:
                    rows = read(connection, list(plan.rows), DAY_SECONDS)
            except (BridgeError, psycopg.Error):
                continue  # the stream itself says that its target is away
            if rows is None:
                older.append(plan.stream)
            found |= {(one.stream, round(one.at)): one for one in rows or ()}
        since = time.time() - DAY_SECONDS
        found |= {(one.stream, round(one.at)): one for one in list(self.sampler.kept) if one.at > since}
        return Day(sorted(found.values(), key=lambda one: one.at), tuple(older))


def by_minute(samples: list[Sample], now: float, seconds: float) -> dict[str, list[float | int | None]]:
    """Of one stream or all, a value a minute for the charts: `at`, `rate` (events a second), `p50`, `p99`, `lag`,
    `headroom`. A minute without a sample had no event."""
    minutes = int(seconds // MINUTE)
    first = int(now // MINUTE) - minutes + 1
    slots: dict[int, list[Sample]] = {}
    for one in samples:
        slots.setdefault(int(one.at // MINUTE) - first, []).append(one)
    told: dict[str, list[float | int | None]] = {
        name: [] for name in ("at", "rate", "p50", "p99", "lag", "headroom")
    }
    room: int | None = None
    for minute in range(minutes):
        here = slots.get(minute, [])
        rooms = [one.headroom for one in here if one.headroom is not None]
        room = min(rooms) if rooms else room
        told["at"].append(int((first + minute) * MINUTE))
        told["rate"].append(round(sum(one.events for one in here) / MINUTE, 3))
        for name in ("p50", "p99", "lag"):
            values = [value for one in here if (value := getattr(one, name)) is not None]
            told[name].append(max(values) if values else (0.0 if name == "lag" else None))
        told["headroom"].append(room)
    return told
