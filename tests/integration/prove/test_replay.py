"""`bridge replay` fills a destination again and doubles nothing, killed or not."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from tests.integration.prove.conftest import Command
from tests.integration.prove.test_prove import LATEST, by_customer
from tests.support.world import World, until

GOOD = {"customer_id": "cus_1", "metric": "seats", "limit": 10, "used": 1, "plan": "pro"}
HERE = ("replay", "--destination", "events", "--since", "1h")


def put(world: World, events: int) -> None:
    """A transaction each."""
    world.source.execute(
        f"do $$ begin for i in 1..{events} loop"
        f" insert into outbox.event (type, payload) values ('usage.limit_reached', '{json.dumps(GOOD)}');"
        " commit; end loop; end $$"
    )


def is_applied(world: World) -> bool:
    return world.applied("events.usage_limits") == world.source.value("select count(*) from outbox.event")


def keyless(document: dict[str, Any]) -> None:
    destination = document["pipelines"]["usage-limit-hits"]["destinations"]["events"]
    destination["mode"] = "insert"
    del destination["key"]


def filled(world: World, events: int = 2500) -> int:
    """Events through a running bridge; how many."""
    world.bridge().start().wait_ready()
    with world.producer() as producer:
        producer.burst(events)
        producer.transaction(5)
    world.caught_up()
    return int(world.source.value("select count(*) from outbox.event"))


def test_rows_that_are_gone_come_back_beside_a_running_bridge(world: World, command: Command) -> None:
    count = filled(world)
    world.target.execute("delete from events.usage_limits where used > 1000")
    assert command("prove").code == 1
    ran = command(*HERE, "--dry-run")
    assert f"{count} would be written" in ran.out
    assert command("prove").code == 1
    ran = command(*HERE)
    assert (ran.code, f"{count} events read, {count} written" in ran.out) == (0, True), ran.out + ran.err
    assert command("prove").code == 0


@pytest.mark.parametrize("place", ["streaming", "reading the table"])
def test_all_that_is_applied_is_replayed_where_the_floor_is_behind(
    world: World, command: Command, place: str
) -> None:
    """Killed behind a commit: the ledger lists what it applied, or has a goal that it is on the way to."""
    if place == "streaming":
        for _ in range(9):
            bridge = world.bridge().start().wait_ready()
            put(world, 1)
            until(lambda: is_applied(world), "the last event is applied")
            bridge.kill()
            if world.target.value("select exists (select from bridge.applied)"):
                break  # it had not looked at the source in between
    else:
        world.text = world.text.replace("capture: slot", "capture: poll\n  batch: { max_events: 50 }")
        put(world, 300)
        assert world.bridge(BRIDGE_FAILPOINTS="apply.before=kill@4").start().wait() == -signal.SIGKILL
    gone = "select count(*) = 0 from pg_stat_activity where application_name like 'bridge/%'"
    until(lambda: world.target.value(gone), "what it has sent has ended")
    there = world.applied("events.usage_limits")
    assert 0 < there < 300
    behind = "exists (select from bridge.applied)" if place == "streaming" else "next is not null"
    assert world.target.value(f"select {behind} from bridge.checkpoint")
    world.target.execute("delete from events.usage_limits")
    ran = command(*HERE)
    assert (ran.code, f"{there} events read, {there} written" in ran.out) == (0, True), ran.out + ran.err
    world.bridge().start()
    world.caught_up()
    assert command("prove").code == 0


_SLOW = [pytest.param(act, marks=pytest.mark.slow) for act in ("kill@2", "raise", "hang")]


@pytest.mark.parametrize("act", ["kill", *_SLOW])
@pytest.mark.slow
def test_ended_early_and_run_again_it_doubles_nothing_where_no_key_guards(
    world: World, command: Command, act: str
) -> None:
    world.target.execute("alter table events.usage_limits drop constraint usage_limits_pkey")
    world.configure(keyless)
    filled(world)
    world.target.execute("delete from events.usage_limits where used > 950")
    ended = command(*HERE, BRIDGE_FAILPOINTS=f"replay.batch={act}").code
    assert ended == (1 if act == "raise" else -signal.SIGKILL)
    assert command("prove").code == 1
    ran = command(*HERE)
    assert ran.code == 0, ran.err
    assert command(*HERE).code == 0
    ran = command("prove", "--json")
    assert ran.code == 0, ran.out


def test_a_table_without_identity_is_filled_whole_or_not_at_all(world: World, command: Command) -> None:
    world.target.execute("create table events.log (metric text, used numeric, at timestamptz)")
    world.target.execute("grant select, insert on events.log to outbox_bridge")

    def log(document: dict[str, Any]) -> None:
        destinations = document["pipelines"]["usage-limit-hits"]["destinations"]
        columns = {"metric": "$event.metric", "used": "$event.used", "at": "$meta.occurred_at"}
        destinations["log"] = {
            "connection": "warehouse",
            "table": "events.log",
            "mode": "insert",
            "columns": columns,
        }

    world.configure(log)
    count = filled(world)
    here = ("replay", "--destination", "usage-limit-hits/log", "--since", "1h")
    for how in ((), ("--dry-run",)):
        refused = command(*here, *how)
        assert (refused.code, "has rows" in refused.err) == (1, True)
    world.target.execute("truncate events.log")
    dry = command(*here, "--dry-run")
    assert (dry.code, f"{count} would be written" in dry.out) == (0, True), dry.out + dry.err
    assert world.applied("events.log") == 0
    assert command(*here, BRIDGE_FAILPOINTS="replay.batch=kill@2").code == -signal.SIGKILL
    until(
        lambda: (
            not world.target.value(
                "select count(*) from pg_stat_activity where application_name like 'bridge-replay/%'"
            )
        ),
        "its backend is gone",
    )
    assert world.applied("events.log") == 0
    ran = command(*here)
    assert (ran.code, f"{count} written" in ran.out) == (0, True), ran.out + ran.err
    assert command("prove").code == 0


def test_older_events_never_overwrite_newer_ones(world: World, command: Command) -> None:
    for statement in LATEST.split(";"):
        world.target.execute(statement)

    def without_version(document: dict[str, Any]) -> None:
        by_customer(document)
        destination = document["pipelines"]["usage-limit-hits"]["destinations"]["events"]
        del destination["version"]

    world.configure(without_version)
    world.bridge().start().wait_ready()
    with world.producer() as producer:
        producer.burst(300)
        producer.transaction(2, payloads=[{**GOOD, "used": 77}, {**GOOD, "used": 78}])
        producer.transaction(1, payloads=[{**GOOD, "customer_id": "marker"}])
    until(
        lambda: world.target.value("select count(*) from events.latest where customer_id = 'marker'"),
        "marker",
    )
    refused = command(*HERE)
    assert (refused.code, "older_over_newer" in refused.err or "overwrite" in refused.err) == (1, True)
    world.configure(by_customer)
    world.target.execute(
        "update events.latest set used = 5, version = version + 1000 where customer_id = 'cus_1'"
    )
    world.target.execute("delete from events.latest where customer_id = 'marker'")
    ran = command(*HERE)
    assert ran.code == 0, ran.err
    assert world.target.value("select used from events.latest where customer_id = 'cus_1'") == 5
    assert world.target.value("select count(*) from events.latest where customer_id = 'marker'") == 1


def test_a_unit_that_was_a_dead_letter_is_resolved_by_its_replay(world: World, command: Command) -> None:
    world.target.execute("alter table events.usage_limits add constraint seven check (used <> 7)")
    world.bridge().start().wait_ready()
    with world.producer() as producer:
        producer.transaction(3, payloads=[{**GOOD, "used": 7}] * 3)
        [broken] = producer.transaction(1, payloads=[{**GOOD, "metric": "colour"}])
    world.caught_up()
    ran = command(*HERE)
    assert (ran.code, "4 cannot be written" in ran.err) == (1, True), ran.err
    assert len(world.dead_letters()) == 4
    world.target.execute("alter table events.usage_limits drop constraint seven")
    ran = command(*HERE)
    assert (ran.code, "1 cannot be written" in ran.err) == (1, True), ran.err
    assert [letter[0] for letter in world.dead_letters()] == [str(broken)]
    assert command("prove").code == 0


@pytest.mark.slow
def test_a_sink_is_replayed_only_when_told_and_once_a_name(world: World, command: Command) -> None:
    def nudge(document: dict[str, Any]) -> None:
        document["connections"]["csm"] = {"type": "slack", "webhook_url": "http://127.0.0.1:9/nobody"}
        destinations = document["pipelines"]["usage-limit-hits"]["destinations"]
        destinations["nudge"] = {"connection": "csm", "text": "{{ event.customer_id }}"}

    world.configure(nudge)
    world.bridge().start().wait_ready()
    with world.producer() as producer:
        producer.transaction(30)
    world.caught_up()
    deliveries = "select count(*) from bridge.delivery"
    count = world.target.value(deliveries)
    here = ("replay", "--destination", "nudge", "--since", "1h")
    refused = command(*here)
    assert (refused.code, "--deliver" in refused.err) == (1, True)
    for _ in range(2):
        ran = command(*here, "--deliver", "--name", "again")
        assert ran.code == 0, ran.err
        assert world.target.value(deliveries) == 2 * count
    assert command("replay", "--destination", "nudge", "--since", "1h", "--deliver").code == 0
    assert world.target.value(deliveries) == 3 * count
    ran = command("prove", "--json")
    assert (ran.code, ran.report["comparisons"][1]["present"]) == (0, count), ran.out
    world.target.execute(
        "delete from bridge.delivery where event_seq = (select min(event_seq) from bridge.delivery)"
    )
    assert command("prove", "--json").report["comparisons"][1]["lost"]["count"] == 1
