"""A destination or pipeline is renamed, removed or made a table while messages wait for it: none is stranded."""

from __future__ import annotations

import json
import re
import shlex
import signal
from collections.abc import Mapping
from typing import Any

import psycopg

from bridge.planning.plan import Owner
from tests.integration.sinks.conftest import Start
from tests.integration.sinks.test_delivery import until_it_is
from tests.integration.sinks.test_recipients import command
from tests.support.bridge_process import BridgeProcess
from tests.support.fixes import line_in, note
from tests.support.producers import Producer
from tests.support.receiver import Received, Receiver, Reply
from tests.support.servers import Database
from tests.support.world import STREAM, until

Connection = psycopg.Connection[tuple[Any, ...]]

HOOK = "hook: { connection: hook, data: { n: $event.n } }\n"


def reload(bridge: BridgeProcess, before: str, after: str) -> None:
    text = bridge.config.read_text()
    assert before in text
    bridge.config.write_text(text.replace(before, after))
    bridge.signal(signal.SIGHUP)
    bridge.wait_log('"reloaded"')


def left(bridge: BridgeProcess) -> dict[str, Any]:
    """Name to the messages that are left behind."""
    told = json.loads(command(bridge, "status", "--json"))["left_behind"]
    return {one["name"]: one for one in told if one["kind"] == "messages"}


def typed(bridge: BridgeProcess, fix: str, *more: str, fill: Mapping[str, str] | None = None) -> str:
    """A printed fix, run as it is printed. fill: for its placeholders."""
    note(fix)
    for place, value in (fill or {}).items():
        assert place in fix
        fix = fix.replace(place, value)
        note(fix)
    program, *words = shlex.split(fix)
    assert program == "bridge"
    return command(bridge, *words, *more)


def test_messages_of_a_renamed_pipeline_are_told_and_moved_with_their_ids(
    source: Database, target_connection: Connection, receiver: Receiver, bridge_with: Start
) -> None:
    sql = target_connection

    def decide(request: Received) -> Reply:
        return Reply(400) if request.json["data"]["n"] == 9 else Reply(500) if refuses else Reply()

    refuses = True
    receiver.decide = decide
    bridge = bridge_with(HOOK).start().wait_ready()
    with Producer(source.dsn) as producer:
        for number in range(6):
            producer.transaction(payloads=[{"n": number}], key=f"k{number % 3}")
        producer.transaction(payloads=[{"n": 9}], key="refused")
        until_it_is(sql, "select count(*) from bridge.delivery where state = 'dead'", 1)
        until_it_is(
            sql, "select least(count(*), 3) from bridge.delivery where attempts > 0 and state <> 'dead'", 3
        )
        command(bridge, "sink", "pause", "hook", "--cause", "http_500", "--reason", "they know")
        reload(bridge, "  usage:", "  alerts:")
        bridge.wait_log('"left behind"')  # and the dispatcher that had the claims is gone
        ids = {request.identity for request in receiver.requests}
        rows = sql.execute(
            "select event_id, id::text, event_seq, state = 'pending' and attempts > 0 from bridge.delivery"
            " order by event_seq"
        ).fetchall()
        events = [row[0] for row in rows]
        held = [row[0] for row in rows if row[3] and row[0] != events[1]]
        found = left(bridge)["usage/hook"]
        assert (found["name"], found["count"]) == ("usage/hook", 6)
        assert found["fix"] == "bridge sink move usage/hook alerts/hook"
        told = json.loads(command(bridge, "status", "--json"))["left_behind"]
        assert {one["kind"] for one in told if one["fix"] == found["fix"]} == {"messages", "dead_letters"}
        assert found["fix"] in command(bridge, "doctor")
        explained = command(bridge, "explain", events[0])
        assert "usage/hook is not a sink of this configuration" in explained
        move = line_in(explained, "bridge sink move usage/hook NEW")
        assert "usage -> hook: waits: usage/hook is not a sink" in command(
            bridge, "tail", "--no-follow", "-n", "50"
        )
        proven = command(bridge, "prove")
        assert "usage/hook: 6 messages wait for a sink" in proven
        assert proven.endswith("no difference\n"), "they are not lost"
        assert 'outbox_bridge_left_behind{kind="messages",name="usage/hook"} 6.0' in bridge.get("/metrics")[1]
        assert "usage/hook is not in the configuration any more" in command(bridge, "dead", "retry", "--all")
        # One of these events has a message under the new name already, as after a dead letter that was retried.
        sql.execute(
            "insert into bridge.delivery (id, stream, pipeline, destination, event_id, event_seq, event_type, body,"
            " state) select %s, stream, 'alerts', destination, event_id, event_seq, event_type, body, 'sent'"
            " from bridge.delivery where event_id = %s",
            [Owner("").unit_id(events[1], "alerts", "hook"), events[1]],
        )
        refuses = False
        before = len(receiver.requests)
        assert "5 messages would be moved" in typed(bridge, found["fix"], "--dry-run")
        assert "5 messages would be moved" in typed(bridge, move, "--dry-run", fill={"NEW": "alerts/hook"})
        assert left(bridge)["usage/hook"]["count"] == 6
        said = typed(bridge, found["fix"], "--reason", "it has another name")
        waits = {
            one["event_id"]: one["waits"]
            for one in json.loads(command(bridge, "sink", "list", "--json"))["messages"]
        }
        assert all("cause http_500 is paused by" in waits[event] for event in held), waits
        [resume] = [line for line in said.splitlines() if "usage/hook was paused by" in line]
        typed(bridge, resume[resume.index("bridge sink resume") :])
        assert "5 messages moved to alerts/hook" in said
        assert "1 open dead letters moved to alerts/hook" in said
        assert "1 discarded: their event has a message at alerts/hook already" in said
        until_it_is(
            sql, "select count(*) from bridge.delivery where state = 'sent' and pipeline = 'alerts'", 6
        )
        assert "0 messages moved" in typed(bridge, found["fix"]), "nothing is left, and nothing is sent twice"
    sent = receiver.requests[before:]
    assert sorted(request.json["data"]["n"] for request in sent) == [0, 2, 3, 4, 5]
    assert {request.identity for request in sent} <= {row[1] for row in rows}, (
        "as their receiver may know them"
    )
    assert ids & {request.identity for request in sent}
    assert [r.json["data"]["n"] for r in sent if r.json["data"]["n"] % 3 == 2] == [2, 5], (
        "in the order of their key"
    )
    explained = command(bridge, "explain", events[0])
    assert "moved from usage/hook to alerts/hook by" in explained
    assert "it has another name" in explained
    assert "http_500: HTTP 500" in explained, "what the receiver answered before"
    # The dead letter is the new destination's: it is rendered by its template, and has the id that it had.
    receiver.decide = lambda _: None
    retry = line_in(said, "bridge dead retry --cause CODE").removesuffix(" sends them")
    typed(bridge, retry, fill={"CODE": sql.execute("select code from bridge.dead_letter").fetchall()[0][0]})
    until_it_is(sql, "select count(*) from bridge.delivery where state = 'sent' and pipeline = 'alerts'", 7)
    [identity] = [row[1] for row in rows if row[0] == events[-1]]
    assert receiver.requests[-1].identity == identity
    proven = command(bridge, "prove")
    assert "the messages of usage/hook, which the configuration no longer has" in proven
    assert proven.endswith("no difference\n"), proven


def test_what_a_person_has_just_ended_is_not_told_again_by_status(
    source: Database, target_connection: Connection, receiver: Receiver, bridge_with: Start
) -> None:
    """The bridge counts every 15 s, and when somebody asks."""
    receiver.decide = lambda request: Reply(400 if request.json["data"]["n"] == 9 else 500)
    bridge = bridge_with(HOOK).start().wait_ready()
    with Producer(source.dsn) as producer:
        for number in (1, 2, 3, 9):
            producer.transaction(payloads=[{"n": number}])
        until_it_is(target_connection, "select count(*) from bridge.delivery where state = 'dead'", 1)
        until_it_is(target_connection, "select count(*) from bridge.delivery where attempts > 0", 4)
    reload(bridge, "    hook:", "    siren:")
    bridge.wait_log('"left behind"')
    until(lambda: _letters(bridge) == 1, "the dead letter is told")
    assert left(bridge)["usage/hook"]["count"] == 3
    identity = json.loads(command(bridge, "sink", "list", "usage/hook", "--json"))["messages"][0]["id"]
    discard = ("sink", "discard", "--id", identity)
    until(lambda: "1 discarded" in command(bridge, *discard), "the old dispatcher does not send it any more")
    assert left(bridge)["usage/hook"]["count"] == 2
    assert "2 messages moved" in command(bridge, "sink", "move", "usage/hook", "usage/siren")
    assert json.loads(bridge.get("/status")[1])["left_behind"] == [], "over HTTP too"
    assert left(bridge) == {}
    assert "1 discarded" in command(bridge, "dead", "discard", "--all")
    assert _letters(bridge) == 0


def _letters(bridge: BridgeProcess) -> int:
    told = json.loads(command(bridge, "status", "--json"))["pipelines"]
    return sum(one["dead_letters"] for one in told)


def test_messages_of_a_removed_destination_become_dead_letters_in_time(
    source: Database, target_connection: Connection, receiver: Receiver, bridge_with: Start
) -> None:
    sql = target_connection
    receiver.always = Reply(500)
    short = "brief: { connection: hook, max_age: 5s, digest: { by: $event.customer_id, every: 2s }, data: $event }\n"
    bridge = bridge_with(HOOK + short).start().wait_ready()
    command(bridge, "sink", "pause", "hook", "--reason", "they move house")
    with Producer(source.dsn) as producer:
        producer.transaction(payloads=[{"n": 1, "customer_id": "c"}])
        until_it_is(sql, "select count(*) from bridge.delivery where state = 'pending'", 2)
        [event] = {row[0] for row in sql.execute("select event_id from bridge.delivery")}
        # Another stream's message, of a destination with this name: not ours, and no bridge serves it.
        sql.execute(
            "insert into bridge.delivery (id, stream, pipeline, destination, event_id, event_seq, event_type, body,"
            " created_at) select gen_random_uuid(), 'theirs', pipeline, destination, event_id, 1, event_type, body,"
            " now() - interval '1 year' from bridge.delivery where destination = 'brief'"
        )
        # No sink is left: one is a table now, the other is gone. Nothing dispatches here any more.
        text = bridge.config.read_text()
        hook, brief = (f"      {line}" for line in (HOOK, short))
        table = "      hook: { connection: warehouse, table: events.usage_limits, mode: upsert, key: [event_id] }\n"
        bridge.config.write_text(text.replace(brief, "").replace(hook, table))
        bridge.signal(signal.SIGHUP)
        bridge.wait_log('"reloaded"')
        until_it_is(
            sql,
            "select count(*) from bridge.dead_letter where destination = 'brief' and code = 'no_destination'"
            f" and state = 'open' and stream = '{STREAM}'",
            1,
        )
        dead = command(bridge, "dead", "list")
        assert "usage -> brief  no_destination: its destination is not in the configuration any more" in dead
        waiting = "select count(*) from bridge.delivery where state = 'pending'"
        assert sql.execute(waiting).fetchone() == (2,), (
            "the other waits for its own max_age; theirs is theirs"
        )
        until(lambda: "usage/hook" in left(bridge), "told")
        assert "which is not a sink of stream" in left(bridge)["usage/hook"]["message"]
        assert left(bridge)["usage/hook"]["fix"] == "bridge sink discard usage/hook --all"
        assert "1 discarded" in typed(bridge, left(bridge)["usage/hook"]["fix"])
        bridge.config.write_text(text)  # put back: what was discarded is told, and not lost
        assert command(bridge, "prove").count(f"discarded: {event}") == 1
        assert "1 waiting again" in command(bridge, "sink", "restore", "usage/hook", "--all")
        # Put back: they are sent.
        receiver.always = Reply()
        bridge.config.write_text(text)
        bridge.signal(signal.SIGHUP)
        command(bridge, "sink", "resume", "hook")
        command(bridge, "dead", "retry", "--cause", "no_destination", "--as-sent")
        receiver.wait(1)


def test_messages_a_killed_bridge_was_sending_are_said_to_be_free_soon(
    source: Database, target_connection: Connection, receiver: Receiver, bridge_with: Start
) -> None:
    bridge = bridge_with(HOOK, failpoints="deliver.claimed=kill@1").start()
    with Producer(source.dsn) as producer:
        producer.transaction(payloads=[{"n": 1}])
        assert bridge.wait() == -signal.SIGKILL
    bridge.config.write_text(bridge.config.read_text().replace("  usage:", "  alerts:"))
    query = "select ceil(extract(epoch from max(lease_until) - now()))::int from bridge.delivery"
    [most] = target_connection.execute(query).fetchone() or (0,)
    said = command(bridge, "sink", "move", "usage/hook", "alerts/hook")
    found = re.search(r"1 are being sent .*; if it was killed, they are free in (\d+) s", said)
    assert found, said
    assert 0 < int(found[1]) <= most
    assert json.loads(command(bridge, "sink", "move", "usage/hook", "alerts/hook", "--json"))[
        "claimed_seconds"
    ]
