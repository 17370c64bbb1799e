"""Events name their recipients: what one of them does holds up no other, and is told."""

from __future__ import annotations

import json
from typing import Any

import psycopg

from tests.integration.sinks.conftest import Start
from tests.integration.sinks.test_delivery import until_it_is
from tests.support.bridge_process import BridgeProcess
from tests.support.producers import Producer
from tests.support.receiver import Received, Receiver, Reply
from tests.support.servers import Database
from tests.support.world import until

Connection = psycopg.Connection[tuple[Any, ...]]

HOOK = """
hook: {{ connection: hook, url: $event.url, fallback: "{url}/fallback", timeout: 2s }}
"""


def answers(request: Received) -> Reply | None:
    """What each endpoint of the test says."""
    return {
        "/busy": Reply(503, headers={"Retry-After": "1800"}),
        "/hang": Reply(hang=True),
        "/down": Reply(500),
        "/gone": Reply(410),
    }.get(request.path)


def command(bridge: BridgeProcess, *words: str) -> str:
    done = bridge.command(*words)
    return done.stdout + done.stderr


def test_endpoints_that_are_down_busy_or_silent_hold_up_no_other(
    source: Database, target_connection: Connection, receiver: Receiver, bridge_with: Start
) -> None:
    receiver.decide = answers
    bridge = bridge_with(HOOK.format(url=receiver.url)).start().wait_ready()
    bad = [*(f"{receiver.url}/{name}" for name in ("busy", "hang", "down"))]
    bad += ["http://no-such-host.invalid/x", "http://10.1.2.3/x"]
    with Producer(source.dsn) as producer:
        for number in range(60):
            for url in bad:
                producer.transaction(payloads=[{"url": url, "n": number}], key=f"{url} {number}")
        for number in range(20):
            producer.transaction(payloads=[{"url": f"{receiver.url}/good", "n": number}], key=f"g{number}")
        producer.transaction(payloads=[{"url": f"{receiver.url}/gone"}], key="gone")

        good = [one for one in receiver.requests if one.path == "/good"]
        receiver.wait_for(lambda found: sum(one.path == "/good" for one in found) == 20)
        receiver.wait_for(lambda found: any(one.path == "/fallback" for one in found))
        good = [one for one in receiver.requests if one.path == "/good"]
        assert len({one.identity for one in good}) == 20
        hanging = sum(one.path == "/hang" for one in receiver.requests)
        assert hanging <= 16 + 5, "one recipient had all places"
        assert sum(one.path == "/busy" for one in receiver.requests) <= 16, "it asked for half an hour"

        # A private address is the message's own fault: each is dead at once, nobody else is blamed.
        refused = "select count(*) from bridge.dead_letter where code = 'address_refused'"
        until_it_is(target_connection, refused, 60)
        # And who is left alone is told, without the endpoint's path.
        until(lambda: "is left alone until" in command(bridge, "status"), "status tells")
        told = [line for line in command(bridge, "status").splitlines() if "left alone" in line]
        assert any("127.0.0.1" in line and "http_503" in line for line in told), told
        assert not any("busy" in line for line in told)
        state = json.loads(command(bridge, "status", "--json"))
        assert all(one["recipient"] for one in state["left_alone"]), "the destination itself works"
        metrics = bridge.get("/metrics")[1]
        assert 'outbox_bridge_destination_left_alone{destination="hook"} 0.0' in metrics
        assert 'outbox_bridge_recipients_left_alone{destination="hook"} 0.0' not in metrics


def test_not_found_is_tried_again_for_a_while(
    source: Database, target_connection: Connection, receiver: Receiver, bridge_with: Start
) -> None:
    """An endpoint that is being deployed, a token that is being replaced: no dead letters, no person needed."""
    receiver.replies = [Reply(404), Reply(401)]
    bridge_with("hook: { connection: hook }").start().wait_ready()
    with Producer(source.dsn) as producer:
        producer.transaction(payloads=[{"n": 1}])
        receiver.wait(3)
    until_it_is(target_connection, "select state from bridge.delivery", "sent")
    assert target_connection.execute("select count(*) from bridge.dead_letter").fetchone() == (0,)
    assert len({one.identity for one in receiver.requests}) == 1
