"""PgBouncer in front of the source (transaction mode) and of the target (session mode; the other is refused)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.security.pgbouncer import PgBouncer
from tests.support.world import Document, World

Pooler = Callable[..., PgBouncer]


def _poll(document: Document) -> None:
    document["source"] |= {"capture": "poll", "poll_interval": "200ms"}
    [enrich] = [step["enrich.entity"] for step in document["pipelines"]["usage-limit-hits"]["steps"]]
    enrich["cache"] = "0s"  # every batch looks up, more often than a statement stays unprepared


@pytest.mark.security(1)
@pytest.mark.fault(54, 68)
@pytest.mark.parametrize("settings", [{}, {"ignore_startup_parameters": "options"}], ids=["refuses", "drops"])
def test_polling_works_behind_a_pooler_in_transaction_mode(
    world: World, pgbouncer: Pooler, settings: dict[str, Any]
) -> None:
    """Whether it refuses the options of the startup packet or drops them in silence."""
    world.configure(_poll)
    pooler = pgbouncer(world.source.dsn, "transaction", **settings)
    with world.producer() as producer:
        producer.burst(2500)
        bridge = world.bridge(source=pooler.dsn(world.source.bridge_dsn)).start().wait_ready()
        assert "timer" in bridge.wait_log('"event":"polling"')  # LISTEN is of no use there, and it knows
        for _ in range(8):
            producer.transaction(3, via="emit")
            world.caught_up()
    assert world.law().expected > 2500
    assert not [line for line in bridge.logs if line.get("level") == "error"], bridge.log_tail()


@pytest.mark.security(1)
@pytest.mark.fault(68)
def test_a_pooler_that_cannot_carry_replication_is_named(world: World, pgbouncer: Pooler) -> None:
    pooler = pgbouncer(world.source.dsn, "transaction")
    bridge = world.bridge(source=pooler.dsn(world.source.bridge_dsn)).start()
    assert "source.capture to poll" in bridge.wait_log("a pooler cannot carry replication")


@pytest.mark.security(2)
@pytest.mark.fault(68)
@pytest.mark.parametrize("settings", [{}, {"ignore_startup_parameters": "options"}], ids=["refuses", "drops"])
def test_a_target_behind_a_pool_of_sessions_is_as_good_as_the_server(
    world: World, pgbouncer: Pooler, settings: dict[str, Any]
) -> None:
    pooler = pgbouncer(world.target.dsn, "session", **settings)
    bridge = world.bridge(target=pooler.dsn(world.target.bridge_dsn)).start().wait_ready()
    with world.producer() as producer:
        producer.burst(1000)
        producer.transaction(3)
        world.caught_up()
        bridge.kill()
        producer.transaction(3)
        bridge.start().wait_ready()
    world.law()


@pytest.mark.security(2)
@pytest.mark.fault(68)
@pytest.mark.parametrize("settings", [{}, {"ignore_startup_parameters": "options"}], ids=["refuses", "drops"])
def test_a_target_behind_a_transaction_pool_is_refused_before_any_setting(
    world: World, pgbouncer: Pooler, settings: dict[str, Any]
) -> None:
    pooler = pgbouncer(world.target.dsn, "transaction", **settings)
    with world.producer() as producer:
        producer.transaction(3)
    bridge = world.bridge(target=pooler.dsn(world.target.bridge_dsn)).start()
    assert "pool_mode = session" in bridge.wait_halted("target_pooled")
    assert world.applied() == 0
    left = world.target.value(
        "select count(*) from pg_stat_activity where application_name like 'bridge/%' and datname = current_database()"
    )
    assert left == 0
