"""What every sink must do, whatever the other end does: one suite, each sink through a real server.

A new HTTP sink adds a line to SINKS_UNDER_TEST; that none is forgotten is a test too.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from bridge.sinks.http import LONGEST_ANSWER, HttpClient
from bridge.sinks.model import SINKS, Delivery, SendError, SendOutcome, SinkConnection, Wire
from tests.integration.sinks.conftest import SECRET
from tests.support.mail import MailServer
from tests.support.receiver import Receiver, Reply

IDENTITY = "0b5c7a52-6f0e-5c59-8c0e-6f7574626f78"
NASTY = "a <b> & *c* _d_ @everyone\r\nX-Injected: yes"


@dataclass(frozen=True)
class UnderTest:
    """A sink as a configuration has it ({url} is the receiver, {place} its host and port), its message, and what its
    vendor says to it. tells: of a failed send, more than an HTTP status can be known."""

    connection: dict[str, Any]
    fields: dict[str, Any]
    ok: bytes = b"ok"
    headers: tuple[str, ...] = ("idempotency-key",)
    secrets: tuple[str, ...] = field(default=())
    tells: bool = True

    def made(self, url: str) -> SinkConnection:
        place = url.removeprefix("http://")
        values = {
            key: v.format(url=url, place=place) if isinstance(v, str) else v
            for key, v in self.connection.items()
        }
        return SINKS[values["type"]].model_validate(values)


SINKS_UNDER_TEST = {
    "slack webhook": UnderTest(
        {"type": "slack", "webhook_url": "{url}/SECRET-1"}, {"text": "hello"}, secrets=("SECRET-1",)
    ),
    "slack token": UnderTest(
        {"type": "slack", "token": "xoxb-SECRET", "channel": "C1", "api_url": "{url}/api"},
        {"text": "hello", "channel": "C2"},
        ok=b'{"ok": true, "ts": "1.2"}',
        secrets=("xoxb-SECRET",),
    ),
    "discord": UnderTest(
        {"type": "discord", "webhook_url": "{url}/SECRET-2"},
        {"text": "hello"},
        ok=b'{"id": "1"}',
        secrets=("SECRET-2",),
    ),
    "telegram": UnderTest(
        {"type": "telegram", "token": "123:SECRETSECRET", "api_url": "{url}", "chat_id": "7"},
        {"text": "hello"},
        ok=b'{"ok": true, "result": {}}',
        secrets=("123:SECRETSECRET",),
    ),
    "webhook": UnderTest(
        {"type": "webhook", "url": "{url}/hook", "secret": SECRET, "allow": ["127.0.0.0/8"]},
        {"data": {"used": 1}},
        headers=("webhook-id",),
        secrets=(SECRET,),
    ),
    "notion": UnderTest(
        {
            "type": "notion",
            "token": "ntn_SECRET",
            "database_id": "0123456789abcdef0123456789abcdef",
            "properties": {"Name": "title", "Used": "number"},
            "api_url": "{url}",
        },
        {"properties": {"Name": "cus_1", "Used": 9}},
        ok=b'{"object": "page"}',
        secrets=("ntn_SECRET",),
    ),
    "apprise": UnderTest(
        {"type": "apprise", "url": "json://user:SECRET-3@{place}/SECRET-4", "allow": ["127.0.0.0/8"]},
        {"text": "hello", "title": "News"},
        secrets=("SECRET-3", "SECRET-4"),
        tells=False,
    ),
    "apprise that its URL makes careless": UnderTest(
        {
            "type": "apprise",
            "url": "json://{place}/?redirect=yes&optional=yes&retry=3&rto=60&+User-Agent=outbox-bridge/x",
            "allow": ["127.0.0.0/8"],
        },
        {"text": "hello"},
        tells=False,
    ),
}

each_sink = pytest.mark.parametrize("sink", SINKS_UNDER_TEST.values(), ids=SINKS_UNDER_TEST.keys())


def delivery(fields: dict[str, Any]) -> Delivery:
    return Delivery(
        id=IDENTITY,
        event_id="e1",
        event_type="usage.limit_reached",
        event_key="cus_1",
        occurred_at=datetime(2027, 3, 1, tzinfo=UTC),
        fields=fields,
    )


def send(
    connection: SinkConnection, fields: dict[str, Any], *, timeout: float = 5.0, times: int = 1
) -> SendOutcome:
    """The outcome of the last of `times` attempts, over one client."""

    async def attempt() -> SendOutcome:
        client = HttpClient()
        outcome = SendOutcome("retry")
        try:
            for _ in range(times):
                outcome = await connection.send(delivery(fields), Wire(client, timeout))
        except SendError as error:
            outcome = error.outcome
        finally:
            await client.close()
        return outcome

    return asyncio.run(attempt())


def test_every_sink_is_under_test() -> None:
    kinds = {sink.connection["type"] for sink in SINKS_UNDER_TEST.values()}
    assert kinds | {"email"} == set(SINKS)


@pytest.mark.fault(71)
@each_sink
def test_two_hundred_is_sent_and_every_attempt_has_the_same_id(sink: UnderTest, receiver: Receiver) -> None:
    receiver.always = Reply(200, sink.ok)
    assert send(sink.made(receiver.url), sink.fields, times=2).verdict == "sent"
    first, second = receiver.requests
    for name in sink.headers:
        assert first.headers[name] == second.headers[name] == IDENTITY
    assert first.body == second.body
    assert first.headers["content-type"].startswith("application/json")
    assert first.headers["user-agent"].startswith("outbox-bridge/")


@pytest.mark.fault(70)
@each_sink
@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 413, 422])
def test_a_refusal_is_dead_at_once(sink: UnderTest, status: int, receiver: Receiver) -> None:
    receiver.always = Reply(status, b"CANARY: what the vendor says may quote the message")
    outcome = send(sink.made(receiver.url), sink.fields)
    assert (outcome.verdict, outcome.code) == ("dead", f"http_{status}")
    assert "CANARY" not in outcome.cause


@pytest.mark.fault(70)
@each_sink
@pytest.mark.parametrize("status", [408, 425, 500, 502, 503, 504, 599])
def test_a_passing_fault_is_tried_again(sink: UnderTest, status: int, receiver: Receiver) -> None:
    receiver.always = Reply(status, headers={"Retry-After": "3"})
    outcome = send(sink.made(receiver.url), sink.fields)
    wait = 3.0 if sink.tells else None
    assert (outcome.verdict, outcome.blame, outcome.retry_after) == ("retry", "destination", wait)


@pytest.mark.fault(70)
@each_sink
@pytest.mark.parametrize(
    ("date", "after", "seconds"),
    [
        (None, "7", 7.0),
        ("Mon, 01 Mar 2027 00:00:00 GMT", "Mon, 01 Mar 2027 00:02:00 GMT", 120.0),
        ("Mon, 01 Mar 2027 00:02:00 GMT", "Mon, 01 Mar 2027 00:00:00 GMT", 0.0),
        (None, "soon", None),
        (None, "-5", None),
    ],
)
def test_too_many_requests_waits_as_long_as_it_says(
    sink: UnderTest, date: str | None, after: str, seconds: float | None, receiver: Receiver
) -> None:
    receiver.always = Reply(429, headers={"Retry-After": after} | ({"Date": date} if date else {}))
    outcome = send(sink.made(receiver.url), sink.fields)
    wait = seconds if sink.tells else None
    assert (outcome.verdict, outcome.blame, outcome.retry_after) == ("retry", "pace", wait)


@pytest.mark.fault(70)
@each_sink
@pytest.mark.parametrize("reply", [Reply(hang=True), Reply(drip=True)], ids=["silent", "drip"])
def test_who_does_not_answer_in_time_is_tried_again(
    sink: UnderTest, reply: Reply, receiver: Receiver
) -> None:
    receiver.always = reply
    outcome = send(sink.made(receiver.url), sink.fields, timeout=0.3)
    assert (outcome.verdict, outcome.code) == ("retry", "timeout")


@pytest.mark.fault(70)
@each_sink
def test_a_connection_cut_after_the_send_is_tried_again(sink: UnderTest, receiver: Receiver) -> None:
    receiver.always = Reply(cut=True)
    outcome = send(sink.made(receiver.url), sink.fields)
    assert (outcome.verdict, outcome.code) == ("retry", "connection_lost" if sink.tells else "apprise_failed")
    assert len(receiver.requests) == 1, (
        "whether it was taken is not known: the schedule decides, not the client"
    )


@each_sink
def test_nobody_there_is_tried_again(sink: UnderTest) -> None:
    gone = Receiver()
    gone.close()
    outcome = send(sink.made(gone.url), sink.fields)
    assert (outcome.verdict, outcome.code) == ("retry", "connect" if sink.tells else "apprise_failed")


@pytest.mark.security(14)
@pytest.mark.fault(70)
@each_sink
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(sink: UnderTest, status: int, receiver: Receiver) -> None:
    receiver.always = Reply(status, headers={"Location": f"{receiver.url}/elsewhere"})
    outcome = send(sink.made(receiver.url), sink.fields)
    assert outcome.verdict == "dead"
    assert "redirect" in outcome.cause
    assert len(receiver.requests) == 1


@pytest.mark.security(15)
@pytest.mark.fault(70)
@each_sink
def test_of_a_huge_answer_only_the_beginning_is_read(sink: UnderTest, receiver: Receiver) -> None:
    receiver.always = Reply(500, b"x" * (LONGEST_ANSWER * 200))
    assert send(sink.made(receiver.url), sink.fields).verdict == "retry"


@pytest.mark.security(14)
@each_sink
def test_proxies_of_the_environment_are_ignored(
    sink: UnderTest, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    receiver.always = Reply(200, sink.ok)
    assert send(sink.made(receiver.url), sink.fields).verdict == "sent"


NOT_THEIRS = {
    "html": b"<!doctype html><title>Sign in</title>",
    "empty": b"",
    "other json": b'{"status": "accepted"}',
    "list": b"[]",
    "text": b"OK, thanks",
    "their words in a page": b'<html>{"ok": true, "id": "1", "object": "page"}</html>',
}


@pytest.mark.fault(99)
@pytest.mark.parametrize("kind", ["slack webhook", "slack token", "discord", "telegram", "notion"])
@pytest.mark.parametrize("body", NOT_THEIRS.values(), ids=NOT_THEIRS.keys())
@pytest.mark.parametrize("status", [200, 202])
def test_a_two_hundred_that_is_not_the_vendors_is_not_sent(
    kind: str, body: bytes, status: int, receiver: Receiver
) -> None:
    sink = SINKS_UNDER_TEST[kind]
    receiver.always = Reply(status, body)
    outcome = send(sink.made(receiver.url), sink.fields)
    assert (outcome.verdict, outcome.blame) == ("retry", "destination")


@pytest.mark.fault(99)
def test_what_is_large_or_spoken_by_a_like_service_is_theirs(receiver: Receiver) -> None:
    """Notion's answer repeats the whole page, so only its beginning may be there."""
    large = b'{"object": "page", "id": "1", "properties": "' + b"x" * LONGEST_ANSWER * 2 + b'"}'
    for kind, body in (
        ("notion", large),
        ("slack webhook", b'{"success": true}'),
        ("slack webhook", b'{"ok":true}'),
    ):
        sink = SINKS_UNDER_TEST[kind]
        receiver.always = Reply(200, body)
        assert send(sink.made(receiver.url), sink.fields).verdict == "sent"


@pytest.mark.fault(99)
def test_slacks_api_at_a_webhooks_address_is_understood(receiver: Receiver) -> None:
    sink = SINKS_UNDER_TEST["slack webhook"]
    receiver.always = Reply(200, b'{"ok": false, "error": "not_authed"}')
    outcome = send(sink.made(receiver.url), sink.fields)
    assert (outcome.verdict, outcome.code, outcome.blame) == ("dead", "slack_not_authed", "destination")


def test_a_group_that_became_a_supergroup_gets_it_and_its_new_id_is_told(receiver: Receiver) -> None:
    moved = {
        "ok": False,
        "description": "Bad Request: group chat was upgraded to a supergroup chat",
        "parameters": {"migrate_to_chat_id": -1001234567890},
    }
    sink = SINKS_UNDER_TEST["telegram"]
    receiver.replies = [Reply(400, json.dumps(moved).encode())]
    receiver.always = Reply(200, sink.ok)
    outcome = send(sink.made(receiver.url), sink.fields)
    assert (outcome.verdict, outcome.code) == ("sent", "chat_moved")
    assert "-1001234567890" in outcome.cause
    chats = [json.loads(request.body)["chat_id"] for request in receiver.requests]
    assert chats == ["7", -1001234567890]
    receiver.replies = [Reply(400, json.dumps(moved).encode())]
    receiver.always = Reply(403, b'{"ok": false, "description": "Forbidden: bot was kicked"}')
    refused = send(sink.made(receiver.url), sink.fields)
    assert (refused.verdict, refused.code) == ("dead", "http_403")
    assert "-1001234567890" in refused.cause


@each_sink
def test_no_secret_is_shown(sink: UnderTest, receiver: Receiver) -> None:
    connection = sink.made(receiver.url)
    shown = f"{connection!r} {connection}"
    for secret in sink.secrets:
        assert secret not in shown
    receiver.always = Reply(500)
    outcome = send(connection, sink.fields)
    assert not any(secret in f"{outcome}" for secret in sink.secrets)


@each_sink
def test_a_message_that_is_none_is_dead_and_says_which_key(sink: UnderTest, receiver: Receiver) -> None:
    outcome = send(sink.made(receiver.url), {**sink.fields, "surprise": "CANARY"})
    assert (outcome.verdict, outcome.code, outcome.blame) == ("dead", "message", "message")
    assert "surprise" in outcome.cause
    assert "CANARY" not in outcome.cause
    assert receiver.requests == []


# -- mail ---------------------------------------------------------------------------------------------


@pytest.fixture
def mail_server() -> Iterator[MailServer]:
    server = MailServer()
    yield server
    server.close()


def mailer(server: MailServer) -> SinkConnection:
    values = {"type": "email", "host": "127.0.0.1", "port": server.port, "security": "none"}
    return SINKS["email"].model_validate({**values, "from": "Bridge <bridge@example.com>"})


MAIL = {"to": ["Ada <ada@example.com>"], "subject": "Hello", "text": "plain", "html": "<b>rich</b>"}


def test_a_mail_has_both_bodies_and_the_same_message_id_at_every_attempt(mail_server: MailServer) -> None:
    assert send(mailer(mail_server), MAIL, times=2).verdict == "sent"
    (to, first), (_, second) = mail_server.mails
    assert to == ["ada@example.com"]
    assert first["Message-ID"] == second["Message-ID"] == f"<{IDENTITY}@example.com>"
    assert first["From"] == "Bridge <bridge@example.com>"
    assert first["Auto-Submitted"] == "auto-generated"
    parts = [(part.get_content_type(), part.get_content().strip()) for part in first.iter_parts()]
    assert parts == [("text/plain", "plain"), ("text/html", "<b>rich</b>")]


@pytest.mark.fault(72)
@pytest.mark.parametrize(
    ("answer", "verdict", "code"),
    [
        ("451 later", "retry", "smtp_451"),
        ("421 going down", "retry", "smtp_421"),
        ("550 no", "dead", "smtp_550"),
        ("554 CANARY", "dead", "smtp_554"),
        ("cut", "retry", "connection_lost"),
    ],
)
def test_a_mail_servers_answer_decides(answer: str, verdict: str, code: str, mail_server: MailServer) -> None:
    mail_server.answers = [answer]
    outcome = send(mailer(mail_server), MAIL)
    assert (outcome.verdict, outcome.code) == (verdict, code)
    assert "CANARY" not in outcome.cause


def test_a_mail_without_recipient_goes_to_the_fallback(mail_server: MailServer) -> None:
    fields = {**MAIL, "to": None, "fallback": "ops@example.com"}
    assert send(mailer(mail_server), fields).verdict == "sent"
    assert mail_server.mails[0][0] == ["ops@example.com"]


@pytest.mark.security(16)
def test_line_breaks_in_a_mails_header_are_refused(mail_server: MailServer) -> None:
    for wrong in ({"subject": NASTY}, {"to": "a@example.com\r\nBcc: b@example.com"}, {"reply_to": NASTY}):
        outcome = send(mailer(mail_server), {**MAIL, **wrong})
        assert (outcome.verdict, outcome.code) == ("dead", "message")
        assert "Injected" not in outcome.cause
    assert mail_server.mails == []


def test_a_mail_server_without_tls_gets_nothing_unless_told_so(mail_server: MailServer) -> None:
    values = {"type": "email", "host": "127.0.0.1", "port": mail_server.port, "from": "b@example.com"}
    outcome = send(SINKS["email"].model_validate(values), MAIL)
    assert (outcome.verdict, outcome.code) == ("retry", "no_tls")
    assert mail_server.mails == []


@pytest.mark.fault(72)
def test_no_mail_server_is_tried_again() -> None:
    gone = MailServer()
    gone.close()
    outcome = send(mailer(gone), MAIL)
    assert (outcome.verdict, outcome.code) == ("retry", "connection_lost")
