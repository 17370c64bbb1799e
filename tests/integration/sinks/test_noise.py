"""Digest, throttle, quiet hours and a pause through `bridge run`: messages wait, and none is lost."""

from __future__ import annotations

import textwrap
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from tests.integration.sinks.conftest import Start
from tests.integration.sinks.test_delivery import until_it_is
from tests.integration.sinks.test_recipients import command
from tests.support.producers import Producer
from tests.support.receiver import Receiver, Reply
from tests.support.servers import Database
from tests.support.world import until

Connection = psycopg.Connection[tuple[Any, ...]]

SENT = "select count(*) from bridge.delivery where state = 'sent'"


def test_messages_of_one_group_go_as_one_also_after_a_failure_and_a_kill(
    source: Database, target_connection: Connection, receiver: Receiver, bridge_with: Start
) -> None:
    receiver.replies = [Reply(500)]
    digest = """
    hook: { connection: hook, digest: { by: $event.customer_id, every: 3s, max: 30 } }
    """
    bridge = bridge_with(digest).start().wait_ready()
    with Producer(source.dsn) as producer:
        for number in range(10):
            producer.transaction(payloads=[{"customer_id": "ab"[number % 2], "n": number}], key=f"k{number}")
        bridge.kill()  # what waits is in the ledger
        bridge.start()
        until_it_is(target_connection, SENT, 10)
        ways = Counter(
            tuple(sorted(one["n"] for one in request.json["data"])) for request in receiver.requests
        )
        assert set(ways) == {(0, 2, 4, 6, 8), (1, 3, 5, 7, 9)}
        assert sum(ways.values()) == 3, "one failed, and came again as it was"
        assert len({one.identity for one in receiver.requests}) == 2
        # So many that they need not wait.
        producer.connection.execute(
            "insert into outbox.event (type, payload) select 'usage.limit_reached',"
            """ '{"customer_id": "c"}'::jsonb || jsonb_build_object('n', n) from generate_series(1, 30) n"""
        )
        until_it_is(target_connection, SENT, 40)
    numbers = [one["n"] for request in receiver.requests[3:] for one in request.json["data"]]
    assert sorted(numbers) == list(range(1, 31))


def test_a_throttle_a_pause_and_quiet_hours_make_messages_wait(
    source: Database, target_connection: Connection, receiver: Receiver, bridge_with: Start
) -> None:
    begin = datetime.now(UTC) - timedelta(hours=1)
    quiet = f'{{ from: "{begin:%H:%M}", to: "{begin + timedelta(hours=2):%H:%M}" }}'
    destinations = f"""
    few: {{ connection: hook, data: {{ to: few, n: $event.n }}, throttle: 3/h }}
    night: {{ connection: hook, data: {{ to: night, n: $event.n }}, quiet: {quiet} }}
    held: {{ connection: hook, data: {{ to: held, n: $event.n }} }}
    """
    bridge = bridge_with(textwrap.dedent(destinations)).start().wait_ready()
    assert "held: paused" in command(bridge, "sink", "pause", "held", "--reason", "they move house")
    with Producer(source.dsn) as producer:
        for number in range(5):
            producer.transaction(payloads=[{"n": number}], key=f"k{number}")
        receiver.wait(3)
        bridge.terminate()
        bridge.start().wait_ready()  # what was sent before counts
        until(lambda: "they move house" in command(bridge, "status"), "status tells who paused it and why")
        until(lambda: "left alone until" in command(bridge, "status"), "and of quiet hours")
        assert Counter(one.json["data"]["to"] for one in receiver.requests) == {"few": 3}
        assert "held: resumed" in command(bridge, "sink", "resume", "held")
        receiver.wait(8)
    until_it_is(target_connection, SENT, 8)
    assert Counter(one.json["data"]["to"] for one in receiver.requests) == {"few": 3, "held": 5}
    waiting = (
        "select count(*) from bridge.delivery where state = 'pending' and destination in ('few', 'night')"
    )
    assert target_connection.execute(waiting).fetchone() == (7,)
    attempts = "select sum(attempts)::int from bridge.delivery where state = 'pending'"
    assert target_connection.execute(attempts).fetchone() == (0,), "waiting is no attempt"
    assert "did you mean held?" in command(bridge, "sink", "pause", "hled")
