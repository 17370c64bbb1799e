"""A webhook reaches public addresses, and those that its connection allows: security, not politeness."""

from __future__ import annotations

import asyncio

import pytest

from bridge.sinks.http import HttpClient
from bridge.sinks.model import SendError, SendOutcome, Wire
from bridge.sinks.webhook import WebhookConnection
from tests.integration.sinks.conftest import SECRET
from tests.integration.sinks.test_contract import delivery
from tests.support.receiver import Receiver


def connection(**more: object) -> WebhookConnection:
    return WebhookConnection.model_validate({"type": "webhook", "secret": SECRET, **more})


class Names:
    """A name server of the test's own: a name has these addresses, and how often it was asked."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        return list(self.addresses)


def send(sink: WebhookConnection, names: Names, fields: dict[str, object] | None = None) -> SendOutcome:
    async def attempt() -> SendOutcome:
        client = HttpClient(names)
        try:
            return await sink.send(delivery({"data": 1, **(fields or {})}), Wire(client, 3.0))
        except SendError as error:
            return error.outcome
        finally:
            await client.close()

    return asyncio.run(attempt())


@pytest.mark.security(14)
@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "::1", "10.0.0.1", "169.254.169.254", "100.64.0.1", "::ffff:127.0.0.1", "0.0.0.0"],
)
def test_a_name_with_a_private_address_is_refused_and_nothing_is_connected(
    address: str, receiver: Receiver
) -> None:
    outcome = send(connection(url=f"http://hooks.example:{receiver.port}/x"), Names(address))
    assert (outcome.verdict, outcome.code) == ("dead", "address_refused")
    assert receiver.requests == []


@pytest.mark.security(14)
def test_an_address_that_an_event_names_is_judged_too(receiver: Receiver) -> None:
    outcome = send(connection(), Names("127.0.0.1"), {"url": f"http://localhost:{receiver.port}/admin"})
    assert outcome.code == "address_refused"
    assert receiver.requests == []


@pytest.mark.security(14)
def test_an_allowed_address_is_reached_under_its_name_resolved_once(receiver: Receiver) -> None:
    names = Names("127.0.0.1")
    sink = connection(url=f"http://hooks.example:{receiver.port}/x?y=1", allow=["127.0.0.1/32"])
    assert send(sink, names).verdict == "sent"
    assert names.asked == ["hooks.example"]
    (request,) = receiver.requests
    assert request.headers["host"] == f"hooks.example:{receiver.port}"
    assert request.path == "/x?y=1"


@pytest.mark.security(14)
def test_of_several_addresses_only_the_permitted_ones_are_tried(receiver: Receiver) -> None:
    names = Names("10.0.0.1", "::1", "127.0.0.1")
    sink = connection(url=f"http://hooks.example:{receiver.port}/x", allow=["127.0.0.1/32"])
    assert send(sink, names).verdict == "sent"


def test_what_one_connection_may_reach_another_may_not(receiver: Receiver) -> None:
    url = f"http://hooks.example:{receiver.port}/x"
    allowed, guarded = connection(url=url, allow=["127.0.0.0/8"]), connection(url=url)

    async def both() -> str:
        client = HttpClient(Names("127.0.0.1"))
        wire = Wire(client, 3.0)
        try:
            assert (await allowed.send(delivery({}), wire)).verdict == "sent"
            outcome = await guarded.send(delivery({}), wire)
            return outcome.code  # it must not find the open connection of the other
        finally:
            await client.close()

    assert asyncio.run(both()) == "address_refused"
    assert len(receiver.requests) == 1


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.com/x",
        "gopher://example.com",
        "//example.com/x",
        "http://",
        "http://user:CANARY@example.com/",
        "http://example.com/\r\nX-Injected: yes",
        "http://example.com/a b",
        "http://example.com:99999/",
        "http://[::1",
    ],
)
def test_what_is_no_web_address_is_dead_without_being_shown(url: str) -> None:
    outcome = send(connection(), Names("1.1.1.1"), {"url": url})
    assert (outcome.verdict, outcome.code) == ("dead", "message")
    assert "CANARY" not in outcome.cause
    assert "example.com/" not in outcome.cause.replace("https://example.com/hook", "")


@pytest.mark.security(16)
def test_line_breaks_in_a_header_are_refused(receiver: Receiver) -> None:
    sink = connection(url=f"{receiver.url}/x", allow=["127.0.0.0/8"])
    for headers in ({"x-a": "a\r\nx-injected: yes"}, {"x-a\r\nx-injected": "yes"}, {"webhook-id": "mine"}):
        outcome = send(sink, Names("127.0.0.1"), {"headers": headers})
        assert (outcome.verdict, outcome.code) == ("dead", "message")
    assert receiver.requests == []
