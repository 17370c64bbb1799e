"""What a value becomes by its place: a text, a code span, a link's address, or a field that is no markup."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.expressions.markup import MARK, InContext, Markup
from bridge.expressions.template import compile_template
from bridge.sinks import discord_text, slack_blocks
from tests.unit.sinks.test_messages import rendered

URL = "https://ci.example/acme/web_app/runs/1-2#L3"
NASTY = "a`b*c_d)e>f|g\\h<i> [x](y) @everyone ~~s~~"


@pytest.mark.parametrize(
    ("text", "value", "said"),
    [
        ("`{{ event.v }}` failed", "cus_42-a", "`cus_42-a` failed"),
        ("``{{ event.v }}``", "a`b", "``a\u02cbb``"),
        ("```\n{{ event.v }}\n```", "x = y*z[0]\n```", "```\nx = y*z[0]\n\u02cb\u02cb\u02cb\n```"),
        ("`{{ event.v }}`", "", "` `"),
        ("see {{ event.v }}", URL, f"see {URL}"),
        ("<{{ event.v }}>", URL, f"<{URL}>"),
        ("[open]({{ event.v }})", URL, f"[open]({URL})"),
        ("[open]({{ event.v }})", "https://x.example/a (b)|c", "[open](https://x.example/a%20%28b%29%7Cc)"),
        ("[open](https://x.example/{{ event.v }}/log)", "a_b-c", "[open](https://x.example/a_b-c/log)"),
        ("https://x.example/{{ event.v }}?q=1", "a_b*c", "https://x.example/a_b%2Ac?q=1"),
        ("https://x.example/a {{ event.v }}", "a_b", r"https://x.example/a a\_b"),
        ("[{{ event.v }}](https://x.example)", "a]b", r"[a\]b](https://x.example)"),
        ("a ` b {{ event.v }}", "*x*", r"a ` b \*x\*"),
        (r"\`{{ event.v }}\`", "*x*", r"\`\*x\*\`"),
        ("{{ event.v }}", "see https://x.example/a_b", r"see https\://x.example/a\_b"),
        ("**{{ event.v }}**", "javascript:alert(1)", r"**javascript\:alert\(1\)**"),
    ],
)
def test_discords_text_code_and_links(text: str, value: str, said: str) -> None:
    assert rendered("discord", {"text": text}, {"v": value})["text"] == said


def test_a_loop_in_a_code_block_is_code() -> None:
    text = "```\n{% for x in event.v %}{{ x }}\n{% endfor %}```{{ event.w }}"
    assert (
        rendered("discord", {"text": text}, {"v": ["a_b", "c*d"], "w": "*"})["text"]
        == "```\na_b\nc*d\n```\\*"
    )


@pytest.mark.fault(100)
@given(st.text())
def test_a_value_cannot_leave_discords_code_or_link(value: str) -> None:
    assert discord_text.around(f"`{MARK}`", [value]).count("`") == 2
    link = discord_text.around(f"[x]({MARK}) y", [value])
    assert re.fullmatch(r"\[x\]\([^\s()<>`*|]*\) y", link)


@pytest.mark.parametrize(
    ("text", "value", "said"),
    [
        ("<{{ event.v }}|open>", "https://x.example/?a=1&b=2", "<https://x.example/?a=1&amp;b=2|open>"),
        ("<{{ event.v }}|open>", "https://x.example/a|b>c d", "<https://x.example/a%7Cb%3Ec%20d|open>"),
        ("<{{ event.v }}|open>", "!channel", "<%21channel|open>"),
        ("<{{ event.v }}|open>", "@U123", "<%40U123|open>"),
        ("<https://x.example/{{ event.v }}|open>", "a b", "<https://x.example/a%20b|open>"),
        ("<@{{ event.v }}> hi", "U123", "<@U123> hi"),
        ("<https://x.example|{{ event.v }}>", "a>b", "<https://x.example|a&gt;b>"),
        ("`{{ event.v }}`", "a<b", "`a&lt;b`"),
    ],
)
def test_slacks_text_and_links(text: str, value: str, said: str) -> None:
    assert rendered("slack", {"text": text}, {"v": value})["text"] == said


@pytest.mark.fault(100)
@given(st.text())
def test_a_value_cannot_leave_slacks_link(value: str) -> None:
    link = slack_blocks.around(f"<{MARK}|x>", [value])
    assert re.fullmatch(r"<[^<>|]*\|x>", link)
    assert not link.startswith(("<!", "<@", "<#"))


def test_only_what_is_markup_is_escaped_in_embeds() -> None:
    embed = {
        "title": "{{ event.t }}",
        "url": "$event.url",
        "description": "$event.t",
        "timestamp": "$meta.occurred_at",
        "color": "$event.color",
        "image": {"url": "{{ event.url }}"},
        "author": {"name": "$event.t", "icon_url": "$event.url"},
        "footer": {"text": "{{ event.t }}"},
        "fields": [{"name": "$event.t", "value": "$event.n", "inline": "$event.inline"}],
    }
    payload = {"t": "a_b", "url": URL, "color": 15105570, "n": -1.5, "inline": True}
    (made,) = rendered("discord", {"embeds": [embed]}, payload)["embeds"]
    assert made["title"] == made["description"] == made["fields"][0]["name"] == r"a\_b"
    assert made["footer"]["text"] == made["author"]["name"] == "a_b"
    assert made["url"] == made["image"]["url"] == made["author"]["icon_url"] == URL
    assert made["color"] == 15105570
    assert made["fields"][0] == {"name": r"a\_b", "value": r"\-1.5", "inline": True}
    assert "\\" not in made["timestamp"]
    whole = rendered("discord", {"embeds": "$event.e"}, {"e": [{"title": "a_b", "url": URL, "color": 5}]})
    assert whole["embeds"] == [{"title": r"a\_b", "url": URL, "color": 5}], "also of an embed that is data"


def test_only_what_is_markup_is_escaped_in_blocks() -> None:
    value = "<!channel> & x"
    text = {"type": "mrkdwn", "text": "{{ event.v }}"}
    blocks: list[Any] = [
        {
            "type": "section",
            "text": text,
            "fields": [text],
            "accessory": {"type": "image", "image_url": "$event.u"},
        },
        {"type": "context", "elements": [text]},
        {
            "type": "actions",
            "elements": [{"type": "button", "text": text, "url": "$event.u", "value": "$event.v"}],
        },
        {
            "type": "rich_text",
            "elements": [{"type": "rich_text_section", "elements": [{"type": "text", "text": "$event.v"}]}],
        },
    ]
    url = "https://x.example/?a=1&b=2"
    made = rendered("slack", {"blocks": blocks}, {"v": value, "u": url})["blocks"]
    inert = "&lt;!channel&gt; &amp; x"
    assert made[0]["text"]["text"] == made[0]["fields"][0]["text"] == made[1]["elements"][0]["text"] == inert
    assert made[0]["accessory"]["image_url"] == made[2]["elements"][0]["url"] == url
    assert made[2]["elements"][0]["text"]["text"] == inert
    assert made[2]["elements"][0]["value"] == made[3]["elements"][0]["elements"][0]["text"] == value


def test_a_mark_of_the_authors_own_is_no_value() -> None:
    def around(text: str, values: Any) -> str:
        assert text.count(MARK) == len(values)
        return text

    escape = InContext(str, around)
    assert compile_template(MARK + "{{ event.v }}", escape).render({"event": {"v": MARK}}) == "\ufffd" + MARK


def test_places_are_found_by_key_through_lists() -> None:
    markup = Markup(None, {"a": Markup(str.upper), "b": Markup(None, {"a": Markup(str.title)})}, rest=True)
    data = {"a": "x", "b": [{"a": "y", "c": "z"}], "c": {"a": ["w", True, None]}, "d": "v"}
    assert markup.inert(data) == {
        "a": "X",
        "b": [{"a": "Y", "c": "z"}],
        "c": {"a": ["W", True, None]},
        "d": "v",
    }
