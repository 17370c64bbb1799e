"""A halted stream's slot and oldest event are still seen, and so are every target's dead letters."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

from bridge.errors import Halt, Retry
from bridge.observe.backlog import Backlog, BacklogWatch, idle, pending_query
from bridge.observe.metrics import Metrics
from bridge.observe.state import StreamState
from bridge.postgres.outbox import Outbox
from bridge.postgres.whose import Owned
from tests.support.servers import Database

STREAM = "outbox_bridge_warehouse"


@dataclass
class Plan:
    source_dsn: str
    target_dsn: str
    stream: str = STREAM
    source: str = "source"
    outbox: Outbox = field(default_factory=Outbox)
    publication: str = "outbox_bridge"
    family: frozenset[str] = frozenset({STREAM})
    sinks: frozenset[tuple[str, str]] = frozenset()
    max_retained_wal: int = 8 << 30

    @property
    def rows(self) -> list[str]:
        return [self.stream]

    def units(self) -> list[tuple[str, str]]:
        return []


async def look(metrics: Metrics, plans: list[Plan]) -> None:
    """One look, over connections of its own."""
    backlog = Backlog(metrics, Owned())
    try:
        await backlog.look(plans)
    finally:
        await backlog.close()


def halted_stream() -> tuple[Metrics, StreamState]:
    metrics = Metrics()
    state = metrics.health.add(StreamState(STREAM, "warehouse"))
    state.halt(Halt("a table is gone", reason="table_missing"))
    return metrics, state


def started(target: Database) -> None:
    """The stream has a ledger, which does not say of which source."""
    target.execute(
        "insert into bridge.checkpoint (stream, session, mode, floor) values (%s, gen_random_uuid(), 'new', '3:3:')",
        [STREAM],
    )


def register(source: Database, slot: str) -> None:
    source.execute(
        "insert into outbox.stream (stream, slot, floor) values (%s, %s, pg_current_snapshot())",
        [STREAM, slot],
    )


def test_a_halted_stream_shows_its_slot_and_how_long_the_oldest_event_waits(
    source: Database, target: Database
) -> None:
    slot = f"backlog_{source.name}"[:63]
    source.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
    try:
        register(source, slot)
        metrics, state = halted_stream()
        plan = Plan(source.bridge_dsn, target.bridge_dsn)
        asyncio.run(look(metrics, [plan]))
        assert state.snapshot.pending_since is None
        source.execute(
            "insert into outbox.event (type, payload, occurred_at) values"
            " ('usage.limit_reached', '{}', now() - interval '1 hour'), ('usage.limit_reached', '{}', now())"
        )
        asyncio.run(look(metrics, [plan]))
        assert 3599 < state.snapshot.pending_age(time.time()) < 3700
        assert state.snapshot.slot == slot
        assert state.snapshot.slot_active is False
        assert (state.snapshot.slot_retained_bytes or 0) > 0
        state.enter("streaming")
        assert state.snapshot.pending_since is None
        asyncio.run(look(metrics, [plan]))
        assert state.snapshot.pending_since is None, "a stream that works speaks for itself"
    finally:
        source.execute("select pg_drop_replication_slot(%s)", [slot])


def test_events_that_the_stream_has_applied_since_its_floor_are_not_pending(
    source: Database, target: Database
) -> None:
    register(source, "no_such_slot")
    source.execute("insert into outbox.event (type, payload) values ('usage.limit_reached', '{}')")
    metrics, state = halted_stream()
    state.update(last_event_at=time.time() + 1)
    asyncio.run(look(metrics, [Plan(source.bridge_dsn, target.bridge_dsn)]))
    assert state.snapshot.pending_since is None
    assert state.snapshot.slot_active is False
    assert state.snapshot.slot_retained_bytes is None


def test_a_long_backlog_is_not_read_to_learn_how_long_its_oldest_event_waits(source: Database) -> None:
    """It was, at every start: seconds of a core of the source's, while the bridge had the backlog to drain."""
    register(source, "no_such_slot")
    source.execute(
        "insert into outbox.event (type, payload) select 'usage.limit_reached', '{}' from generate_series(1, 20000)"
    )
    with psycopg.connect(source.bridge_dsn) as connection:
        query = sql.SQL("explain (analyze, format json) {}").format(pending_query(Outbox()))
        row = connection.execute(
            query, {"stream": STREAM, "witness": str(UUID(int=1)), "after": None}
        ).fetchone()
    assert row is not None
    read = [node["Actual Rows"] + node.get("Rows Removed by Filter", 0) for node in nodes(row[0][0]["Plan"])]
    assert max(read) <= 100, row[0]


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """A plan's node and all below it."""
    return [plan, *(node for below in plan.get("Plans", []) for node in nodes(below))]


def test_a_starting_stream_looks_for_itself_unless_something_is_wrong() -> None:
    state = StreamState(STREAM, "target")
    assert not idle(state.snapshot)
    state.trouble(Retry("the source is away", reason="connection"))
    assert idle(state.snapshot)


def test_open_dead_letters_are_counted_by_pipeline(source: Database, target: Database) -> None:
    started(target)
    target.execute(
        "insert into bridge.dead_letter (id, stream, pipeline, destination, event_id, event_seq, event_type, code,"
        " cause, state) select gen_random_uuid(), %s, 'p', 'd', n::text, n, 't', '23502', 'c',"
        " case when n < 4 then 'open' else 'resolved' end from generate_series(1, 5) n",
        [STREAM],
    )
    metrics, _ = halted_stream()
    asyncio.run(look(metrics, [Plan(source.bridge_dsn, target.bridge_dsn)]))
    assert b'outbox_bridge_dead_letters{pipeline="p"} 3.0' in metrics.exposition()


def test_messages_that_wait_for_a_sink_are_counted_with_the_oldest_ones_age(target: Database) -> None:
    started(target)
    target.execute(
        "insert into bridge.delivery (id, stream, pipeline, destination, event_id, event_seq, event_type, body,"
        " state, created_at) select gen_random_uuid(), %s, 'p', 'nudge', n::text, n, 't', '{}',"
        " case when n < 4 then 'pending' else 'sent' end, now() - n * interval '1 hour'"
        " from generate_series(1, 5) n",
        [STREAM],
    )
    metrics, _ = halted_stream()
    plan = Plan(target.bridge_dsn, target.bridge_dsn)
    asyncio.run(look(metrics, [plan]))
    [count, age] = metrics.waiting["", "nudge"]
    assert (count, 3 * 3600 <= age < 3 * 3600 + 600) == (3, True)
    assert b'outbox_bridge_deliveries_pending{destination="nudge"} 3.0' in metrics.exposition()
    target.execute("update bridge.delivery set state = 'sent'")
    asyncio.run(look(metrics, [plan]))
    assert b'outbox_bridge_deliveries_pending{destination="nudge"} 0.0' in metrics.exposition()
    assert (
        b'outbox_bridge_oldest_pending_delivery_age_seconds{destination="nudge"} 0.0' in metrics.exposition()
    )


def test_a_server_that_is_away_costs_nothing_but_the_news(target: Database) -> None:
    away = "host=127.0.0.1 port=1 dbname=app"
    metrics, state = halted_stream()
    metrics.set_dead_letters({("", "p"): 2})
    state.update(pending_since=5.0)

    async def story() -> None:
        stop = asyncio.Event()
        watching = asyncio.create_task(BacklogWatch(metrics, lambda: [Plan(away, away)], Owned(), stop).run())
        await look(metrics, [Plan(away, target.bridge_dsn)])
        stop.set()
        async with asyncio.timeout(10):
            await watching

    asyncio.run(story())
    assert state.snapshot.pending_since == 5.0
    asyncio.run(look(metrics, [Plan(away, away)]))
    assert b'outbox_bridge_dead_letters{pipeline="p"} 0.0' in metrics.exposition()


def test_a_silent_source_hides_nothing_of_another(source: Database, target: Database) -> None:
    for _ in range(2):
        source.execute("select outbox.emit('t', '{}', 'the same')")
    metrics, _ = halted_stream()
    away = "host=127.0.0.1 port=1 dbname=app"
    plans = [Plan(away, target.bridge_dsn, "s", "away"), Plan(source.bridge_dsn, target.bridge_dsn)]
    asyncio.run(look(metrics, plans))
    assert metrics.health.suppressed == {"t": 1}
