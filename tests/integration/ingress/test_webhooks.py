"""POST /v1/webhooks/{name}: a delivery is one event, however often and by whomever it is sent again."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from bridge.ingress.store import forget_deliveries, prepare
from bridge.postgres.connect import Pool
from bridge.postgres.profiles import INGRESS
from tests.integration.ingress.serving import CONFIG, Answer, IngressServer
from tests.support.proxy import FaultProxy
from tests.support.servers import Database

SECRETS = ("MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz", "YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4")
WEBHOOKS = f"""
  webhooks:
    svix: {{ scheme: standard, secrets: [whsec_{SECRETS[0]}, "{SECRETS[1]}"] }}
    hub: {{ scheme: github, secrets: [g] }}
    orders:
      scheme: hmac
      secrets: [o]
      header: X-Mac
      type: usage.limit_reached
      id: $body.id
      idempotency_key: $body.order
"""
SENDERS = """
  webhooks:
    crm: { scheme: hubspot, secrets: [h], url: "https://hooks.example.com/v1/webhooks/crm" }
    chat: { scheme: slack, secrets: [s] }
    shop: { scheme: shopify, secrets: [p], key: $body.id }
    sms: { scheme: twilio, secrets: [t], url: "https://hooks.example.com/v1/webhooks/sms", type: sms.in }
    ops: { scheme: basic, secrets: ["ada:secret"], type: ops.alert }
"""
WAITS = """
    select count(*) from pg_stat_activity
    where application_name = 'bridge-ingress' and wait_event_type = 'Lock' and datname = current_database()
"""


@pytest.fixture
def hooks(serving: Callable[..., IngressServer]) -> IngressServer:
    return serving(text=CONFIG + WEBHOOKS)


def standard(
    server: IngressServer, body: bytes = b'{"type": "a.b", "n": 1.10}', delivery: str = "msg_1", **odd: Any
) -> Answer:
    """A delivery signed as Standard Webhooks says. secret, seconds (away from now), name: what may be odd."""
    moment = int(time.time()) + odd.get("seconds", 0)
    key = base64.b64decode(odd.get("secret", SECRETS[0]))
    mac = hmac.digest(key, f"{delivery}.{moment}.".encode() + body, "sha256")
    headers = {
        "webhook-id": delivery,
        "webhook-timestamp": str(moment),
        "webhook-signature": f"v1,{base64.b64encode(mac).decode()}",
    }
    return server.post(f"/v1/webhooks/{odd.get('name', 'svix')}", body, key=None, **headers)


def order(server: IngressServer, delivery: str, order_id: str) -> Answer:
    body = json.dumps({"id": delivery, "order": order_id}).encode()
    return server.post("/v1/webhooks/orders", body, key=None, x_mac=hmac.digest(b"o", body, "sha256").hex())


@pytest.mark.security(11)
@pytest.mark.fault(74)
def test_a_delivery_is_one_event_however_often_it_comes(hooks: IngressServer, source: Database) -> None:
    first = standard(hooks)
    again = standard(hooks)
    assert (first.status, again.status) == (202, 200)
    assert again.json == {"id": first.json["id"], "duplicate": True}
    assert source.execute(
        "select id::text, type, payload::text, idempotency_key, headers from outbox.event"
    ) == [(first.json["id"], "svix.a.b", '{"n": 1.10, "type": "a.b"}', "msg_1", {"webhook": "svix"})]
    assert source.execute("select endpoint, id, event_id::text from outbox.webhook_delivery") == [
        ("svix", "msg_1", first.json["id"])
    ]
    assert hooks.counts == {("webhooks/svix", 202): 1, ("webhooks/svix", 200): 1}


@pytest.mark.security(10)
def test_both_live_secrets_are_taken(hooks: IngressServer) -> None:
    assert standard(hooks, delivery="1").status == 202
    assert standard(hooks, delivery="2", secret=SECRETS[1]).status == 202


@pytest.mark.security(10)
@pytest.mark.fault(73, 74)
def test_whatever_is_wrong_the_answer_is_the_same(hooks: IngressServer, source: Database) -> None:
    answers = [
        standard(hooks, secret="c29tZSBvdGhlciBzZWNyZXQ="),
        standard(hooks, seconds=-301),
        standard(hooks, seconds=301 + 2),
        standard(hooks, name="unknown"),
        standard(hooks, name="hub"),
        hooks.post("/v1/webhooks/svix", b"{}", key=None),
        hooks.post("/v1/webhooks/svix", b"{}"),  # an API key is no signature
        hooks.post("/v1/webhooks/svix", b"{}", key=None, webhook_id="\xff", webhook_timestamp="x"),
    ]
    assert {answer.status for answer in answers} == {401}
    assert len({answer.body for answer in answers}) == 1
    assert source.value("select count(*) from outbox.event") == 0
    assert set(hooks.counts) == {("webhooks/svix", 401), ("webhooks/hub", 401), ("other", 401)}


@pytest.mark.fault(74)
def test_a_copy_under_another_delivery_id_is_still_a_copy(hooks: IngressServer, source: Database) -> None:
    body = b'{"ref": "main"}'
    signature = "sha256=" + hmac.digest(b"g", body, "sha256").hex()

    def send(delivery: str) -> Answer:
        headers = {"x-hub-signature-256": signature, "x-github-event": "push", "x-github-delivery": delivery}
        return hooks.post("/v1/webhooks/hub", body, key=None, **headers)

    first, forged = send("d-1"), send("d-2")
    assert (first.status, forged.status) == (202, 200)
    assert forged.json["id"] == first.json["id"]
    assert source.execute("select type, idempotency_key from outbox.event") == [("hub.push", "d-1")]


@pytest.mark.security(11)
@pytest.mark.fault(74)
def test_copies_that_come_together_are_one_event(hooks: IngressServer, source: Database) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda n: standard(hooks, delivery=f"m{n % 3}"), range(48)))
    assert sorted(answer.status for answer in answers) == [200] * 45 + [202] * 3
    assert source.value("select count(*) from outbox.event") == 3
    assert len({answer.json["id"] for answer in answers}) == 3


@pytest.mark.security(11)
def test_two_bridges_that_take_the_same_deliveries_make_one_event_of_each(
    serving: Callable[..., IngressServer], source: Database
) -> None:
    both = [serving(text=CONFIG + WEBHOOKS), serving(text=CONFIG + WEBHOOKS)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda n: standard(both[n % 2], delivery=f"m{n // 4}"), range(80)))
    assert {answer.status for answer in answers} == {200, 202}
    ids = [{answer.json["id"] for answer in answers[4 * n : 4 * n + 4]} for n in range(20)]
    assert [len(one) for one in ids] == [1] * 20
    known = {row[0] for row in source.execute("select id::text from outbox.event")}
    assert known == set().union(*ids)


def test_another_delivery_of_a_known_event_gives_its_id(hooks: IngressServer, source: Database) -> None:
    first, second = order(hooks, "d1", "o1"), order(hooks, "d2", "o1")
    assert (first.status, second.status) == (202, 200)
    assert second.json["id"] == first.json["id"] == order(hooks, "d2", "o1").json["id"]
    assert source.execute("select id, event_id::text from outbox.webhook_delivery order by id") == [
        ("d1", first.json["id"]),
        ("d2", first.json["id"]),
    ]


def test_an_event_that_commits_meanwhile_gives_its_id_to_the_delivery(
    hooks: IngressServer, source: Database
) -> None:
    """The insert finds nothing, waits for the other transaction's row, and must then name that one."""
    with ThreadPoolExecutor(1) as pool:
        with source.connect() as app, app.transaction():
            row = app.execute("select outbox.emit('usage.limit_reached', '{}', 'o1')::text").fetchone()
            answer = pool.submit(order, hooks, "d1", "o1")
            deadline = time.monotonic() + 10
            while not source.value(WAITS):
                assert time.monotonic() < deadline
        assert row is not None
        assert answer.result().json == {"id": row[0], "duplicate": True}
    assert source.value("select event_id::text from outbox.webhook_delivery") == row[0]
    assert order(hooks, "d1", "o1").json["id"] == row[0]


@pytest.mark.fault(75)
def test_a_delivery_whose_answer_was_lost_is_one_event_when_it_comes_again(
    hooks: IngressServer, source: Database
) -> None:
    body = json.dumps({"id": "d1", "order": "o1"}).encode()
    head = (
        "POST /v1/webhooks/orders HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"x-mac: {hmac.digest(b'o', body, 'sha256').hex()}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", hooks.port)) as client:
        client.sendall(head.encode() + body)  # and gone before the answer
    deadline = time.monotonic() + 10
    while not source.value("select count(*) from outbox.event"):
        assert time.monotonic() < deadline
    again = order(hooks, "d1", "o1")
    assert again.status == 200
    assert again.json["id"] == source.value("select id::text from outbox.event")


@pytest.mark.fault(75)
def test_a_commit_whose_answer_was_lost_on_the_way_to_us_is_one_event(
    serving: Callable[..., IngressServer], source: Database, proxy_to: Callable[[str], FaultProxy]
) -> None:
    proxy = proxy_to(source.bridge_dsn)
    server = serving(dsn=proxy.dsn, text=CONFIG + WEBHOOKS)
    assert standard(server, delivery="first").status == 202
    lost = proxy.lose_commit_answer(b"webhook_delivery")
    answer = standard(server, delivery="d1")
    assert lost.happened
    if answer.status == 503:  # a slow machine: the ingress could not send again in time, so the provider does
        answer = standard(server, delivery="d1")
    assert (answer.status, answer.json["duplicate"]) == (200, True)  # sent again by the ingress itself
    assert source.value("select count(*) from outbox.event where idempotency_key = 'd1'") == 1


def test_deliveries_are_forgotten_after_the_memory_and_not_before(
    hooks: IngressServer, source: Database
) -> None:
    for delivery in ("young", "old"):
        assert standard(hooks, delivery=delivery).status == 202
    source.execute(
        "update outbox.webhook_delivery set received_at = now() - interval '35 days 1 hour' where id = 'old'"
    )

    async def forget() -> int:
        async with Pool(source.bridge_dsn, INGRESS, prepare=prepare) as pool, pool.connection() as connection:
            return await forget_deliveries(connection)

    assert asyncio.run(forget()) == 1
    assert source.value("select id from outbox.webhook_delivery") == "young"
    assert standard(hooks, delivery="old").json["duplicate"]  # its idempotency key is still known


def mac64(secret: bytes, message: bytes, algorithm: str = "sha256") -> str:
    return base64.b64encode(hmac.digest(secret, message, algorithm)).decode()


def test_what_senders_send_is_stored_or_answered(
    serving: Callable[..., IngressServer], source: Database
) -> None:
    server = serving(text=CONFIG + SENDERS)

    def post(name: str, body: bytes, **headers: str) -> Answer:
        return server.post(f"/v1/webhooks/{name}", body, key=None, **headers)

    def contacts(now: int, attempt: int) -> Answer:
        events = [
            {"subscriptionType": "contact.creation", "subscriptionId": 1, "eventId": n, "occurredAt": 5}
            for n in range(3)
        ]
        body = json.dumps([{**event, "attemptNumber": attempt} for event in events]).encode()
        message = b"POSThttps://hooks.example.com/v1/webhooks/crm?a=1%b%d" % (body, now)
        signed = {"x_hubspot_signature_v3": mac64(b"h", message), "x_hubspot_request_timestamp": str(now)}
        return post("crm?a=1", body, **signed)

    now = int(time.time()) * 1000
    first, again = contacts(now, 0), contacts(now + 1, 1)
    assert (first.status, again.status) == (202, 200)
    assert len({event["id"] for event in first.json["events"]}) == 3
    assert again.json["events"] == [{**event, "duplicate": True} for event in first.json["events"]]
    assert source.value("select count(*) from outbox.event where type = 'crm.contact.creation'") == 3

    challenge = b'{"type": "url_verification", "challenge": "3eZbrw1a"}'
    moment = str(now // 1000)
    signature = "v0=" + hmac.digest(b"s", f"v0:{moment}:".encode() + challenge, "sha256").hex()
    answer = post("chat", challenge, x_slack_signature=signature, x_slack_request_timestamp=moment)
    assert (answer.status, answer.json) == (200, {"challenge": "3eZbrw1a"})
    assert post("chat", challenge, x_slack_request_timestamp=moment).status == 401

    ping = b'{"type": "event_callback", "event_id": "Ev1", "event": {"type": "app_mention"}}'
    signature = "v0=" + hmac.digest(b"s", f"v0:{moment}:".encode() + ping, "sha256").hex()
    answer = post("chat", ping, x_slack_signature=signature, x_slack_request_timestamp=moment)
    assert (answer.status, answer.body) == (200, b"")
    assert source.execute("select type from outbox.event where type like 'chat.%'") == [("chat.app_mention",)]

    order = b'{"id": 820982911946154508}'
    for topic in ("orders/create", "orders/updated", "orders/cancelled"):
        mac = mac64(b"p", order)
        for status in (202, 200):
            sent = {"x_shopify_topic": topic, "x_shopify_webhook_id": topic, "x_shopify_hmac_sha256": mac}
            assert post("shop", order, **sent).status == status
    assert source.execute("select type, key from outbox.event where type like 'shop.%' order by seq") == [
        (f"shop.orders.{what}", "820982911946154508") for what in ("create", "updated", "cancelled")
    ]

    mac = mac64(b"t", b"https://hooks.example.com/v1/webhooks/smsBodya & bMessageSidSM1", "sha1")
    form = {"content_type": "application/x-www-form-urlencoded; charset=UTF-8", "x_twilio_signature": mac}
    answer = post("sms", b"MessageSid=SM1&Body=a+%26+b", **form)
    assert (answer.status, answer.body) == (200, b"<Response/>")  # Twilio reads it
    assert answer.headers["content-type"].startswith("text/xml")
    assert source.value("select payload from outbox.event where type = 'sms.in'") == {
        "MessageSid": "SM1",
        "Body": "a & b",
    }

    login = "Basic " + base64.b64encode(b"ada:secret").decode()
    assert post("ops", b"{}", authorization=login).status == 202
    refused = post("ops", b"<a/>", authorization=login, content_type="text/xml")
    assert (refused.status, refused.json["field"]) == (400, "content-type")
    assert "its content-type is text/xml" in refused.json["detail"]
    unknown = post("ops", b"{}")
    assert (unknown.status, unknown.headers["www-authenticate"]) == (401, 'Bearer, Basic realm="webhooks"')
