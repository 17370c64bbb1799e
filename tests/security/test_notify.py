"""The optional trigger: a bridge that polls wakes at once, and a producer never fails for its sake."""

from __future__ import annotations

import psycopg
import pytest

from bridge.postgres.schema import install_source, notify_sql, source_sql
from tests.support.servers import Database, EmbeddedServer
from tests.support.world import Document, World


def _poll_seldom(document: Document) -> None:
    document["source"] |= {"capture": "poll", "poll_interval": "20s"}


@pytest.mark.security(1)
@pytest.mark.fault(53)
def test_a_notification_wakes_a_bridge_that_polls(world: World) -> None:
    world.configure(_poll_seldom)
    with world.source.connect() as connection:
        install_source(connection, notify=True)
        install_source(connection, notify=True)  # again: nothing changes
    bridge = world.bridge().start().wait_ready()
    assert "notify" in bridge.wait_log('"event":"polling"')
    waited = sorted(world.caught_up() for _ in range(5))
    assert waited[2] < 2.0, f"{waited}: the timer is 20 s"
    world.law()


@pytest.mark.security(1)
def test_the_trigger_is_off_unless_asked_for(source: Database) -> None:
    assert source.value("select count(*) from pg_trigger where tgname = 'outbox_bridge_notify'") == 0
    assert "notify" not in source_sql()
    assert notify_sql() in source_sql(notify=True)
    assert ' on "app"."my box"' in notify_sql("app.my box")


def _fill(connection: psycopg.Connection) -> None:
    for _ in range(100):
        connection.execute(
            "select pg_notify('other', repeat('x', 7000) || n) from generate_series(1, 5) as n"
        )


@pytest.mark.security(1)
@pytest.mark.fault(53)
def test_a_notification_queue_that_is_full_does_not_stop_a_producer(
    source_cluster: EmbeddedServer, source: Database
) -> None:
    """A listener that stays in a transaction keeps the queue; somebody else fills it."""
    source_cluster.configure(max_notify_queue_pages=64)
    source_cluster.restart()
    with source.connect() as connection:
        install_source(connection, notify=True)
        connection.execute("listen other")
        connection.execute("begin")
        connection.execute("select 1")
        with source.connect() as filler, source.connect(user="app") as producer:
            while filler.execute("select pg_notification_queue_usage()").fetchone() < (0.6,):
                filler.execute(
                    "select pg_notify('other', repeat('x', 7000) || n) from generate_series(1, 5) as n"
                )
            producer.execute("select outbox.emit('a.b', '{}')")
            with pytest.raises(psycopg.errors.OperationalError, match="too many notifications"):
                _fill(filler)
            producer.execute("select outbox.emit('a.b', '{}')")
            producer.execute("insert into outbox.event (type, payload) values ('a.b', '{}')")
    assert source.value("select count(*) from outbox.event") == 3
