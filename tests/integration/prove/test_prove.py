"""`bridge prove` finds what was done to the target behind the bridge's back, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.prove.conftest import Command
from tests.support.producers import Traffic
from tests.support.world import STREAM, World, until

KINDS = ("lost", "doubled", "differing", "unexpected", "both")


def counts(one: dict[str, Any]) -> dict[str, int]:
    return {kind: one[kind]["count"] for kind in KINDS if one[kind]["count"]}


def without_lookups(document: dict[str, Any]) -> None:
    pipeline = document["pipelines"]["usage-limit-hits"]
    del pipeline["steps"]
    columns = pipeline["destinations"]["events"]["columns"]
    for name in ("mrr", "csm", "renewal"):
        del columns[name]


def without_lookups_in(world: World) -> None:
    world.configure(without_lookups)


def filled(world: World, events: int = 300) -> None:
    world.bridge().start().wait_ready()
    with world.producer() as producer:
        producer.burst(events)
        for _ in range(20):
            producer.transaction(3)
        producer.transaction(4, rollback=True)
    world.caught_up()


def test_what_the_bridge_did_has_no_difference(world: World, command: Command) -> None:
    filled(world)
    ran = command("prove", "--json")
    assert ran.code == 0, ran.out + ran.err
    one = ran.only
    assert one["expected"] == one["present"] == world.source.value("select count(*) from outbox.event")
    assert one["left_out"] == ["csm", "mrr", "renewal"]
    assert one["buckets_differing"] == 0
    assert "no difference" in command("prove").out


@pytest.mark.slow
def test_a_running_bridge_under_traffic_gives_no_false_alarm(world: World, command: Command) -> None:
    world.bridge().start().wait_ready()
    with Traffic(world.source.dsn, producers=2, burst=300):
        for _ in range(5):
            ran = command("prove", "--json")
            assert ran.code == 0, ran.out + ran.err
    world.law()
    assert command("prove", "--json").only["expected"] > 100


@pytest.mark.parametrize("plain", [True, False], ids=["hashed by SQL", "through the planner"])
def test_lost_differing_and_invented_rows_are_named(world: World, command: Command, plain: bool) -> None:
    world.configure(without_lookups)
    if not plain:  # a filter that lets everything pass: only the planner can say so
        world.configure(
            lambda d: d["pipelines"]["usage-limit-hits"].update(steps=[{"filter": "$event.used >= 0"}])
        )
    filled(world)
    ids = [str(row[0]) for row in world.target.execute("select event_id from events.usage_limits order by 1")]
    lost, changed, other = ids[3], ids[40], ids[77]
    world.target.execute("delete from events.usage_limits where event_id = %s", [lost])
    world.target.execute("update events.usage_limits set used = used + 1 where event_id = %s", [changed])
    world.target.execute("update events.usage_limits set plan = null where event_id = %s", [other])
    [(ghost,)] = world.target.execute(
        "insert into events.usage_limits (event_id, customer_id, payload) values (gen_random_uuid(), 'x', '{}')"
        " returning event_id"
    )
    ran = command("prove", "--json")
    assert ran.code == 1
    one = ran.only
    assert counts(one) == {"lost": 1, "differing": 2, "unexpected": 1}, ran.out
    assert one["lost"]["first"] == [lost]
    assert set(one["differing"]["first"]) == {f"{changed} (column used)", f"{other} (column plan)"}
    assert one["unexpected"]["first"] == [f"{ghost} (no such event in the outbox)"]
    assert one["expected"] == one["present"] + 1


def test_dead_letters_are_accounted_for(world: World, command: Command) -> None:
    world.target.execute("alter table events.usage_limits add check (used <> 7)")
    world.bridge().start().wait_ready()
    good = {"customer_id": "cus_1", "metric": "seats", "limit": 10, "used": 8, "plan": "pro"}
    with world.producer() as producer:
        refused = producer.transaction(3, payloads=[{**good, "used": 7}] * 3)
        broken = producer.transaction(1, payloads=[{**good, "metric": "colour"}])
        fine = producer.transaction(2, payloads=[good] * 2)
    world.caught_up()
    one = command("prove", "--json").only
    assert (counts(one), one["dead_open"], one["expected"]) == ({}, 4, 7)
    world.target.execute(
        "update bridge.dead_letter set state = 'discarded' where event_id = %s", [str(refused[0])]
    )
    world.target.execute(
        "delete from bridge.dead_letter where event_id = any(%s)", [[str(refused[1]), str(broken[0])]]
    )
    world.target.execute(
        "insert into bridge.dead_letter"
        " (id, stream, pipeline, destination, event_id, event_seq, event_type, code, cause)"
        " values (gen_random_uuid(), %s, 'usage-limit-hits', 'events', %s, 1, 't', 'c', 'c')",
        [STREAM, str(fine[0])],
    )
    one = command("prove", "--json").only
    assert counts(one) == {"lost": 2, "both": 1}
    assert set(one["lost"]["first"]) == {str(refused[1]), str(broken[0])}
    assert one["both"]["first"] == [str(fine[0])]
    assert one["dead_discarded"] == [str(refused[0])]


def test_doubled_rows_of_a_table_without_key_are_named(world: World, command: Command) -> None:
    world.target.execute("alter table events.usage_limits drop constraint usage_limits_pkey")

    def keyless(document: dict[str, Any]) -> None:
        destination = document["pipelines"]["usage-limit-hits"]["destinations"]["events"]
        destination["mode"] = "insert"
        del destination["key"]

    world.configure(keyless)
    filled(world)
    assert command("prove", "--json").code == 0
    [(doubled,)] = world.target.execute(
        "insert into events.usage_limits select * from events.usage_limits limit 1 returning event_id"
    )
    assert command("prove", "--json").only["doubled"]["first"] == [f"{doubled} (2 rows)"]


def logged(world: World) -> None:
    """A second destination, whose rows say nothing of their events."""
    world.target.execute(
        "create table events.log (metric text, used numeric, at timestamptz, note text default '-')"
    )
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


def test_rows_without_identity_are_compared_as_a_multiset(world: World, command: Command) -> None:
    logged(world)
    filled(world)
    ran = command("prove", "--json")
    assert ran.code == 0, ran.out + ran.err
    assert [one["by"] for one in ran.report["comparisons"]] == ["event", "rows"]
    world.target.execute("delete from events.log where ctid = (select min(ctid) from events.log)")
    world.target.execute(
        "insert into events.log select * from events.log where ctid = (select max(ctid) from events.log)"
    )
    world.target.execute("insert into events.log values ('ghost', 1, now())")
    one = command("prove", "--json").report["comparisons"][1]
    assert counts(one) == {"lost": 1, "doubled": 1, "unexpected": 1}


def by_customer(document: dict[str, Any]) -> None:
    destination = document["pipelines"]["usage-limit-hits"]["destinations"]["events"]
    destination["table"] = "events.latest"
    destination["key"] = ["customer_id"]
    destination["version"] = "$meta.seq"
    destination["columns"] = {
        "customer_id": "$event.customer_id",
        "used": "$event.used",
        "version": "$meta.seq",
    }


LATEST = """
create table events.latest (customer_id text primary key, used numeric, version bigint not null);
grant select, insert, update on events.latest to outbox_bridge
"""


def last_of_a_customer(world: World) -> None:
    for statement in LATEST.split(";"):
        world.target.execute(statement)
    world.configure(by_customer)


@pytest.fixture
def latest(world: World) -> None:
    last_of_a_customer(world)


def test_of_a_key_the_last_event_is_compared(world: World, command: Command, latest: None) -> None:
    bridge = world.bridge().start().wait_ready()
    good = {"customer_id": "cus_1", "metric": "seats", "limit": 10, "used": 1, "plan": "pro"}
    with world.producer() as producer:
        producer.burst(500)
        producer.transaction(2, payloads=[{**good, "used": 77}, {**good, "used": 78}])
        [last] = producer.transaction(1, payloads=[{**good, "customer_id": "marker"}])
    wait = "select count(*) from events.latest where customer_id = 'marker'"
    until(lambda: world.target.value(wait), bridge.log_tail())
    ran = command("prove", "--json")
    assert ran.code == 0, ran.out + ran.err
    assert ran.only["expected"] == world.target.value("select count(*) from events.latest")
    world.target.execute(
        "update events.latest set used = 77, version = version - 1 where customer_id = 'cus_1'"
    )
    world.target.execute("delete from events.latest where customer_id = 'marker'")
    one = command("prove", "--json").only
    assert counts(one) == {"lost": 1, "differing": 1}
    assert one["lost"]["first"] == [f"{last} (the last event of its key)"]


def test_filters_and_branches_say_where_events_belong(world: World, command: Command) -> None:
    def routed(document: dict[str, Any]) -> None:
        pipeline = document["pipelines"]["usage-limit-hits"]
        pipeline["steps"].append({"filter": "$event.metric != 'seats'"})
        pipeline["branches"] = [
            {"name": "over", "when": "$event.used >= $event.limit", "to": ["events"]},
            {"name": "rest", "to": []},
        ]

    world.configure(routed)
    world.bridge().start().wait_ready()
    over = {"customer_id": "c", "metric": "storage", "limit": 5, "used": 6, "plan": "pro"}
    with world.producer() as producer:
        producer.burst(900)
        [marker] = producer.transaction(1, payloads=[over])
        query = "select count(*) from events.usage_limits where event_id = %s"
        until(lambda: world.target.value(query, [marker]), "the marker")
    ran = command("prove", "--json")
    assert ran.code == 0, ran.out + ran.err
    assert 0 < ran.only["expected"] == world.applied() < 901
    wrong = world.source.value(
        "select id from outbox.event where payload->>'metric' = 'seats' order by seq limit 1"
    )
    world.target.execute(
        "insert into events.usage_limits (event_id, customer_id, payload) values (%s, 'x', '{}')", [wrong]
    )
    one = command("prove", "--json").only
    assert one["unexpected"]["first"] == [f"{wrong} (the configuration does not send it here)"]


def test_where_a_lookup_decides_an_absent_event_is_undecided(world: World, command: Command) -> None:
    world.configure(
        lambda d: d["pipelines"]["usage-limit-hits"]["steps"].append({"filter": "$customer.csm == 'ada'"})
    )
    world.bridge().start().wait_ready()
    ada = {"customer_id": "cus_4", "metric": "storage", "limit": 5, "used": 6, "plan": "pro"}
    with world.producer() as producer:
        producer.burst(400)
        [marker] = producer.transaction(1, payloads=[ada])
        query = "select count(*) from events.usage_limits where event_id = %s"
        until(lambda: world.target.value(query, [marker]), "the marker")
    ran = command("prove", "--json")
    assert ran.code == 0, ran.out + ran.err
    one = ran.only
    assert one["undecided"] + one["present"] == 401
    assert one["present"] == world.applied() > 10


def test_events_of_another_time_are_left_alone(world: World, command: Command) -> None:
    world.bridge().start().wait_ready()
    with world.producer() as producer:
        producer.transaction(20, via="emit")  # their ids tell the time
    world.caught_up()  # the marker's does not
    world.target.execute("delete from events.usage_limits")
    for arguments, lost in ((("--until", "2020-01-01"), 1), (("--since", "1h"), 21), (("--until", "1h"), 1)):
        assert command("prove", "--json", *arguments).only["lost"]["count"] == lost


def test_pruned_events_are_no_difference_and_what_is_left_is_compared(world: World, command: Command) -> None:
    filled(world, 100)
    old = [str(row[0]) for row in world.source.execute("select id from outbox.event order by seq limit 60")]
    world.source.execute(
        "update outbox.event set occurred_at = now() - interval '30 days' where id = any(%s)", [old]
    )
    query = (
        "select bool_and(pg_visible_in_snapshot(xid, (select floor from outbox.stream))) from outbox.event"
    )
    with world.producer() as producer:  # the registry's floor follows the ledger's when that rises again
        until(
            lambda: producer.transaction(1) and world.source.value(f"{query} where id = any(%s)", [old]),
            "prune may go on",
        )
    world.caught_up()
    assert "60 events deleted" in command("prune").out
    ran = command("prove", "--json")
    assert ran.code == 0, ran.out + ran.err
    assert ran.only["pruned"] == 60
    young = world.source.value("select id from outbox.event order by seq desc limit 1")
    world.target.execute("delete from events.usage_limits where event_id = %s", [young])
    assert command("prove", "--json").only["lost"]["first"] == [str(young)]


def test_a_refused_event_without_a_dead_letter_is_lost_without_a_key_too(
    world: World, command: Command, latest: None
) -> None:
    world.bridge().start().wait_ready()
    good = {"customer_id": "cus_1", "metric": "seats", "limit": 10, "used": 1, "plan": "pro"}
    with world.producer() as producer:
        [broken] = producer.transaction(1, payloads=[{**good, "metric": "colour"}])
        producer.transaction(1, payloads=[{**good, "customer_id": "marker"}])
    until(lambda: world.target.value("select count(*) from events.latest"), "the marker")
    assert command("prove").code == 0
    world.target.execute("delete from bridge.dead_letter")
    named = command("prove", "--json").only["lost"]["first"]
    assert named == [f"{broken} (it cannot be a row, and is not a dead letter)"]


@pytest.mark.parametrize(
    ("by", "table", "prepare"),
    [
        ("event", "usage_limits", without_lookups_in),
        ("key", "latest", last_of_a_customer),
        ("rows", "log", logged),
    ],
)
def test_events_whose_values_the_table_refuses_are_named_one_by_one(
    world: World, command: Command, by: str, table: str, prepare: Callable[[World], None]
) -> None:
    """Their dead letters are gone: only the casts of the target say which of a batch they are."""
    prepare(world)
    world.target.execute(f"alter table events.{table} alter used type smallint")
    world.bridge().start().wait_ready()
    payloads = [
        {"customer_id": f"cus_{n}", "metric": "seats", "limit": 10, "used": n, "plan": "pro"}
        for n in range(60)
    ]
    refused = (0, 17, 18, 59)
    for n in refused:
        payloads[n]["used"] = 100_000
    with world.producer() as producer:
        events = producer.transaction(payloads=payloads)
    until(lambda: world.applied(f"events.{table}") == 56, "the others are there")
    ran = command("prove", "--json")
    assert ran.code == 0, ran.out
    world.target.execute("delete from bridge.dead_letter")
    one = command("prove", "--json").report["comparisons"][-1]
    assert one["by"] == by
    assert counts(one) == {"lost": 4}
    assert {named.split()[0] for named in one["lost"]["first"]} == {str(events[n]) for n in refused}
    assert (one["present"], one["expected"]) == (56, 60)


@pytest.mark.parametrize("event", ["user.signed_up", "user.*"])
def test_columns_of_a_default_mapping_without_a_contract_are_compared_too(
    world: World, command: Command, event: str
) -> None:
    """The product page's own table: no key, no contract, no column named."""
    with world.target.connect() as owner:
        owner.execute(
            "create table events.signups (user_id text, email text, plan text, source text, referrer text,"
            " payload jsonb)"
        )
        owner.execute("grant select, insert on events.signups to outbox_bridge")

    def signups(document: dict[str, Any]) -> None:
        destination = {"connection": "warehouse", "table": "events.signups"}
        document["pipelines"] = {"signups": {"event": event, "destinations": {"signups": destination}}}

    world.configure(signups)
    world.bridge().start().wait_ready()
    world.source.execute(
        "insert into outbox.event (type, payload) select 'user.signed_up', jsonb_build_object('user_id', n::text,"
        " 'plan', 'pro', 'source', 'web') || case n when 3 then '{\"email\": \"e\"}' else '{}' end::jsonb"
        " from generate_series(1, 20) as n"
    )
    until(lambda: world.applied("events.signups") == 20, "all are there")
    before = command("prove", "--json")
    assert before.code == 0, before.out + before.err
    assert before.only["notes"] == ["not compared, because no recent event has such a field: referrer"]
    world.target.execute("update events.signups set plan = 'free' where user_id = '7'")
    world.target.execute("update events.signups set email = 'other' where user_id in ('3', '4')")
    one = command("prove", "--json").only
    assert counts(one) == {"lost": 3, "unexpected": 3}
