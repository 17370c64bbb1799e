"""What a contestant costs and what two SIGKILLs make of its deliveries."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString, Protocol
from uuid import UUID

import psycopg
from psycopg import sql

from bench.contestants import Contestant
from bench.drain import cpu_seconds, peak_memory
from bench.servers import Servers

_TICK = os.sysconf("SC_CLK_TCK")
_KILLED_AT = (1 / 3, 2 / 3)  # of the backlog
_LIMIT = 120.0  # seconds for a run with kills

# Written by the table's owner in the transaction that wrote the row: an effect that was rolled back is none.
_COUNTER = """
create table if not exists public.effect (event_id uuid not null);
truncate public.effect;
create or replace function public.count_effect() returns trigger language plpgsql security definer as $$
begin
    insert into public.effect values ((to_jsonb(new) ->> tg_argv[0])::uuid);
    return null;
end $$;
"""


class Killable(Contestant, Protocol):
    """pid: of its own process; None where it has none beside the servers."""

    @property
    def pid(self) -> int | None: ...

    def kill(self) -> None:
        """SIGKILL, and started again."""
        ...

    def keep_up(self) -> None:
        """Started again if it has ended by itself."""
        ...


class WholeCost:
    """Meter: `process`, the contestant's own with its children, and `postgres`, every process of both servers."""

    def __init__(self, contestant: Killable, servers: Servers) -> None:
        self._pid = contestant.pid
        self._postmasters = [
            int((cluster.data / "postmaster.pid").read_text().split()[0])
            for cluster in (servers.source, servers.target)
        ]

    def seconds(self) -> dict[str, float]:
        """CPU so far. A postmaster has counted the children that have ended."""
        family = children()
        postgres = sum(_with_ended(pid) for pid in self._postmasters)
        postgres += sum(
            cpu_seconds(child) or 0.0 for pid in self._postmasters for child in family.get(pid, [])
        )
        if self._pid is None:
            return {"postgres": postgres}
        own = sum(cpu_seconds(pid) or 0.0 for pid in [self._pid, *family.get(self._pid, [])])
        return {"process": own, "postgres": postgres}

    def peak_memory(self) -> int | None:
        """Of the process and its children: the sum of their peaks."""
        if self._pid is None:
            return None
        return sum(peak_memory(pid) or 0 for pid in [self._pid, *children().get(self._pid, [])])


def children() -> dict[int, list[int]]:
    """Of every process on this machine."""
    found: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        found.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    return found


def _with_ended(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / _TICK


@dataclass(frozen=True, slots=True)
class Kills:
    """events: in the backlog. missing: with no effect when nothing had come for a while; doubled: effects beyond
    the first of an event. seconds: from start to the last effect. killed_at: events that had come before each kill."""

    events: int
    missing: int
    doubled: int
    seconds: float
    killed_at: list[int]


def kills(servers: Servers, contestant: Killable, expected: set[UUID], patience: float) -> Kills:
    """A prepared contestant with a backlog: killed twice on the way, then left alone until it has delivered
    everything, or nothing more for `patience` seconds."""
    schema, table, key = contestant.table
    place = sql.Identifier(schema, table)
    on_target(servers, contestant.database, sql.SQL(_COUNTER))
    for statement in (
        "create trigger effect after insert or update on {} for each row execute function public.count_effect({})",
        "alter table {} enable always trigger effect",
    ):
        on_target(servers, contestant.database, sql.SQL(statement).format(place, sql.Literal(key)))
    try:
        began = time.monotonic()
        contestant.start()
        killed_at = []
        for share in _KILLED_AT:
            seen, _ = _wait_for(servers, contestant, int(share * len(expected)), patience, began)
            contestant.kill()
            killed_at.append(seen)
        _, ended = _wait_for(servers, contestant, len(expected), patience, began)
        contestant.stop()
        effects = on_target(servers, contestant.database, sql.SQL("select event_id from public.effect"))
    finally:
        statement = sql.SQL("drop trigger effect on {}").format(place)
        on_target(servers, contestant.database, statement)
    came = [event for (event,) in effects if event in expected]
    different = len(set(came))
    return Kills(len(expected), len(expected) - different, len(came) - different, ended - began, killed_at)


def _wait_for(
    servers: Servers, contestant: Killable, count: int, patience: float, began: float
) -> tuple[int, float]:
    """Until `count` different events have come, or no more do: how many have, and when the last one came."""
    seen, at = -1, time.monotonic()
    statement: LiteralString = "select count(distinct event_id) from public.effect"
    while True:
        now = time.monotonic()
        try:
            with psycopg.connect(servers.database_dsn(contestant.database), autocommit=True) as watch:
                while seen < count and now - at < patience and now - began < _LIMIT:
                    row = watch.execute(statement).fetchone()
                    now = time.monotonic()
                    if row is not None and row[0] > seen:
                        seen, at = row[0], now
                    contestant.keep_up()
                    time.sleep(0.002)
                return seen, at
        except psycopg.OperationalError:  # the target is recovering: native's kill
            if now - began > _LIMIT:
                raise
            time.sleep(0.1)


def on_target(servers: Servers, database: str, statement: sql.Composable) -> list[tuple]:
    """One statement as the target's owner."""
    with psycopg.connect(servers.database_dsn(database), autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []
