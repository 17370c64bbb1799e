"""Several sources in one file and one process: what each command, each message and each row says of its source."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from tests.integration.ops.conftest import emit, usage
from tests.integration.sinks.conftest import SECRET
from tests.support.receiver import Receiver
from tests.support.servers import Database, create_database, drop_database, template_of
from tests.support.world import STREAM, World, until

EU = "outbox_bridge_eu_warehouse"


@pytest.fixture
def eu(source: Database) -> Iterator[Database]:
    made = create_database(source.server, f"{source.name}_eu", template_of("source"))
    yield made
    drop_database(made)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with closing(Receiver()) as made:
        yield made


def several(world: World, eu: Database, *more: Callable[[dict[str, Any]], object]) -> None:
    """The source that there was, and another."""

    def change(document: dict[str, Any]) -> None:
        document["sources"] = {"source": document.pop("source"), "eu": {"dsn": "${EU_DSN}"}}
        for one in more:
            one(document)

    world.configure(change)
    world.environment["EU_DSN"] = eu.bridge_dsn


TOLD = {"connection": "hook", "data": {"from": "$meta.source"}}


def with_hook(document: dict[str, Any], receiver: Receiver) -> None:
    hook = {"type": "webhook", "url": receiver.url, "allow": ["127.0.0.0/8"], "secret": SECRET}
    document["connections"]["hook"] = hook


def also_told(document: dict[str, Any], receiver: Receiver) -> dict[str, Any]:
    """The pipeline, whose events also go to the hook, with their source."""
    with_hook(document, receiver)
    pipeline: dict[str, Any] = document["pipelines"]["usage-limit-hits"]
    pipeline["destinations"]["told"] = TOLD
    for branch in pipeline.get("branches", ()):
        branch["to"] = ["events", "told"]
    return pipeline


def test_events_of_each_source_arrive_once_and_say_where_they_are_from(
    world: World, source: Database, target: Database, eu: Database, receiver: Receiver
) -> None:
    target.execute("alter table events.usage_limits add column region text")

    def change(document: dict[str, Any]) -> None:
        pipeline = also_told(document, receiver)
        pipeline["destinations"]["events"]["columns"]["region"] = "$meta.source"
        document["pipelines"]["eu-only"] = {**pipeline, "sources": "eu", "destinations": {}} | {
            "destinations": {"told": {"connection": "hook", "data": {"from": "only $meta.source"}}}
        }
        document["pipelines"]["eu-only"].pop("branches", None)

    several(world, eu, change)
    world.environment["SOURCE_DSN"], world.environment["EU_DSN"] = source.dsn, eu.dsn
    assert "source eu: database" in world.command("install")
    world.environment["SOURCE_DSN"], world.environment["EU_DSN"] = source.bridge_dsn, eu.bridge_dsn
    said = world.command("doctor")
    assert "source eu: registry: stream outbox_bridge_eu_warehouse" in said
    bridge = world.bridge(EU_DSN=eu.bridge_dsn).start().wait_ready()
    emit(source, usage(), usage(used="many"))
    [first, _] = emit(eu, usage(), usage(used="many"))
    until(lambda: world.applied() == 2, "one row each")
    assert target.execute("select region, count(*)::int from events.usage_limits group by 1 order by 1") == [
        ("eu", 1),
        ("source", 1),
    ]
    until(lambda: len(receiver.requests) >= 3, "a message each, and one more of eu")
    assert sorted(request.json["data"]["from"] for request in receiver.requests) == [
        "eu",
        "only $meta.source",
        "source",
    ]

    state = world.json("status")
    assert {one["stream"]: one["source"] for one in state["streams"]} == {STREAM: "source", EU: "eu"}
    assert "  of source eu" in world.command("status")
    until(
        lambda: world.json("status")["by_source"]["eu"]["dead_letters"].get("usage-limit-hits") == 2,
        "counted",
    )
    assert re.search(
        r"pipeline usage-limit-hits: .*\n  source source: 2 open .*\n  source eu: 2 open",
        world.command("status"),
    )
    assert "sink told: 3 sent\n  source source: 1 sent\n  source eu: 2 sent" in world.command("status")
    assert re.findall(r"^  source (eu|source) .*2 *$", world.command("top"), re.M)[:2] == ["source", "eu"]
    page = bridge.get("/")[1]
    assert "from eu to warehouse" in page
    assert "from eu</td><td>2 sent" in page
    metrics = bridge.get("/metrics")[1]
    assert f'outbox_bridge_stream_info{{connection="warehouse",source="eu",stream="{EU}"}} 1.0' in metrics
    assert "applied" in world.command("explain", first)
    assert "applied" in world.command("tail", "--source", "eu", "--no-follow")
    ran = world.run("tail", "--no-follow")
    assert ran.returncode == 2
    assert "fix: say which: --source source" in ran.stderr
    ran = world.run("emit", "--source", "ue", "usage.limit_reached", json.dumps(usage()))
    assert ran.returncode == 2
    assert "fix: available: eu, source" in ran.stderr
    world.command("emit", "--source", "eu", "usage.limit_reached", json.dumps(usage()))
    assert world.applied() == 3
    assert eu.value("select count(*) from outbox.event") == 3

    letters = world.json("dead", "list", "--json")
    assert len(letters) >= 2
    assert target.value("select count(distinct stream) from bridge.dead_letter where state = 'open'") == 2
    assert "0 events deleted" in world.command("prune", "--source", "eu")
    assert "source eu: 0 events deleted" in world.command("prune")
    for mapped in (True, False):
        proof = world.json("prove", "--json")
        assert proof["differences"] == 0, proof
        assert (
            sum(one["expected"] for one in proof["comparisons"] if one["name"] == "events.usage_limits") == 5
        )
        told = [note for one in proof["comparisons"] for note in one["notes"] if "$meta.source" in note]
        assert bool(told) != mapped
        world.configure(
            lambda document: document["pipelines"]["usage-limit-hits"]["destinations"]["events"][
                "columns"
            ].pop("region", None)
        )
    assert bridge.terminate() == 0
    offline = world.json("status", code=1)
    assert {one["source"] for one in offline["streams"]} == {"source", "eu"}


def test_one_source_becomes_several_and_nothing_comes_again(
    world: World, source: Database, target: Database, eu: Database
) -> None:
    """docs/scale-out.md, From one source to several."""
    eu.execute("create publication outbox_bridge_eu for table outbox.event with (publish = 'insert')")
    bridge = world.bridge(EU_DSN=eu.bridge_dsn).start().wait_ready()
    emit(source, usage(), usage(used="many"))
    until(lambda: world.applied() == 1, "a row")
    until(lambda: target.value("select count(*) from bridge.dead_letter") == 1, "a dead letter")
    letter = target.value("select id from bridge.dead_letter")
    before = world.checkpoint("applied_lsn")
    assert bridge.terminate() == 0
    several(world, eu)
    bridge = world.bridge(EU_DSN=eu.bridge_dsn).start().wait_ready()
    emit(eu, usage())
    emit(source, usage())
    until(lambda: world.applied() == 3, "one more of each")
    assert target.value("select id from bridge.dead_letter") == letter
    assert target.value(
        "select %s::pg_lsn < applied_lsn from bridge.checkpoint where stream = %s", [before, STREAM]
    )
    assert bridge.get("/metrics")[1].count('outcome="applied"') >= 1
    assert target.value("select count(distinct event_id) from events.usage_limits") == world.applied() == 3
    assert target.value("select count(*) from bridge.checkpoint") == 2


def test_outboxes_that_number_their_events_alike_do_not_meet(
    world: World, source: Database, target: Database, eu: Database, receiver: Receiver
) -> None:
    """The same id in two sources: two events, of which each has its dead letter and its message."""

    def change(document: dict[str, Any]) -> None:
        with_hook(document, receiver)
        own = {"table": "public.own", "columns": {"seq": "id", "xid": "xid"}}
        for one in document["sources"].values():
            one.update(own)
        document["pipelines"] = {
            "all": {
                "event": "t",
                "destinations": {"told": TOLD},
            }
        }
        document.pop("tests", None)
        document["events"] = {"t": {"n": "number"}}

    for database, publication in ((source, "outbox_bridge"), (eu, "outbox_bridge_eu")):
        database.execute(
            "create table own (id bigserial primary key, type text not null, payload jsonb not null,"
            " xid xid8 default pg_current_xact_id()); grant select on own to outbox_bridge;"
            f" drop publication if exists {publication};"
            f" create publication {publication} for table own with (publish = 'insert')"
        )
    several(world, eu, change)
    world.bridge(EU_DSN=eu.bridge_dsn).start().wait_ready()
    for database in (source, eu):
        database.execute("""insert into own (type, payload) values ('t', '{"n": 1}'), ('t', '{"n": "x"}')""")
    until(lambda: len(receiver.requests) == 2, "a message of each")
    assert {request.json["data"]["from"] for request in receiver.requests} == {"source", "eu"}
    assert len({request.identity for request in receiver.requests}) == 2
    until(lambda: target.value("select count(*) from bridge.dead_letter") == 2, "a dead letter of each")


def test_messages_and_dead_letters_of_one_source_are_told_apart(
    world: World, source: Database, target: Database, eu: Database, receiver: Receiver
) -> None:
    """`dead` and `sink` name each row's source, and `--source` leaves the others alone."""
    eu.execute("create publication outbox_bridge_eu for table outbox.event with (publish = 'insert')")

    def change(document: dict[str, Any]) -> None:
        also_told(document, receiver)

    several(world, eu, change)
    bridge = world.bridge(EU_DSN=eu.bridge_dsn).start().wait_ready()
    said = world.command("sink", "pause", "told")
    assert "source eu: usage-limit-hits -> told: paused." in said
    assert "bridge sink resume usage-limit-hits/told --source eu" in said
    assert "source source: usage-limit-hits -> told: paused." in said
    for database in (source, eu):
        [event, _] = emit(database, usage(), usage(used="many"))
    waiting = "select count(*) from bridge.delivery where state = 'pending'"
    until(lambda: target.value(waiting) == 2, "a message of each waits")
    until(lambda: target.value("select count(*) from bridge.dead_letter") >= 2, "a dead letter of each")

    for command in (
        ("dead", "list"),
        ("dead", "discard", "--all"),
        ("sink", "list"),
        ("sink", "pause", "told"),
    ):
        ran = world.run(*command, "--source", "ue")
        assert (ran.returncode, "fix: available: eu, source" in ran.stderr) == (2, True), ran.stderr
    listed = world.json("dead", "list")
    assert {one["source"] for one in listed} == {"source", "eu"}
    assert "source eu: usage-limit-hits" in world.command("dead", "list")
    letter = world.json("dead", "list", "--source", "eu")[0]["ids"][0]
    assert world.json("dead", "show", letter)["source"] == "eu"
    tried = world.json("dead", "retry", "--all", "--dry-run", code=1)["letters"]
    assert {one["source"] for one in tried} == {"source", "eu"}
    world.command("dead", "discard", "--all", "--source", "eu")
    assert {one["source"] for one in world.json("dead", "list")} == {"source"}

    messages = world.json("sink", "list")
    assert {one["source"] for one in messages["messages"]} == {"source", "eu"}
    assert {one["source"] for one in messages["groups"]} == {"source", "eu"}
    assert {one["waits"].split(" by ")[0] for one in messages["messages"]} == {"paused"}
    assert "source eu: usage-limit-hits/told" in world.command("sink", "list")
    [only] = world.json("sink", "list", "--source", "eu")["messages"]
    assert only["source"] == "eu"
    alone = world.json("status")["left_alone"]
    assert {one["source"] for one in alone} == {"source", "eu"}
    assert "usage-limit-hits -> told: resumed" in world.command("sink", "resume", "told", "--source", "eu")
    until(lambda: [one.json["data"]["from"] for one in receiver.requests] == ["eu"], "only eu's message")
    until(
        lambda: [one["source"] for one in world.json("status")["left_alone"]] == ["source"], "one is paused"
    )
    assert "    1  source source: usage-limit-hits/told" in world.command("sink", "discard", "--all")

    shown = world.json("sink", "preview", "told", "--event", event)
    assert [one["source"] for one in shown] == ["eu"]
    assert "'eu'" in str(shown[0]["payload"])
    every = world.json("sink", "preview", "told", "--event", json.dumps(usage()))
    assert {one["source"] for one in every} == {"source", "eu"}
    ran = world.run("sink", "test", "told", "--event", json.dumps(usage()))
    assert "fix: say which: --source source" in ran.stderr
    world.command("sink", "test", "told", "--event", json.dumps(usage()), "--source", "eu")
    assert bridge.terminate() == 0


def test_a_renamed_sinks_messages_stay_with_their_source(
    world: World, source: Database, target: Database, eu: Database, receiver: Receiver
) -> None:
    eu.execute("create publication outbox_bridge_eu for table outbox.event with (publish = 'insert')")

    def change(document: dict[str, Any]) -> None:
        with_hook(document, receiver)
        document["pipelines"] = {"all": {"event": "usage.*", "destinations": {"told": TOLD}}}
        document.pop("tests", None)

    several(world, eu, change)
    bridge = world.bridge(EU_DSN=eu.bridge_dsn).start().wait_ready()
    world.command("sink", "pause", "told")
    for database in (source, eu):
        emit(database, usage())
    until(lambda: target.value("select count(*) from bridge.delivery") == 2, "a message of each waits")
    assert bridge.terminate() == 0

    def rename(document: dict[str, Any]) -> None:
        destinations = document["pipelines"]["all"]["destinations"]
        destinations["said"] = destinations.pop("told")

    world.configure(rename)
    assert "2 messages moved to all/said" in world.command("sink", "move", "told", "said")
    of = "select stream, destination from bridge.delivery where state = 'pending' order by 1"
    assert target.execute(of) == [(EU, "said"), (STREAM, "said")]
    world.command("sink", "resume", "said")
    world.bridge(EU_DSN=eu.bridge_dsn).start().wait_ready()
    until(lambda: len(receiver.requests) == 2, "both are sent")
    assert sorted(one.json["data"]["from"] for one in receiver.requests) == ["eu", "source"]


def test_a_stream_that_is_fenced_stands_by_and_the_others_go_on(
    world: World, source: Database, target: Database, eu: Database
) -> None:
    def poll(document: dict[str, Any]) -> None:
        for one in document["sources"].values():
            one.update(capture="poll", poll_interval="100ms")

    several(world, eu, poll)
    bridge = world.bridge(failpoints="apply.before=sleep:1@2", EU_DSN=eu.bridge_dsn).start().wait_ready()
    emit(eu, usage())
    until(lambda: world.applied() == 1, "the first")
    emit(eu, usage())
    until(lambda: any("apply.before: sleep" in line for line in bridge.lines), "in a batch of eu")
    bridge.pause()
    successor = world.bridge(EU_DSN=eu.bridge_dsn)
    successor.arguments = ("--stream", EU)
    successor.start()
    until(lambda: world.applied() == 2, "the successor has applied it")
    bridge.resume()
    bridge.wait_log('"reason":"fenced"')
    emit(source, usage())
    until(lambda: world.applied() == 3, "the other stream goes on")

    def phases() -> dict[str, tuple[str, str | None]]:
        state = json.loads(bridge.get("/status")[1])
        return {one["stream"]: (one["phase"], one["reason"]) for one in state["streams"]}

    until(lambda: phases() == {STREAM: ("polling", None), EU: ("standby", None)}, "it stands by")
    assert bridge.get("/readyz")[0] == 200
    emit(eu, usage())
    until(lambda: world.applied() == 4, "the successor has the stream")
    assert successor.terminate() == 0
    emit(eu, usage())
    until(lambda: world.applied() == 5, "it takes the stream again")
    assert target.value("select count(*) from rig.effects") == 5
    assert bridge.terminate() == 0
