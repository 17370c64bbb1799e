"""The demo's sequence: steady traffic, a rush with kills, a backlog, the verdict.

world.py has the servers, report.py the output.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, LiteralString, Protocol

import psycopg

from bridge.demo.checker import NOBODYS, Tally, check_each, install, total
from bridge.demo.producers import Crowd
from bridge.demo.world import Delivered, Slack, World

Tamper = Literal["lose", "double", "alter"]
KILLS = 3
RUSH_SECONDS = 8.0
STEADY_SECONDS, STEADY_RATE = 3.0, 200.0
OVER = range(1, 13)  # customers who are twice over their limit
REQUESTS = 20  # how often that is said at a time
_PATIENCE = 30.0  # seconds without a single new effect before we stop waiting and judge

# What a broken bridge would have left behind: the demo's own test that its verdict can be no.
_TAMPERING: dict[Tamper, str] = {
    "lose": """
        with gone as (delete from events.usage_limits where event_id = %(id)s returning event_id)
        delete from demo.effect where event_id in (select event_id from gone)""",
    "double": "insert into demo.effect values (%(id)s, 'UPDATE')",
    "alter": "update events.usage_limits set mrr = mrr + 0.01 where event_id = %(id)s",
}


class Runs(Protocol):
    """A bridge (process.py), or a fleet of them over a log (fleet.py). killed: what each kill took, so far."""

    @property
    def killed(self) -> list[str]: ...

    def start(self) -> Any: ...
    def wait_ready(self) -> Any: ...
    def kill(self) -> None: ...
    def terminate(self) -> int: ...
    def log_tail(self) -> str: ...


@dataclass(slots=True)
class Kill:
    """One SIGKILL: events committed and not delivered at that moment, seconds until ready again. what: was killed; ""
    where there is only the bridge."""

    waiting: int
    back_after: float
    what: str = ""


@dataclass(slots=True)
class Progress:
    """The current progress, for the screen."""

    phase: str = "starting"
    events: int = 0  # to come in all
    committed: int = 0
    delivered: int = 0
    kills: list[Kill] = field(default_factory=list)


@dataclass(slots=True)
class Outcome:
    """The verdict and its context."""

    verdict: Tally
    slack: Delivered
    kills: list[Kill]
    transactions: int
    rolled_back: int
    repeated: int
    backlog: int
    seconds: float
    server_version: str
    sample: dict[str, str]  # column -> printed value, of one enriched row
    sources: dict[str, Tally] = field(default_factory=dict)  # of several, each one's

    @property
    def holds(self) -> bool:
        """True if the table has each event exactly once and Slack each message at least once."""
        return self.verdict.holds and not self.slack.missing


class Story:
    """Runs it in `world`; `progress` changes meanwhile and may be read from another thread. One story a world."""

    def __init__(self, world: World, slack: Slack, bridge: Runs, events: int) -> None:
        self.world = world
        self.slack = slack
        self.bridge = bridge
        self.progress = Progress(events=events)
        self.producers = Crowd(world.producer_dsns)
        self._steady = min(int(STEADY_SECONDS * STEADY_RATE), events // 4)
        self._backlog = events // 3
        self._rush = events - self._steady - self._backlog
        self._allowance = 0
        self._each = " at each source" if len(world.databases) > 1 else ""

    def run(self, tamper: Tamper | None = None, told: Callable[[str], None] = lambda _: None) -> Outcome:
        """Run everything, in about 20 s for 20,000 events. `told` is called with a sentence at each step."""
        began = time.monotonic()
        install(self.world.source_dsns.values(), self.world.target_dsn)
        with psycopg.connect(self.world.target_dsn, autocommit=True) as self._warehouse:
            try:
                self._stream(told)
            finally:
                self.producers.stop()
                self._allowance = 0
            told("checking every event against every effect")
            self.progress.phase = "check"
            if tamper is not None:
                self._tamper(tamper)
            tallies = check_each(self.world.source_dsns, self.world.target_dsn)
            return Outcome(
                verdict=total(tallies),
                sources={name: one for name, one in tallies.items() if name not in ("", NOBODYS)},
                slack=self.slack.delivered(self._twice_over()),
                kills=self.progress.kills,
                transactions=self.producers.transactions,
                rolled_back=self.producers.rolled_back,
                repeated=self.producers.repeated,
                backlog=self._backlog,
                seconds=time.monotonic() - began,
                server_version=self.world.source.binaries.version,
                sample=self._sample(),
            )

    def _stream(self, told: Callable[[str], None]) -> None:
        told(f"bridge ready after {self._start_bridge():.1f} s")
        with ThreadPoolExecutor(1, thread_name_prefix="producers") as pool:
            self.progress.phase = "steady"
            told(f"steady traffic: {STEADY_RATE:.0f} single-row transactions a second")
            self._watch(pool.submit(self.producers.steady, self._steady, STEADY_RATE))
            self._watch(pool.submit(self.producers.twice_over, OVER[:6], REQUESTS))
            self._wait_until_delivered()
            self.progress.phase = "rush"
            told(f"rush: three producers{self._each}, {self._rush:,} events, {KILLS} kills")
            self._watch(pool.submit(self.producers.twice_over, OVER[6:], REQUESTS))
            self._rush_with_kills(pool, told)
            self._wait_until_delivered()
            self.progress.phase = "backlog"
            code = self.bridge.terminate()
            told(f"bridge stopped with SIGTERM (exit code {code}); {self._backlog:,} events accumulate")
            self._watch(pool.submit(self.producers.backlog, self._backlog))
            self._watch(pool.submit(self.producers.twice_over, OVER, REQUESTS))
            self.bridge.start()
            self._wait_until_delivered()
            told("waiting for Slack: it accepts one message per second and channel")
            self._wait_for_messages()
            self.bridge.terminate()  # what it still holds must come out before we judge

    def _start_bridge(self) -> float:
        """Seconds until it is ready."""
        began = time.monotonic()
        self.bridge.start().wait_ready()
        return time.monotonic() - began

    # -- the rush ---------------------------------------------------------------------------------------

    def _rush_with_kills(self, pool: ThreadPoolExecutor, told: Callable[[str], None]) -> None:
        part = self._rush / (KILLS + 1)
        before = self.producers.events
        stop = threading.Event()
        allowance: Callable[[], int] = lambda: 0 if stop.is_set() else self._allowance  # noqa: E731 - one line
        rush = pool.submit(self.producers.rush, allowance, self._rush / RUSH_SECONDS)
        try:
            for number in range(1, KILLS + 1):
                self._allowance = int(part * (number + 1)) if number < KILLS else self._rush
                halfway, delivered = before + int(part * (number - 0.5)), self._look()
                # Mid-stream: this bridge has delivered something, and there is more that it has not.
                self._wait(lambda at=halfway: self.producers.events >= at, rush)  # type: ignore[misc]
                self._wait(lambda at=delivered: self._look() > at, rush)  # type: ignore[misc]
                self._wait(lambda: self._look() < self.producers.events or self._idle(before), rush)
                self._kill(told)
            self._wait(lambda: self.producers.events - before >= self._rush, rush)
        finally:
            stop.set()
        rush.result()

    def _idle(self, before: int) -> bool:
        """The producers wait for us: no use in waiting for more."""
        return self.producers.events - before >= self._allowance

    def _kill(self, told: Callable[[str], None]) -> None:
        self.bridge.kill()
        what = self.bridge.killed[-1] if self.bridge.killed else ""
        waiting = self.producers.events - self._look()
        kill = Kill(max(0, waiting), self._start_bridge(), what)
        self.progress.kills.append(kill)
        of = f" ({what})" if what else ""
        told(
            f"SIGKILL {len(self.progress.kills)} of {KILLS}{of}: {kill.waiting:,} events were waiting;"
            f" ready again after {kill.back_after:.1f} s"
        )

    # -- waiting ----------------------------------------------------------------------------------------

    def _look(self, what: LiteralString = "*") -> int:
        """Effects so far; `distinct event_id`: events that have one."""
        row = self._warehouse.execute(f"select count({what}) from demo.effect").fetchone()
        self.progress.delivered = row[0] if row else 0
        self.progress.committed = self.producers.events
        return self.progress.delivered

    def _watch(self, work: Future[None]) -> None:
        while not work.done():
            self._look()
            time.sleep(0.1)
        work.result()

    def _wait(self, condition: Callable[[], bool], work: Future[None]) -> None:
        seen, since = -1, time.monotonic()
        while not condition():
            if work.done():
                work.result()
                return
            if seen != (now := self.producers.events + self._look()):
                seen, since = now, time.monotonic()
            if time.monotonic() - since > _PATIENCE:
                raise TimeoutError(f"nothing happened for {_PATIENCE:.0f} s\n{self.bridge.log_tail()}")
            time.sleep(0.002)

    def _wait_until_delivered(self) -> None:
        """All of it, or nothing new for a while: then the verdict will say what is missing."""
        seen, since = -1, time.monotonic()
        while (delivered := self._look("distinct event_id")) < self.producers.events:
            if delivered != seen:
                seen, since = delivered, time.monotonic()
            if time.monotonic() - since > _PATIENCE:
                return
            time.sleep(0.05)

    def _twice_over(self) -> list[str]:
        """The events that make a message each."""
        query = (
            "select event_id::text from demo.truth"
            " where (payload ->> 'used')::numeric >= 2 * (payload ->> 'limit')::numeric"
        )
        found: list[str] = []
        for dsn in self.world.source_dsns.values():
            with psycopg.connect(dsn) as connection:
                found += [row[0] for row in connection.execute(query)]
        return found

    def _wait_for_messages(self) -> None:
        """All of them, or nothing new for a while."""
        expected = self._twice_over()
        seen, since = -1, time.monotonic()
        while (found := self.slack.delivered(expected)).missing:
            if found.messages != seen:
                seen, since = found.messages, time.monotonic()
            if time.monotonic() - since > _PATIENCE:
                return
            time.sleep(0.05)

    # -- the end ----------------------------------------------------------------------------------------

    def _tamper(self, tamper: Tamper) -> None:
        with self._warehouse.transaction():
            self._warehouse.execute("set local session_replication_role = replica")  # our trigger keeps quiet
            row = self._warehouse.execute("select event_id from events.usage_limits limit 1").fetchone()
            self._warehouse.execute(_TAMPERING[tamper].encode(), {"id": row[0] if row else None})

    def _sample(self) -> dict[str, str]:
        query = b"""
            select event_id, customer_id, metric, "limit", used, plan, mrr, csm, renewal
            from events.usage_limits where mrr is not null limit 1"""
        cursor = self._warehouse.execute(query)
        row = cursor.fetchone() or ()
        return {column.name: str(value) for column, value in zip(cursor.description or (), row, strict=False)}
