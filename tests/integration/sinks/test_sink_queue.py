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


AWAY = Reply(503, headers={"Retry-After": "3600"})
FIXED = "hook: { connection: hook, data: { n: $event.n } }\n"


def left_alone(bridge: BridgeProcess) -> list[str]:
    """Who is, as status tells: a recipient's label; "" for the destination."""
    return [one["recipient"] for one in json.loads(command(bridge, "status", "--json"))["left_alone"]]


def test_retry_now_is_tried_at_once_where_a_destination_is_left_alone(
    source: Database, target_connection: Connection, receiver: Receiver, bridge_with: Start
) -> None:
    sql = target_connection
    receiver.always = AWAY
    bridge = bridge_with(FIXED).start().wait_ready()
    with Producer(source.dsn) as producer:
        producer.transaction(payloads=[{"n": 0}])
        until(lambda: left_alone(bridge) == [""], "it is left alone for an hour")
        for number, key in ((1, None), (2, None), (3, "k"), (4, "k"), (5, None)):
            producer.transaction(payloads=[{"n": number}], **({"key": key} if key else {}))
        until_it_is(sql, "select count(*) from bridge.delivery", 6)
        assert len(receiver.requests) == 1
        # -- it is still away: one message each time that a person says so, however many they are
        for number in (2, 3, 4):
            assert "6 due now" in command(bridge, "sink", "retry", "hook", "--all")
            receiver.wait(number)
            until_it_is(sql, "select sum(attempts)::int from bridge.delivery", number)
            until(lambda: left_alone(bridge) == [""], "it is left alone again")
        assert len(receiver.requests) == 4
        # -- it is back: the message that a person names goes before what has waited for longer
        receiver.always = Reply()
        ids = {
            row[0]: row[1]
            for row in sql.execute("select (body #>> '{data,n}')::int, id::text from bridge.delivery")
        }
        command(bridge, "sink", "retry", "--id", ids[5])
        receiver.wait(5)
        assert receiver.requests[4].identity == ids[5]
    until(lambda: left_alone(bridge) == [], "it works again")


def test_retry_now_does_not_break_the_order_of_a_key(
    source: Database, target_connection: Connection, receiver: Receiver, bridge_with: Start
) -> None:
    receiver.always = AWAY
    bridge = bridge_with(FIXED).start().wait_ready()
    with Producer(source.dsn) as producer:
        producer.transaction(payloads=[{"n": 0}])
        until(lambda: left_alone(bridge) == [""], "it is left alone for an hour")
        for number in (1, 2):
            producer.transaction(payloads=[{"n": number}], key="k")
        until_it_is(target_connection, "select count(*) from bridge.delivery", 3)
        receiver.always = Reply()
        command(bridge, "sink", "retry", "--key", "k", "hook")
        receiver.wait(3)
    assert [request.json["data"]["n"] for request in receiver.requests[1:]] == [1, 2]


def test_retry_now_tries_a_recipient_that_is_left_alone(
    source: Database, target_connection: Connection, receiver: Receiver, bridge_with: Start
) -> None:
    away = {"/one", "/two"}
    receiver.decide = lambda request: AWAY if request.path in away else None
    bridge = bridge_with(HOOK).start().wait_ready()
    with Producer(source.dsn) as producer:
        for name in ("one", "two"):
            url = {"url": f"{receiver.url}/{name}", "n": 1, "secret": "s"}
            producer.transaction(payloads=[url], key=name)
        until(lambda: len(left_alone(bridge)) == 2, "both are left alone for an hour")
        away.clear()
        command(bridge, "sink", "retry", "hook", "--recipient", f"{receiver.url}/one")
        until_it_is(target_connection, "select count(*) from bridge.delivery where state = 'sent'", 1)
    assert [request.path for request in receiver.requests].count("/two") == 1
    command(bridge, "sink", "retry", "hook", "--all")
    until_it_is(target_connection, "select count(*) from bridge.delivery where state = 'sent'", 2)


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
