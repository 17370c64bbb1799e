"""What `make bench-peers` says of two SIGKILLs, held against a contestant whose faults are known."""

from __future__ import annotations

from typing import LiteralString

import psycopg

from bench.backlog import produce
from bench.contestants import LIMITS_TABLE
from bench.peers.measure import kills
from bench.servers import WAREHOUSE, Servers


class Clumsy:
    """Writes a third of the events at each start, the last `again` of those before once more, and never the last
    `never`."""

    name = "clumsy"
    database = WAREHOUSE
    table = LIMITS_TABLE
    clock: LiteralString = "pg_xact_commit_timestamp(xmin)"
    pid = None

    def __init__(self, servers: Servers, *, again: int, never: int) -> None:
        self._servers = servers
        self._again, self._never = again, never
        self._written = 0

    def prepare(self) -> None: ...

    def start(self) -> None:
        events = self._servers.on_source("select id::text from outbox.event order by seq")
        until = min(len(events) // 3 + 1 + self._written, len(events) - self._never)
        first = max(0, self._written - self._again)
        with psycopg.connect(self._servers.database_dsn(self.database), autocommit=True) as target:
            for (event,) in events[first:until]:
                target.execute(
                    "insert into events.usage_limits (event_id, customer_id, payload) values (%s, 'cus_1', '{}')"
                    " on conflict (event_id) do update set customer_id = excluded.customer_id",
                    [event],
                )
        self._written = until

    def stop(self) -> None: ...

    def kill(self) -> None:
        self.start()

    def keep_up(self) -> None: ...

    def processes(self) -> dict[str, int]:
        return {}


def test_kills_count_what_is_missing_and_what_came_twice() -> None:
    with Servers() as servers:
        produce(servers, 30, 1)
        events = {event for (event,) in servers.on_source("select id from outbox.event")}
        done = kills(servers, Clumsy(servers, again=4, never=3), events, patience=0.5)
        assert (done.events, done.missing, done.doubled) == (30, 3, 8)
        assert done.killed_at == [11, 22]
        servers.on_target(WAREHOUSE, "truncate events.usage_limits")
        exact = kills(servers, Clumsy(servers, again=0, never=0), events, patience=5.0)
        assert (exact.missing, exact.doubled) == (0, 0)
        triggers = "select count(*) from pg_trigger where tgname = 'effect'"
        assert servers.on_target(WAREHOUSE, triggers) == [(0,)]
