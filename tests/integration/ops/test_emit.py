"""`bridge emit` says what became of its event, as far as the one who runs it may see."""

from __future__ import annotations

import json

from tests.support.world import STREAM, World

TYPE = "usage.limit_reached"
USAGE = {"customer_id": "cus_1", "metric": "api-calls", "limit": 100, "used": 95, "plan": "pro"}


def emit(world: World, *options: str, **environment: str) -> tuple[str, list[str]]:
    """The id that it printed, and what it said to standard error."""
    done = world.run("emit", TYPE, json.dumps(USAGE), *options, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr.splitlines()


def test_it_waits_until_its_event_is_applied_and_names_its_dead_letters(world: World) -> None:
    waiting, said = emit(world, "--wait", "0.1")
    assert said == [
        f"inserted, not yet applied by {STREAM}: bridge status says what it waits for,"
        f" bridge explain {waiting} what becomes of it"
    ]
    assert emit(world, "--wait", "0")[1] == []
    producer, said = emit(world, SOURCE_DSN=world.source.producer_dsn)
    assert said == [], "a role that may not read the outbox is told nothing, and does not wait"

    world.bridge().start()
    applied, said = emit(world)
    assert said == [f"applied by {STREAM}"], "also where the bridge has only just been started"
    rows = {row[0] for row in world.target.execute("select event_id::text from events.usage_limits")}
    assert rows == {row[0] for row in world.source.execute("select id::text from outbox.event")}
    assert rows > {waiting, producer, applied}

    world.target.execute("alter table events.usage_limits add check (customer_id <> 'cus_1') not valid")
    _, said = emit(world)
    assert said[0] == f"applied by {STREAM}"
    fix = said[1].partition("; ")[2]
    assert "dead letter (23514); bridge dead show " in said[1]
    assert "23514" in world.command(*fix.split()[1:])
    elsewhere = world.run("emit", TYPE, json.dumps(USAGE), WAREHOUSE_DSN="host=127.0.0.1 port=1 dbname=no")
    assert elsewhere.returncode == 0
    assert elsewhere.stderr.startswith(f"inserted; whether {STREAM} applies it cannot be seen from here: ")
