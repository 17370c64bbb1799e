"""How fast a backlog becomes visible in the target.

The clock is the target's own, written with the rows (Contestant.clock), so nothing that watches takes
part. The rate leaves out the first commit: (rows - rows of the first commit) / (last - first),
which is the steady rate whatever the size of a commit, without process start.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from uuid import UUID

import psycopg
from psycopg import sql

from bench.contestants import Contestant
from bench.servers import Servers

_LIMIT = 900.0  # seconds for a drain
_START_LIMIT = 40.0  # for the first row, of a contestant that is given limited time; a JVM takes several
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Drain:
    """One contestant, one backlog. rate: events a second; cpu: microseconds an event by process; to_first:
    seconds from start to the first row; memory: peak bytes of the bridge."""

    rows: int
    commits: int
    rate: float
    to_first: float
    cpu: dict[str, float] = field(default_factory=dict)
    memory: int | None = None


class Meter(Protocol):
    """What a contestant has used."""

    def seconds(self) -> dict[str, float]:
        """CPU so far, by part."""
        ...

    def peak_memory(self) -> int | None:
        """Bytes."""
        ...


class Parts:
    """Meter: the processes that take part in an event's way, each of its own."""

    def __init__(self, contestant: Contestant) -> None:
        self._pids = contestant.processes()

    def seconds(self) -> dict[str, float]:
        """Of those that still run."""
        used = {part: cpu_seconds(pid) for part, pid in self._pids.items()}
        return {part: seconds for part, seconds in used.items() if seconds is not None}

    def peak_memory(self) -> int | None:
        """Of the bridge."""
        return peak_memory(self._pids["bridge"]) if "bridge" in self._pids else None


def drain(
    servers: Servers,
    contestant: Contestant,
    last: UUID,
    *,
    at_most: float | None = None,
    measure: Callable[[Contestant], Meter] = Parts,
) -> Drain:
    """Start, wait until the event `last` is visible (or for `at_most` seconds after the first), stop."""
    servers.target.execute("checkpoint")
    schema, table, key = contestant.table
    place = sql.Identifier(schema, table)
    some = sql.SQL("select exists (select from {})").format(place)
    final = sql.SQL("select exists (select from {} where {} = %s)").format(place, sql.Identifier(key))
    with psycopg.connect(servers.database_dsn(contestant.database), autocommit=True) as watch:
        started = servers_clock(watch)
        contestant.start()
        start_limit = _LIMIT if at_most is None else _START_LIMIT
        if not _until(watch, some, None, 0.005, start_limit):
            raise TimeoutError(f"{contestant.name} had no row in the target after {start_limit:.0f} s")
        meter = measure(contestant)
        used = meter.seconds()
        rows_then = _count(watch, place)
        done = _until(watch, final, [last], 0.02, at_most or _LIMIT)
        after = meter.seconds()
        rows_now = _count(watch, place)
        memory = meter.peak_memory()
        if not done and at_most is None:
            raise TimeoutError(f"{contestant.name} had not drained its backlog after {_LIMIT:.0f} s")
        contestant.stop()
        rows, commits, first_rows, seconds, to_first = _commits(
            watch, place, sql.SQL(contestant.clock), started
        )
    between = max(1, rows_now - rows_then)
    cpu = {part: (ended - used[part]) / between * 1e6 for part, ended in after.items() if part in used}
    return Drain(rows, commits, (rows - first_rows) / max(seconds, 1e-6), to_first, cpu, memory)


def servers_clock(connection: psycopg.Connection) -> float:
    """Unix seconds by the server."""
    row = connection.execute("select extract(epoch from clock_timestamp())::float8").fetchone()
    assert row is not None
    return float(row[0])


def _until(
    watch: psycopg.Connection,
    question: sql.Composed,
    parameters: list[UUID] | None,
    pause: float,
    limit: float,
) -> bool:
    end = time.monotonic() + limit
    while time.monotonic() < end:
        row = watch.execute(question, parameters).fetchone()
        if row is not None and row[0]:
            return True
        time.sleep(pause)
    return False


def _count(watch: psycopg.Connection, place: sql.Identifier) -> int:
    row = watch.execute(sql.SQL("select count(*) from {}").format(place)).fetchone()
    return row[0] if row else 0


def _commits(
    watch: psycopg.Connection, place: sql.Identifier, clock: sql.SQL, started: float
) -> tuple[int, int, int, float, float]:
    """Rows, commits, rows of the first commit, seconds from the first commit to the last, seconds to the first."""
    row = watch.execute(
        sql.SQL("""
            with commits as (
                select max({}) as at, count(*) as rows from {} group by xmin
            )
            select sum(rows)::bigint, count(*), (array_agg(rows order by at))[1],
                extract(epoch from max(at) - min(at))::float8, extract(epoch from min(at))::float8 - %s
            from commits""").format(clock, place),
        [started],
    ).fetchone()
    assert row is not None
    return row


def cpu_seconds(pid: int) -> float | None:
    """User and system time of all its threads so far, from /proc: None elsewhere than on Linux."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / _TICK


def peak_memory(pid: int) -> int | None:
    """Bytes: the largest resident set so far."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)
