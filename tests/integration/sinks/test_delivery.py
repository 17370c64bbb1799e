"""Events become table rows and messages, through `bridge run` and real servers."""

from __future__ import annotations

import json
import signal
from collections import Counter
from typing import Any

import psycopg
import pytest
from standardwebhooks import Webhook

from bridge.postgres.schema import target_sql
from tests.integration.sinks.conftest import HEAD, SECRET, TABLE, Start
from tests.support.producers import Producer
from tests.support.receiver import Receiver, Reply
from tests.support.servers import Database, EmbeddedServer
from tests.support.truth import conservation, settle
from tests.support.world import until

Connection = psycopg.Connection[tuple[Any, ...]]

HOOK = """
hook: { connection: hook, timeout: 2s }
"""
NUDGE = """
nudge:
  connection: csm
  text: "{{ event.customer_id }} is at {{ event.used }}/{{ event.limit }}"
"""


def payload(**more: Any) -> dict[str, Any]:
    return {"customer_id": "cus_1", "metric": "seats", "limit": 10, "used": 9, "plan": "pro"} | more


def until_it_is(connection: Connection, query: str, wanted: Any) -> None:
    """Await what a query answers."""
    until(lambda: connection.execute(query).fetchone() == (wanted,), f"{query}: {wanted}")


def test_one_event_is_one_row_and_one_slack_message(
    source: Database, target: Database, target_connection: Connection, receiver: Receiver, bridge_with: Start
) -> None:
    bridge = bridge_with(TABLE + NUDGE).start().wait_ready()
    with Producer(source.dsn) as producer:
        producer.transaction(payloads=[payload(customer_id="<!channel> & co")])
        (request,) = receiver.wait(1)
        settle(source.dsn, target.dsn)
    assert request.path == "/slack"
    assert request.json == {"text": "&lt;!channel&gt; &amp; co is at 9/10"}
    until_it_is(target_connection, "select state from bridge.delivery", "sent")
    row = target_connection.execute("select id::text, attempts from bridge.delivery").fetchone()
    assert row == (request.headers["idempotency-key"], 1)
    assert conservation(source.dsn, target.dsn).holds
    assert bridge.terminate() == 0
    assert [one.json for one in receiver.requests].count(request.json) == 1


def test_a_webhook_is_signed_and_numbers_are_exact(
    source: Database, receiver: Receiver, bridge_with: Start
) -> None:
    bridge_with(HOOK).start().wait_ready()
    with Producer(source.dsn) as producer:
        producer.connection.execute(
            "insert into outbox.event (type, payload, occurred_at) values ('usage.limit_reached', "
            """'{"customer_id": "c", "limit": 123456789012345678901234567890, "used": 0.10}', '2027-03-01T00:00Z')"""
        )
    (request,) = receiver.wait(1)
    Webhook(SECRET).verify(request.body, dict(request.headers))
    assert request.body.startswith(
        b'{"type":"usage.limit_reached","timestamp":"2027-03-01T00:00:00+00:00","data":'
    )
    assert b"123456789012345678901234567890" in request.body
    assert b"0.10" in request.body


@pytest.mark.fault(71)
@pytest.mark.slow
def test_a_crash_around_the_sinks_answer_sends_again_with_the_same_id(
    source: Database, target_connection: Connection, receiver: Receiver, bridge_with: Start
) -> None:
    bridge = bridge_with(HOOK, failpoints="deliver.claimed=kill@1").start()
    with Producer(source.dsn) as producer:
        producer.transaction(payloads=[payload()], key="one")
        bridge.wait(20)
        assert receiver.requests == []
        bridge.environment["BRIDGE_FAILPOINTS"] = "deliver.sent=kill@1"
        bridge.start()
        receiver.wait(1)
        bridge.wait(20)
        bridge.environment.pop("BRIDGE_FAILPOINTS")
        bridge.start().wait_ready()
        first, second = receiver.wait(2)
    assert first.identity == second.identity
    assert first.body == second.body
    until_it_is(target_connection, "select state from bridge.delivery", "sent")


@pytest.mark.fault(71)
@pytest.mark.slow
@pytest.mark.parametrize(
    "stopped", ["deliver.claimed=raise", "deliver.claimed=hang", "deliver.sent=raise", "deliver.sent=hang"]
)
def test_a_dispatcher_that_failed_or_hung_sends_with_the_same_id_at_last(
    source: Database,
    target_connection: Connection,
    receiver: Receiver,
    bridge_with: Start,
    stopped: str,
) -> None:
    bridge = bridge_with(HOOK, failpoints=stopped).start()
    with Producer(source.dsn) as producer:
        producer.transaction(payloads=[payload()], key="one")
    bridge.wait_log("failpoint " + stopped.replace("=", ": "))
    if stopped.endswith("hang"):
        bridge.kill()
        bridge.environment.pop("BRIDGE_FAILPOINTS")
        bridge.start().wait_ready()
    until_it_is(target_connection, "select state from bridge.delivery", "sent")
    assert len({request.identity for request in receiver.requests}) == 1
    assert len(receiver.requests) == (2 if stopped.startswith("deliver.sent") else 1)


def test_messages_of_one_key_come_in_order_though_the_first_fails(
    source: Database, target_connection: Connection, receiver: Receiver, bridge_with: Start
) -> None:
    receiver.replies = [Reply(500)]
    with Producer(source.dsn) as producer:
        for number in range(12):
            producer.transaction(payloads=[payload(used=number)], key=("a", "b")[number % 2])
        bridge_with(HOOK).start().wait_ready()
        until_it_is(target_connection, "select count(*) from bridge.delivery where state = 'sent'", 12)
    taken: dict[bool, list[int]] = {True: [], False: []}
    for request in receiver.requests:
        used = request.json["data"]["used"]
        numbers = taken[used % 2 == 0]
        if not numbers or numbers[-1] != used:  # the one that failed comes twice
            numbers.append(used)
    assert taken == {True: [0, 2, 4, 6, 8, 10], False: [1, 3, 5, 7, 9, 11]}
    assert sorted(Counter(one.identity for one in receiver.requests).values()) == [1] * 11 + [2]


@pytest.mark.fault(70)
def test_a_destination_that_is_down_delays_no_table_and_holds_no_wal(
    source: Database, target: Database, target_connection: Connection, receiver: Receiver, bridge_with: Start
) -> None:
    receiver.always = Reply(hang=True)
    bridge = bridge_with(TABLE + HOOK).start().wait_ready()
    with Producer(source.dsn) as producer:
        producer.burst(2000)
        settle(source.dsn, target.dsn)
        assert conservation(source.dsn, target.dsn).holds
        until_it_is(target_connection, "select count(*) >= 2000 from bridge.delivery", True)
        until_it_is(target_connection, "select count(*) from bridge.delivery where state <> 'pending'", 0)
        applied = target_connection.execute("select applied_lsn from bridge.checkpoint").fetchone()
        assert applied is not None
        with source.connect() as connection:
            confirmed = f"select confirmed_flush_lsn >= '{applied[0]}' from pg_replication_slots"
            until_it_is(connection, f"{confirmed} where database = current_database()", True)
    assert bridge.get("/readyz")[0] == 200, "a sink that is down is no fault of the bridge"


def test_a_refusal_is_a_dead_letter_at_once_and_the_next_message_goes(
    source: Database, target_connection: Connection, receiver: Receiver, bridge_with: Start
) -> None:
    receiver.replies = [Reply(400, b"secret words of the vendor")]
    bridge = bridge_with(HOOK).start().wait_ready()
    with Producer(source.dsn) as producer:
        producer.transaction(payloads=[payload(customer_id="CANARY", used=1)], key="k")
        producer.transaction(payloads=[payload(used=2)], key="k")
        receiver.wait(2)
    until_it_is(target_connection, "select count(*) from bridge.delivery where state = 'sent'", 1)
    letters = "select count(*) from bridge.dead_letter where state = 'open'"
    until_it_is(target_connection, letters, 1)
    row = target_connection.execute(
        "select d.state, l.state, l.code, l.cause, l.attempts, l.event_id = d.event_id, l.destination "
        "from bridge.dead_letter l join bridge.delivery d using (id)"
    ).fetchone()
    assert row == ("dead", "open", "http_400", "HTTP 400", 1, True, "hook")
    status, metrics = bridge.get("/metrics")
    assert status == 200
    assert 'outbox_bridge_deliveries_total{destination="hook",outcome="dead"} 1.0' in metrics
    assert 'outbox_bridge_deliveries_total{destination="hook",outcome="sent"} 1.0' in metrics
    assert 'outbox_bridge_delivery_seconds_count{destination="hook"} 2.0' in metrics
    everything = "".join(bridge.lines) + metrics
    assert "CANARY" not in everything
    assert "secret words" not in everything


def _retry(bridge: Any, *given: str, code: int = 0) -> list[dict[str, Any]]:
    """`dead retry --all --json`: its letters."""
    done = bridge.command("dead", "retry", "--all", "--json", *given)
    assert done.returncode == code, done.stdout + done.stderr
    letters: list[dict[str, Any]] = json.loads(done.stdout)["letters"]
    return letters


def test_dead_retry_renders_the_mended_template_and_tells_the_result(
    source: Database, target_connection: Connection, receiver: Receiver, bridge_with: Start
) -> None:
    wrong = 'nudge: { connection: csm, text: "WRONG {{ event.customer_id }}" }'
    receiver.decide = lambda request: Reply(400, b"invalid_blocks") if b"WRONG" in request.body else None
    bridge = bridge_with(wrong).start().wait_ready()
    opened = "select count(*) from bridge.dead_letter where state = 'open'"
    with Producer(source.dsn) as producer:
        producer.transaction(payloads=[payload(customer_id=name) for name in ("a", "b ⚡", "c")])
        until_it_is(target_connection, opened, 3)
        (again, *_) = _retry(bridge, code=1)
        assert (again["result"], again["code"]) == ("failed", "http_400")
        assert _retry(bridge, "--dry-run")[0]["result"] == "queued"
        bridge.terminate()
        assert {one["why"] for one in _retry(bridge, "--as-sent")} == {
            "it waits for a bridge that runs: bridge run"
        }
        bridge.start().wait_ready()
        until_it_is(target_connection, opened, 3)
        bridge.terminate()
        bridge.config.write_text(bridge.config.read_text().replace("WRONG", "fine"))
        bridge.start().wait_ready()
        assert {one["result"] for one in _retry(bridge, "--as-sent", code=1)} == {"failed"}
        # what the pipeline filters out now is settled; what the outbox has no more goes as it was
        source.execute("delete from outbox.event where payload->>'customer_id' = 'c'")
        outcomes = _retry(bridge, "--wait", "30", code=1)
    assert [one["result"] for one in outcomes] == ["sent", "sent", "failed"]
    sent = [one for one in receiver.requests if b"fine" in one.body]
    assert {one.json["text"] for one in sent} == {"fine a", "fine b ⚡"}
    assert {one.identity for one in receiver.requests} >= {one.identity for one in sent}
    assert len({one.identity for one in receiver.requests}) == 3
    assert target_connection.execute(opened).fetchone() == (1,)


def test_of_two_bridges_one_dispatches(
    source: Database,
    target_connection: Connection,
    receiver: Receiver,
    bridge_with: Start,
) -> None:
    first = bridge_with(HOOK, name="first").start().wait_ready()
    first.wait_log("dispatching")
    second = bridge_with(HOOK, name="second").start()
    second.wait_log("dispatcher stands by")
    with Producer(source.dsn) as producer:
        producer.burst(200)
        until_it_is(target_connection, "select count(*) from bridge.delivery where state = 'sent'", 200)
        assert len(receiver.requests) == len({one.identity for one in receiver.requests}) == 200
        assert first.terminate() == 0
        second.wait_log("dispatching")
        producer.transaction(payloads=[payload()])
        receiver.wait(201)


def test_a_message_that_is_too_fast_waits_as_told_and_one_too_old_is_dead(
    source: Database, target_connection: Connection, receiver: Receiver, bridge_with: Start
) -> None:
    receiver.replies = [Reply(429, headers={"Retry-After": "1"})]
    receiver.decide = lambda one: Reply(503) if one.json["data"]["used"] == 2 else None
    bridge = bridge_with("hook: { connection: hook, max_age: 4s }").start().wait_ready()
    with Producer(source.dsn) as producer:
        producer.transaction(payloads=[payload(used=1)], key="a")
        receiver.wait(2)
        producer.transaction(payloads=[payload(used=2)], key="a")
        until_it_is(target_connection, "select count(*) from bridge.dead_letter where state = 'open'", 1)
        producer.transaction(payloads=[payload(used=3)], key="a")
        receiver.wait_for(lambda found: found[-1].json["data"]["used"] == 3)
    until_it_is(target_connection, "select count(*) from bridge.delivery where state = 'sent'", 2)
    letters = target_connection.execute(
        "select l.code, l.cause from bridge.dead_letter l join bridge.delivery d using (id) order by d.event_seq"
    ).fetchall()
    assert letters == [("http_503", "HTTP 503; stopped at the destination's max_age")]
    numbers = [one.json["data"]["used"] for one in receiver.requests]
    assert [number for number in numbers if number != 2] == [1, 1, 3]
    assert 'outcome="retry"' in bridge.get("/metrics")[1]


def test_the_ledgers_server_may_crash_and_the_messages_still_go(
    source: Database,
    target: Database,
    target_cluster: EmbeddedServer,
    receiver: Receiver,
    bridge_with: Start,
) -> None:
    bridge = bridge_with(HOOK).start().wait_ready()
    bridge.wait_log("dispatching")
    with Producer(source.dsn) as producer:
        producer.transaction(5)
        receiver.wait(5)
        target_cluster.crash()
        body = bridge.wait_halted("dispatcher")
        assert "cannot_connect" in body
        producer.transaction(5)
        target_cluster.start()
        receiver.wait_for(lambda found: len({one.identity for one in found}) == 10)
    bridge.wait_ready()


def test_a_reload_sends_to_the_new_address(
    source: Database, target_connection: Connection, receiver: Receiver, bridge_with: Start
) -> None:
    bridge = bridge_with(HOOK).start().wait_ready()
    with Producer(source.dsn) as producer:
        producer.transaction(payloads=[payload(used=1)])
        receiver.wait(1)
        bridge.config.write_text(bridge.config.read_text().replace("/hook", "/elsewhere"))
        bridge.signal(signal.SIGHUP)
        bridge.wait_log("reloaded")
        producer.transaction(payloads=[payload(used=2)])
        receiver.wait(2)
    assert [one.path for one in receiver.requests] == ["/hook", "/elsewhere"]


@pytest.mark.fault(71)
@pytest.mark.slow
def test_told_to_stop_it_lets_go_of_what_nobody_answered(
    source: Database, target_connection: Connection, receiver: Receiver, bridge_with: Start
) -> None:
    receiver.always = Reply(hang=True)
    bridge = bridge_with("hook: { connection: hook, timeout: 60s }").start().wait_ready()
    with Producer(source.dsn) as producer:
        producer.transaction(payloads=[payload()])
        receiver.wait(1)
        assert bridge.terminate() == 0
        free = "select lease_until is null and next_attempt_at <= now() from bridge.delivery"
        assert target_connection.execute(free).fetchone() == (True,)
        receiver.always = Reply()
        bridge.start().wait_ready()
        first, second = receiver.wait(2)
    assert first.identity == second.identity


def test_the_recipient_comes_from_an_enrichment_and_else_is_the_fallback(
    source: Database, receiver: Receiver, bridge_with: Start
) -> None:
    receiver.always = Reply(200, b'{"ok": true}')
    nudge = """
    nudge: { connection: bot, channel: $customer.csm, fallback: "#nobody", text: "{{ event.used }}" }
    """
    bot = f"  bot: {{{{ type: slack, token: xoxb-1, api_url: '{receiver.url}' }}}}\npipelines:"
    bridge_with(nudge, head=HEAD.replace("pipelines:", bot)).start().wait_ready()
    with Producer(source.dsn) as producer:
        producer.transaction(payloads=[payload(customer_id="cus_3"), payload(customer_id="nobody")])
    receiver.wait(2)
    assert sorted(one.json["channel"] for one in receiver.requests) == ["#nobody", "barbara"]


SINKS_ONLY = """
version: 1
source: {{ dsn: "${{SOURCE_DSN}}" }}
admin: {{ listen: "${{BRIDGE_ADMIN}}" }}
connections:
  hook: {{ type: webhook, url: "{url}/hook", secret: "{secret}", allow: [127.0.0.0/8] }}
pipelines:
  usage:
    event: usage.limit_reached
    destinations:
"""


def test_with_sinks_only_the_ledger_is_in_the_source(
    source: Database, receiver: Receiver, bridge_with: Start
) -> None:
    with source.connect() as connection:
        connection.execute(target_sql().encode())
        connection.execute("grant usage on schema bridge to outbox_bridge")
        connection.execute(
            "grant select, insert, update, delete on all tables in schema bridge to outbox_bridge"
        )
        bridge_with(HOOK, head=SINKS_ONLY).start().wait_ready()
        with Producer(source.dsn) as producer:
            producer.transaction(3)
        receiver.wait(3)
        until_it_is(connection, "select count(*) from bridge.delivery where state = 'sent'", 3)
