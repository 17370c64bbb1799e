"""What each vendor is sent: formatting, limits, recipients. The requests are caught, not the network's work."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.planning.spec import SinkSpec
from bridge.sinks import discord_text, slack_blocks, telegram
from bridge.sinks.model import SINKS, Delivery, Reply, SendError, SendOutcome, Wire
from bridge.sinks.reachable import AddressGuard
from tests.unit.pipeline.samples import event, pipeline, plan, planner

NASTY = "<!channel> & *b* _i_ `c` [l](http://x) @everyone 1.5! -x"


class Caught:
    """Keeps the request instead of sending it."""

    def __init__(self, answer: Reply) -> None:
        self.answer = answer
        self.url = ""
        self.headers: Mapping[str, str] = {}
        self.body: Any = None

    async def post(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        content: bytes,
        timeout: float,
        guard: AddressGuard | None,
    ) -> Reply:
        self.url, self.headers, self.body = url, headers, json.loads(content, parse_float=Decimal)
        return self.answer


def delivery(fields: Mapping[str, Any]) -> Delivery:
    return Delivery("id-1", "e-1", "usage.limit_reached", None, None, fields)


def send(
    kind: str, connection: Mapping[str, Any], fields: Mapping[str, Any], answer: Reply | None = None
) -> tuple[SendOutcome, Caught]:
    caught = Caught(answer or Reply(200, body=OK[kind]))
    sink = SINKS[kind].model_validate({"type": kind, **connection})
    try:
        return asyncio.run(sink.send(delivery(fields), Wire(caught))), caught
    except SendError as error:
        return error.outcome, caught


OK = {
    "slack": b'{"ok": true}',
    "discord": b'{"id": "1"}',
    "telegram": b'{"ok": true, "result": {}}',
    "notion": b'{"object": "page"}',
}
SLACK = {"token": "xoxb-1", "channel": "C0"}
DISCORD = {"webhook_url": "https://discord.example/hook"}
TELEGRAM = {"token": "123:abcdefghijk", "chat_id": "1"}
NOTION = {
    "token": "ntn_1",
    "database_id": "01234567-89ab-cdef-0123-456789abcdef",
    "properties": {
        "Name": "title",
        "Note": "rich_text",
        "Used": "number",
        "Plan": "select",
        "Tags": "multi_select",
        "At": "date",
        "Paid": "checkbox",
        "Link": "url",
    },
}


# -- values are inert ---------------------------------------------------------------------------------


def rendered(kind: str, fields: dict[str, Any], payload: dict[str, Any]) -> dict[str, Any]:
    """A destination's body as the planner makes it."""
    message = SINKS[kind].message
    spec = SinkSpec("s", "c", kind, {**message.given, **fields}, message.markup(fields))
    planned, _ = plan(planner(pipeline(destinations=(spec,)), contract=False), [event(payload)])
    assert planned.dead_letters == []
    (one,) = planned.deliveries
    body: dict[str, Any] = json.loads(one.body, parse_float=Decimal)
    return body


def test_your_own_text_is_markup_and_an_events_values_are_not() -> None:
    text = "*{{ event.name }}* <https://x|y>"
    payload = {"name": "<!channel> & co"}
    assert rendered("slack", {"text": text}, payload)["text"] == ("*&lt;!channel&gt; &amp; co* <https://x|y>")
    assert rendered("discord", {"text": "**{{ event.name }}**"}, {"name": "*x* @everyone"})["text"] == (
        r"**\*x\* \@everyone**"
    )
    markdown = {"text": r"*{{ event.name }}*\!", "format": "markdown"}
    assert rendered("telegram", markdown, {"name": "a.b-c!"})["text"] == r"*a\.b\-c\!*\!"
    assert rendered("telegram", {"text": "{{ event.name }}"}, {"name": "a.b"})["text"] == "a.b"
    html = rendered(
        "email", {"html": "<b>{{ event.name }}</b>", "text": "{{ event.name }}"}, {"name": "<i>&"}
    )
    assert html == {"html": "<b>&lt;i&gt;&amp;</b>", "text": "<i>&"}


def test_an_expression_alone_is_escaped_like_one_in_a_text() -> None:
    assert rendered("slack", {"text": "$event.name"}, {"name": "<x>"})["text"] == "&lt;x&gt;"
    markdown = {"text": "$event.n", "format": "markdown"}
    assert rendered("telegram", markdown, {"n": -1.5})["text"] == r"\-1\.5"
    blocks = [{"type": "section", "text": {"type": "mrkdwn", "text": "{{ event.name }}"}}]
    body = rendered("slack", {"text": "t", "blocks": blocks, "channel": "$event.name"}, {"name": "<x>"})
    assert body["blocks"][0]["text"]["text"] == "&lt;x&gt;"
    assert body["channel"] == "<x>", "only what is markup is escaped"


@given(st.text())
def test_slacks_text_can_be_read_back(text: str) -> None:
    escaped = slack_blocks.escape(text)
    assert "<" not in escaped
    assert ">" not in escaped
    assert escaped.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") == text


@given(st.text())
def test_backslashes_can_be_read_back_and_nothing_reserved_stands_alone(text: str) -> None:
    for escape, reserved in ((telegram.escape, "_*[]()~`>#+-=|{}.!"), (discord_text.escape, "*_~`|>")):
        escaped = escape(text)
        read, at = [], 0
        while at < len(escaped):
            assert escaped[at] not in reserved
            at += escaped[at] == "\\"
            read.append(escaped[at])
            at += 1
        assert "".join(read) == text


# -- recipients ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "connection", "key", "fields"),
    [
        ("slack", SLACK, "channel", {"text": "t"}),
        ("telegram", TELEGRAM, "chat_id", {"text": "t"}),
    ],
)
def test_the_recipient_is_the_events_else_the_fallback_else_the_connections(
    kind: str, connection: dict[str, Any], key: str, fields: dict[str, Any]
) -> None:
    own = connection[key]
    for given_one, fallback, wanted in (("7", "8", "7"), (None, "8", "8"), ("", "8", "8"), (None, None, own)):
        _, caught = send(kind, connection, {**fields, key: given_one, "fallback": fallback})
        assert caught.body[key] == wanted
    without = {name: value for name, value in connection.items() if name != key}
    outcome, _ = send(kind, without, fields)
    assert (outcome.verdict, outcome.code) == ("dead", "message")


def test_a_chat_that_is_a_number_is_taken() -> None:
    _, caught = send("telegram", TELEGRAM, {"text": "t", "chat_id": -1001234567890})
    assert caught.body["chat_id"] == "-1001234567890"


# -- vendors ------------------------------------------------------------------------------------------


def test_long_texts_are_cut_where_the_vendor_ends() -> None:
    for kind, connection, key, limit in (
        ("slack", SLACK, "text", 40_000),
        ("discord", DISCORD, "content", 2000),
        ("telegram", TELEGRAM, "text", 4096),
    ):
        _, caught = send(kind, connection, {"text": "x" * 50_000})
        assert len(caught.body[key]) == limit
        assert caught.body[key].endswith("\N{HORIZONTAL ELLIPSIS}")


def test_discord_never_mentions_anybody() -> None:
    _, caught = send("discord", DISCORD, {"text": "@everyone", "thread_id": "42"})
    assert caught.body == {"content": "@everyone", "allowed_mentions": {"parse": []}}
    assert caught.url == "https://discord.example/hook?wait=true&thread_id=42"


def test_discord_and_telegram_say_in_the_body_how_long_to_wait() -> None:
    slow = Reply(429, body=b'{"message": "You are being rate limited.", "retry_after": 64.57}')
    outcome, _ = send("discord", DISCORD, {"text": "t"}, slow)
    assert (outcome.verdict, outcome.retry_after, outcome.blame) == ("retry", 64.57, "pace")
    slow = Reply(429, body=b'{"ok": false, "error_code": 429, "parameters": {"retry_after": 5}}')
    outcome, _ = send("telegram", TELEGRAM, {"text": "t"}, slow)
    assert (outcome.verdict, outcome.retry_after, outcome.blame) == ("retry", 5.0, "pace")


@pytest.mark.parametrize(
    ("error", "verdict", "blame"),
    [
        ("ratelimited", "retry", "pace"),
        ("internal_error", "retry", "destination"),
        ("channel_not_found", "dead", "destination"),
        ("invalid_blocks", "dead", "message"),
        ("invalid_auth", "dead", "destination"),
        ("Quotes the message", "retry", "destination"),
    ],
)
def test_slacks_api_says_no_in_a_two_hundred(error: str, verdict: str, blame: str) -> None:
    answer = Reply(200, {"retry-after": "30"}, json.dumps({"ok": False, "error": error}).encode())
    outcome, _ = send("slack", SLACK, {"text": "t"}, answer)
    assert (outcome.verdict, outcome.blame) == (verdict, blame)
    assert "Quotes" not in outcome.cause


def test_telegram_names_only_reasons_without_values() -> None:
    body = json.dumps({"ok": False, "description": "Bad Request: can't parse entities: CANARY"}).encode()
    outcome, _ = send("telegram", TELEGRAM, {"text": "t", "format": "markdown"}, Reply(400, body=body))
    assert outcome.verdict == "dead"
    assert "can't parse entities" in outcome.cause
    assert "CANARY" not in outcome.cause


def test_notion_properties_have_the_forms_of_their_types() -> None:
    fields = {
        "properties": {
            "Name": NASTY,
            "Note": "x" * 4500,
            "Used": Decimal("12345678901234567890.50"),
            "Plan": "a, b",
            "Tags": ["x", "y"],
            "At": "2027-03-01",
            "Paid": True,
            "Link": None,
        },
        "text": "body",
    }
    outcome, caught = send("notion", NOTION, fields)
    assert outcome.verdict == "sent"
    made = caught.body["properties"]
    assert made["Name"]["title"][0]["text"]["content"] == NASTY
    assert [len(piece["text"]["content"]) for piece in made["Note"]["rich_text"]] == [2000, 2000, 500]
    assert made["Used"] == {"number": Decimal("12345678901234567890.50")}
    assert made["Plan"] == {"select": {"name": "a  b"}}
    assert made["Tags"] == {"multi_select": [{"name": "x"}, {"name": "y"}]}
    assert made["At"] == {"date": {"start": "2027-03-01"}}
    assert made["Paid"] == {"checkbox": True}
    assert "Link" not in made
    assert caught.headers["notion-version"]


@pytest.mark.parametrize("wrong", [{"Used": "CANARY"}, {"Used": True}, {"At": "CANARY"}, {"Paid": "yes"}])
def test_a_notion_value_of_another_type_is_dead_and_names_the_property(wrong: dict[str, Any]) -> None:
    outcome, caught = send("notion", NOTION, {"properties": {"Name": "n", **wrong}})
    assert (outcome.verdict, outcome.code) == ("dead", "message")
    assert next(iter(wrong)) in outcome.cause
    assert "CANARY" not in outcome.cause
    assert caught.url == ""


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("slack", {}),
        ("slack", {"webhook_url": "https://x.example/1", "token": "t"}),
        ("slack", {"webhook_url": "ftp://x.example/1"}),
        ("slack", {"token": "a\r\nb"}),
        ("discord", {}),
        ("telegram", {"token": "CANARY"}),
        ("webhook", {"url": "https://x.example"}),
        ("webhook", {"url": "https://x.example", "secret": "whsec_CANARY"}),
        ("webhook", {"url": "https://x.example", "secret": ""}),
        ("notion", {**NOTION, "database_id": "CANARY"}),
        ("notion", {**NOTION, "properties": {"Name": "titel"}}),
        ("email", {"host": "m.example", "from": "nobody"}),
        ("email", {"host": "m.example", "from": "a@b.example", "user": "u"}),
        (
            "email",
            {
                "host": "m.example",
                "from": "a@b.example",
                "user": "u",
                "password": "CANARY",
                "security": "none",
            },
        ),
    ],
)
def test_a_wrong_connection_is_refused_without_its_values(kind: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011  pydantic's error is a ValueError; its text is below
        SINKS[kind].model_validate({"type": kind, **wrong})
    assert "CANARY" not in str(refused.value)


def test_variables_that_are_not_set_are_no_error_offline() -> None:
    for kind, connection in {
        "slack": {"webhook_url": "${A}"},
        "discord": {"webhook_url": "${A}"},
        "telegram": {"token": "${A}"},
        "webhook": {"url": "${A}", "secret": "${B}", "allow": ["${C}"]},
        "notion": {"token": "${A}", "database_id": "${B}", "properties": {"Name": "title"}},
        "email": {"host": "${A}", "from": "${B}", "user": "${C}", "password": "${D}"},
    }.items():
        SINKS[kind].model_validate({"type": kind, **connection})
