"""How long from a producer's commit until the row is visible in the target, at a steady trickle.

Both ends are written with the rows, by one machine's clock: the producer's commit timestamp, and on the
target the commit's (the bridge) or the insert's (native, Contestant.clock). All are taken before a
flush: the source's flush is inside the interval for everybody (a walsender sends what is flushed); the
target's is not, and only the durable wait for one: its mean is told beside.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

import psycopg
from psycopg import sql

from bench.backlog import last_id, trickle
from bench.contestants import Contestant
from bench.drain import Meter, Parts
from bench.servers import Servers


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds, commit to commit. flush: mean of the target's WAL flushes meanwhile. cpu:
    microseconds an event by part, the producer's backend among them."""

    events: int
    p50: float
    p99: float
    flush: float
    cpu: dict[str, float] = field(default_factory=dict)


def latency(
    servers: Servers,
    contestant: Contestant,
    rate: float,
    seconds: float,
    *,
    measure: Callable[[Contestant], Meter] = Parts,
) -> Latency:
    """A contestant that is up and idle, `rate` single-event commits a second for `seconds`."""
    contestant.prepare()
    contestant.start()
    trickle(servers, rate, 1.0)  # plans cached, caches warm; not measured
    schema, table, key = contestant.table
    place = sql.Identifier(schema, table)
    there = sql.SQL("select 1 from {} where {} = %s").format(place, sql.Identifier(key))
    with psycopg.connect(servers.database_dsn(contestant.database), autocommit=True) as watch:
        _wait_for(watch, there, last_id(servers))
        watch.execute(sql.SQL("truncate {}").format(place))
        watch.execute("select pg_stat_reset_shared('io')")
        meter = measure(contestant)
        used = meter.seconds()
        sent = trickle(servers, rate, seconds)
        _wait_for(watch, there, last_id(servers))
        after = meter.seconds()
        flush = watch.execute(
            "select coalesce(sum(fsync_time) / nullif(sum(fsyncs), 0), 0) from pg_stat_io where object = 'wal'"
            if servers.version() >= "18"
            else "select 0"
        ).fetchone()
        seen = watch.execute(
            sql.SQL("select {}, extract(epoch from {})::float8 from {}").format(
                sql.Identifier(key), sql.SQL(contestant.clock), place
            )
        ).fetchall()
    contestant.stop()
    committed = dict(
        servers.on_source(
            "select id, extract(epoch from pg_xact_commit_timestamp(xmin))::float8 from outbox.event"
            " order by seq desc limit %s",
            [sent],
        )
    )
    waits = sorted((at - committed[event]) * 1000 for event, at in seen)
    return Latency(
        len(waits),
        waits[len(waits) // 2],
        waits[len(waits) * 99 // 100],
        float(flush[0]) if flush else 0.0,
        {part: (ended - used[part]) / sent * 1e6 for part, ended in after.items() if part in used},
    )


def _wait_for(watch: psycopg.Connection, there: sql.Composed, event: UUID) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if watch.execute(there, [event]).fetchone():
            return
        time.sleep(0.05)
    raise TimeoutError("the events of the latency run did not arrive within 60 s")
