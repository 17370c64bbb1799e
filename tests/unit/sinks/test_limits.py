"""Every vendor's limit of every field: what is too long is truncated so that it still means what it says, what is empty
is left out, and what a vendor says of the rest is told."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.sinks import discord_text, slack_blocks
from bridge.sinks.discord import fitted as fitted_embeds
from bridge.sinks.model import Reply, SendError
from bridge.sinks.slack_blocks import fitted as fitted_blocks
from tests.unit.sinks.test_messages import DISCORD, NOTION, SLACK, TELEGRAM, send

LONG = "x" * 50_000
MORE = "\N{HORIZONTAL ELLIPSIS}"


def text(of: str) -> dict[str, str]:
    return {"type": "mrkdwn", "text": of}


# -- Slack --------------------------------------------------------------------------------------------


def test_slacks_blocks_fit() -> None:
    link = "https://x.example/" + LONG
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": text(LONG)},
        {"type": "section", "text": text(LONG), "fields": [text(LONG)] * 12},
        {
            "type": "section",
            "text": text("t"),
            "accessory": {"type": "button", "text": text(LONG), "url": link},
        },
        {"type": "context", "elements": [text(LONG)] * 12},
        {"type": "image", "image_url": "https://x.example/i", "alt_text": LONG, "title": text(LONG)},
        {"type": "markdown", "text": LONG},
        {
            "type": "actions",
            "elements": [
                {
                    "type": "static_select",
                    "placeholder": text(LONG),
                    "options": [{"text": text(LONG), "value": "v"}],
                    "confirm": {
                        "title": text(LONG),
                        "text": text(LONG),
                        "confirm": text(LONG),
                        "deny": text("no"),
                    },
                }
            ],
        },
    ]
    header, section, linked, context, image, markdown, actions = fitted_blocks(blocks)
    (select,) = actions["elements"]
    lengths = {
        len(header["text"]["text"]): 150,
        len(section["text"]["text"]): 3000,
        len(section["fields"][0]["text"]): 2000,
        len(section["fields"]): 10,
        len(linked["accessory"]["text"]["text"]): 75,
        len(context["elements"]): 10,
        len(image["alt_text"]): 2000,
        len(image["title"]["text"]): 2000,
        len(markdown["text"]): 12_000,
        len(select["placeholder"]["text"]): 150,
        len(select["options"][0]["text"]["text"]): 75,
        len(select["confirm"]["title"]["text"]): 100,
        len(select["confirm"]["text"]["text"]): 300,
        len(select["confirm"]["confirm"]["text"]): 30,
    }
    assert list(lengths) == list(lengths.values())
    assert "url" not in linked["accessory"], "half an address leads elsewhere"


def test_of_slacks_blocks_what_is_empty_is_left_out() -> None:
    blocks = [
        {"type": "section", "text": text(" ")},
        {"type": "section", "text": text(""), "fields": [text("f"), text("")]},
        {"type": "context", "elements": [text("")]},
        {"type": "image", "image_url": "", "alt_text": "a"},
        {"type": "image", "image_url": "https://x.example/i", "alt_text": ""},
        {"type": "actions", "elements": [{"type": "button", "text": text("b"), "url": "", "style": None}]},
        {"type": "divider"},
        {"type": "table", "rows": [[{"type": "raw_text", "text": ""}, {"type": "raw_text", "text": "c"}]]},
    ]
    assert fitted_blocks(blocks) == [
        {"type": "section", "fields": [text("f")]},
        {"type": "image", "image_url": "https://x.example/i", "alt_text": "image"},
        {"type": "actions", "elements": [{"type": "button", "text": text("b")}]},
        {"type": "divider"},
        {"type": "table", "rows": [[{"type": "raw_text", "text": ""}, {"type": "raw_text", "text": "c"}]]},
    ]
    many = fitted_blocks([{"type": "divider"}] * 60)
    assert len(many) == 50
    assert many[-1]["elements"][0]["text"] == MORE
    outcome, caught = send("slack", SLACK, {"blocks": [{"type": "section", "text": text("")}]})
    assert (outcome.verdict, outcome.code, caught.url) == ("dead", "message", "")
    _, caught = send("slack", SLACK, {"text": "", "blocks": [{"type": "divider"}]})
    assert "text" not in caught.body


@given(st.text("&<>|ab ;", max_size=60), st.integers(5, 30))
def test_a_truncated_text_of_slack_has_no_half_entity(value: str, limit: int) -> None:
    made = slack_blocks.cut_text(slack_blocks.escape(value), limit)
    assert len(made) <= limit
    assert not any(part.partition(";")[0] not in ("amp", "lt", "gt") for part in made.split("&")[1:])


def test_a_truncated_text_of_slack_has_no_half_link() -> None:
    assert slack_blocks.cut_text("see <https://x.example/abc|open>", 20) == "see " + MORE


def test_slack_tells_the_field() -> None:
    said = {
        "ok": False,
        "error": "invalid_blocks",
        "errors": ["CANARY"],
        "response_metadata": {
            "messages": [
                "[ERROR] must be less than 3001 characters [json-pointer:/blocks/0/text/text] CANARY",
                "[ERROR] missing required field: alt_text [json-pointer:/blocks/1]",
                "[ERROR] CANARY",
            ]
        },
    }
    outcome, _ = send("slack", SLACK, {"text": "t"}, Reply(200, body=json.dumps(said).encode()))
    assert outcome.cause == (
        "Slack says invalid_blocks: blocks/0/text/text must be less than 3001 characters; "
        "blocks/1 missing required field: alt_text"
    )


# -- Discord ------------------------------------------------------------------------------------------


def test_discords_embeds_fit() -> None:
    link = "https://x.example/" + LONG
    (one,) = fitted_embeds([{"title": LONG, "description": LONG, "url": link, "thumbnail": {"url": link}}])
    assert (len(one["title"]), len(one["description"])) == (256, 4096)
    assert one.keys() == {"title", "description"}
    (two,) = fitted_embeds(
        [
            {
                "author": {"name": LONG, "url": link, "icon_url": "https://x.example/i"},
                "footer": {"text": LONG},
                "fields": [{"name": LONG, "value": LONG}] * 2 + [{"name": "n", "value": "v"}] * 30,
            }
        ]
    )
    assert two["author"] == {"name": "x" * 255 + MORE, "icon_url": "https://x.example/i"}
    assert len(two["footer"]["text"]) == 2048
    assert (len(two["fields"][0]["name"]), len(two["fields"][0]["value"]), len(two["fields"])) == (
        256,
        1024,
        25,
    )
    many = fitted_embeds([{"title": "t", "description": LONG}] * 12)
    assert sum(len(each["title"]) + len(each.get("description", "")) for each in many) == 6000
    assert len(many) == 10, "an embed without room keeps its title"


@given(st.integers(1, 12), st.integers(0, 30), st.integers(0, 5000))
def test_all_of_discords_embeds_together_fit(embeds: int, fields: int, length: int) -> None:
    field = {"name": "n" * length, "value": "v" * length}
    one = {
        "title": "t" * length,
        "description": "d" * length,
        "footer": {"text": "f" * length},
        "fields": [field] * fields,
    }
    made = fitted_embeds([one] * embeds)

    def characters(value: Any) -> int:
        if isinstance(value, str):
            return len(value)
        items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return sum(map(characters, items))

    assert characters(made) <= 6000
    assert all(each["name"] and each["value"] for embed in made for each in embed.get("fields", []))


def test_discords_fields_have_the_types_that_it_takes() -> None:
    for color, wanted in (
        (15105570, 15105570),
        ("15105570", 15105570),
        ("#E67E22", 15105570),
        ("0xe67e22", 15105570),
    ):
        assert fitted_embeds([{"title": "t", "color": color}]) == [{"title": "t", "color": wanted}]
    for moment in ("2027-03-01 09:00:00+00", "2027-03-01T09:00:00Z", 1803891600, "1803891600", 1803891600000):
        (made,) = fitted_embeds([{"title": "t", "timestamp": moment}])
        assert made["timestamp"] == "2027-03-01T09:00:00+00:00"
    (made,) = fitted_embeds([{"fields": [{"name": "n", "value": 5, "inline": "true"}]}])
    assert made["fields"] == [{"name": "n", "value": "5", "inline": True}]
    empty = {
        "title": "t",
        "color": "",
        "timestamp": "",
        "url": "",
        "image": {"url": None},
        "footer": {"text": ""},
    }
    assert fitted_embeds([{**empty, "fields": [{"name": "n", "value": ""}]}, {"color": 5}]) == [
        {"title": "t"}
    ]
    for wrong in ({"color": "CANARY"}, {"color": 2**24}, {"color": True}, {"timestamp": "CANARY"}):
        with pytest.raises(SendError) as refused:
            fitted_embeds([{"title": "t", **wrong}])
        assert refused.value.outcome.blame == "message"
        assert f"embeds[0].{next(iter(wrong))}" in refused.value.outcome.cause
        assert "CANARY" not in refused.value.outcome.cause


def test_a_truncated_text_of_discord_means_what_it_says() -> None:
    assert discord_text.cut_text("see [log](https://x.example/abcdef)", 25) == "see " + MORE
    assert discord_text.cut_text("see https://x.example/abcdef now", 20) == "see " + MORE
    assert discord_text.cut_text("see https://x.io now and", 20) == "see https://x.io no" + MORE
    assert discord_text.cut_text(r"aaa\*bbb", 5) == "aaa" + MORE
    fenced = discord_text.cut_text("```\n" + "x" * 100 + "\n```", 50)
    assert len(fenced) <= 50
    assert fenced.count("```") == 2


def test_discord_tells_the_field() -> None:
    codes = {"_errors": [{"code": "URL_TYPE_INVALID_URL", "message": "CANARY"}]}
    said = {
        "code": 50035,
        "message": "CANARY",
        "errors": {"embeds": {"0": {"url": codes, "CANARY KEY": codes}}, "content": codes},
    }
    outcome, _ = send("discord", DISCORD, {"text": "t"}, Reply(400, body=json.dumps(said).encode()))
    assert "embeds[0].url: URL_TYPE_INVALID_URL; content: URL_TYPE_INVALID_URL" in outcome.cause
    assert "CANARY" not in outcome.cause


# -- Notion -------------------------------------------------------------------------------------------


def units(of: str) -> int:
    return len(of.encode("utf-16-le")) // 2


def test_notions_properties_fit_in_utf_16() -> None:
    emoji = "\N{GRINNING FACE}"
    fields = {
        "Name": "a" + emoji * 1500,
        "Note": emoji * 150_000,
        "Plan": emoji * 80,
        "Tags": [*(f"t{number}" for number in range(120)), "t0", "", None],
        "Link": "https://x.example/" + LONG,
        "At": "2027-03-01 09:00:00+00",
    }
    _, caught = send("notion", NOTION, {"properties": fields})
    made = caught.body["properties"]
    for name, kind in (("Name", "title"), ("Note", "rich_text")):
        pieces = [piece["text"]["content"] for piece in made[name][kind]]
        assert max(map(units, pieces)) <= 2000
        assert len(pieces) <= 100
    assert "".join(piece["text"]["content"] for piece in made["Name"]["title"]) == fields["Name"]
    assert made["Note"]["rich_text"][-1]["text"]["content"].endswith(MORE)
    assert units(made["Plan"]["select"]["name"]) <= 100
    assert len(made["Tags"]["multi_select"]) == 100
    assert "Link" not in made
    assert made["At"] == {"date": {"start": "2027-03-01T09:00:00+00:00"}}


def test_of_notions_properties_what_is_empty_is_left_out() -> None:
    fields = {"Name": "n", "Link": "", "Plan": "", "Tags": [], "At": "", "Used": "", "Note": ""}
    outcome, caught = send("notion", NOTION, {"properties": fields})
    assert outcome.verdict == "sent"
    assert caught.body["properties"].keys() == {"Name", "Tags", "Note"}


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            "body failed validation: body.properties.Note.rich_text[0].text.content.length should be \u2264 `2000`, "
            "instead was `CANARY`.",
            "properties.Note should be \u2264 `2000`",
        ),
        ("Link is expected to be url.", "Link is expected to be url"),
        ("CANARY is expected to be url.", "validation_error"),
    ],
)
def test_notion_tells_the_property(message: str, told: str) -> None:
    said = json.dumps({"object": "error", "code": "validation_error", "message": message}).encode()
    outcome, _ = send("notion", NOTION, {"properties": {"Name": "n"}}, Reply(400, body=said))
    assert told in outcome.cause
    assert "CANARY" not in outcome.cause


# -- Telegram -----------------------------------------------------------------------------------------


def test_whose_chat_it_is_decides_whom_telegram_blames() -> None:
    for description in ("Bad Request: chat not found", "Forbidden: bot was blocked by the user"):
        status = 403 if "Forbidden" in description else 400
        answer = Reply(status, body=json.dumps({"ok": False, "description": description}).encode())
        named, _ = send("telegram", TELEGRAM, {"text": "t", "chat_id": "8"}, answer)
        configured, _ = send("telegram", TELEGRAM, {"text": "t"}, answer)
        assert (named.blame, configured.blame) == ("recipient", "destination")
