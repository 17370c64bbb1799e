"""What waits for a sink: listed, searched, hurried, discarded and restored, paused by cause and by recipient."""

from __future__ import annotations

import json
import shlex
from typing import Any

import psycopg

from tests.integration.sinks.conftest import Start
from tests.integration.sinks.test_delivery import until_it_is
from tests.integration.sinks.test_recipients import command
from tests.support.bridge_process import BridgeProcess
from tests.support.fixes import line_in, note
from tests.support.producers import Producer
from tests.support.receiver import Received, Receiver, Reply
from tests.support.servers import Database
from tests.support.world import until

Connection = psycopg.Connection[tuple[Any, ...]]

HOOK = "hook: { connection: hook, url: $event.url, data: { n: $event.n, secret: $event.secret } }\n"


def messages(bridge: BridgeProcess, *given: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(command(bridge, "sink", "list", *given, "--json"))["messages"]
    return found


def test_what_waits_is_listed_hurried_discarded_restored_and_paused_in_part(
    source: Database, target_connection: Connection, receiver: Receiver, bridge_with: Start
) -> None:
    sql = target_connection
    down = {"/down"}

    def decide(request: Received) -> Reply:
        return Reply(500) if request.path in down else Reply()

    receiver.decide = decide
    bridge = bridge_with(HOOK).start().wait_ready()

    def to(name: str) -> str:
        return f"{receiver.url}/{name}"

    def came(name: str) -> int:
        return sum(request.path == f"/{name}" for request in receiver.requests)

    paused = command(
        bridge, "sink", "pause", "usage/hook", "--recipient", to("quiet"), "--reason", "they asked"
    )
    assert "-> hook, recipient 127.0.0.1 " in paused
    assert to("quiet") not in paused
    with Producer(source.dsn) as producer:
        for number, name in enumerate(("quiet", "down", "well", "down")):
            url = {"url": to(name), "n": number, "secret": "s3cr3t"}
            producer.transaction(payloads=[url], key=f"{name}{number}")
        until_it_is(sql, "select count(*) from bridge.delivery where state = 'sent'", 1)
        until_it_is(sql, "select count(*) from bridge.delivery where attempts > 1", 2)
        # -- who waits, why and until when; each answer; no values
        quiet, first, second = messages(bridge)
        assert "is paused by" in quiet["waits"]
        assert "they asked" in quiet["waits"]
        assert quiet["attempts"] == came("quiet") == 0
        assert [entry["said"] for entry in first["history"][:2]] == ["http_500: HTTP 500"] * 2
        assert (
            "left alone until" in first["waits"]
            or "tried again at" in first["waits"]
            or "due" in first["waits"]
        )
        said = command(bridge, "sink", "list")
        assert "usage/hook  after http_500" in said
        assert "s3cr3t" not in said
        assert "they asked" in command(bridge, "explain", quiet["event_id"])
        assert "HTTP 500" in command(bridge, "explain", first["event_id"])
        assert "they asked" in command(bridge, "tail", "--no-follow", "-n", "9")
        assert "hook" in command(bridge, "top").partition("sink")[2]
        # -- searches
        assert [one["id"] for one in messages(bridge, "hook", "--cause", "http_500")] == [
            first["id"],
            second["id"],
        ]
        assert [one["id"] for one in messages(bridge, "--recipient", to("quiet"))] == [quiet["id"]]
        for option, value in (("--event", "event_id"), ("--key", "event_key"), ("--id", "id")):
            assert [one["id"] for one in messages(bridge, option, second[value])] == [second["id"]]
        assert messages(bridge, "--older", "1h") == []
        assert "no pipeline takes another" in command(
            bridge, "sink", "list", "--type", "another", "usage/hook"
        )
        assert len(messages(bridge, "--state", "sent")) == 1
        assert "did you mean hook?" in command(bridge, "sink", "list", "hok")
        assert "nothing is selected" in command(bridge, "sink", "discard", "hook")
        # -- paused by cause: no attempt more
        command(bridge, "sink", "pause", "hook", "--cause", "http_500", "--reason", "ticket 7")
        until(
            lambda: all("ticket 7" in one["waits"] for one in messages(bridge, "--cause", "http_500")), "told"
        )
        until(
            lambda: all(one["next_attempt_at"] > one["created_at"] for one in messages(bridge)),
            "they are put off",
        )
        # -- discarded, and restored
        assert "1 would be discarded" in command(
            bridge, "sink", "discard", "--event", first["event_id"], "--dry-run"
        )
        discarded = command(
            bridge, "sink", "discard", "hook", "--event", first["event_id"], "--reason", "too late"
        )
        assert "1 discarded" in discarded
        assert [one["id"] for one in messages(bridge, "--cause", "http_500")] == [second["id"]]
        assert "too late" in command(bridge, "explain", first["event_id"])
        assert "1 waiting again" in command(bridge, "sink", "restore", "--id", first["id"][:8])
        again = bridge.command("sink", "restore", "--id", first["id"][:8])
        assert (again.returncode, "is pending, not discarded" in again.stderr) == (1, True), again.stderr
        there = line_in(again.stderr, "bridge sink list --state")
        note(there)
        assert first["id"] in command(bridge, *shlex.split(there)[1:])
        gone = bridge.command("sink", "restore", "--id", "00000000")
        assert (gone.returncode, "kept for 7 days" in gone.stderr) == (1, True), gone.stderr
        assert {"discarded", "restored"} <= {
            e.get("did") for e in messages(bridge, "--id", first["id"])[0]["history"]
        }
        # -- all of it goes
        down.clear()
        assert "stays paused by" in command(bridge, "sink", "resume", "hook")
        assert "resumed" in command(bridge, "sink", "resume", "hook", "--cause", "http_500")
        assert came("quiet") == 0
        [held] = messages(bridge, "--recipient", to("quiet"))
        resume = line_in(held["waits"], "bridge sink resume")
        note(resume)
        assert "resumed" in command(bridge, *shlex.split(resume)[1:])
        sql.execute(
            "update bridge.delivery set next_attempt_at = now() + interval '1 hour' where state = 'pending'"
        )
        command(bridge, "sink", "retry", "hook", "--all")
        until_it_is(sql, "select count(*) from bridge.delivery where state = 'sent'", 4)
    assert came("quiet") == 1
    # -- all sinks at once
    assert "hook: paused" in command(bridge, "sink", "pause", "--all")
    assert "hook: resumed" in command(bridge, "sink", "resume", "--all")


def test_a_discarded_dead_letter_comes_back(
    source: Database, target_connection: Connection, receiver: Receiver, bridge_with: Start
) -> None:
    receiver.replies = [Reply(400)]
    bridge = bridge_with(HOOK.replace("$event.url", receiver.url)).start().wait_ready()
    with Producer(source.dsn) as producer:
        producer.transaction(payloads=[{"n": 1, "secret": "s"}])
        until_it_is(target_connection, "select count(*) from bridge.dead_letter where state = 'open'", 1)
        assert "1 discarded" in command(
            bridge, "dead", "discard", "--destination", "hook", "--reason", "noise"
        )
        [(identity, by)] = target_connection.execute(
            "select id::text, settled_by from bridge.dead_letter"
        ).fetchall()
        assert by.startswith("discarded by ")
        assert by.endswith(": noise")
        assert "no open dead letter" in command(bridge, "dead", "retry", identity)
        assert "1 restored" in command(bridge, "dead", "restore", identity[:8])
        assert "http_400" in command(bridge, "dead", "show", identity)
        command(bridge, "dead", "retry", identity)
        receiver.wait(2)
    assert receiver.requests[0].identity == receiver.requests[1].identity


def test_an_older_ledger_sends_and_says_what_it_lacks(
    source: Database, target: Database, target_connection: Connection, receiver: Receiver, bridge_with: Start
) -> None:
    sql = target_connection
    sql.execute(
        "drop table bridge.sink, bridge.sink_hold; alter table bridge.delivery drop history;"
        " alter table bridge.dead_letter drop settled_by; delete from bridge.migration where version >= 2"
    )
    receiver.replies = [Reply(500), Reply(400)]
    bridge = bridge_with(HOOK.replace("$event.url", receiver.url)).start().wait_ready()
    assert "bridge schema target" in bridge.wait_log('"ledger is older"')
    with Producer(source.dsn) as producer:
        for number in range(2):
            producer.transaction(payloads=[{"n": number, "secret": "s"}])
        until_it_is(sql, "select count(*) from bridge.delivery where state = 'sent'", 1)
        until_it_is(sql, "select count(*) from bridge.dead_letter", 1)
    assert "1 discarded" in command(bridge, "dead", "discard", "--all")
    assert "needs version 2 of the ledger" in command(bridge, "sink", "pause", "hook", "--cause", "x")
    assert "ledger_version" in command(bridge, "doctor")
    assert messages(bridge) == []
