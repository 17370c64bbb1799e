"""Discord: a channel's webhook.

Formatting, limits and rate: docs.discord.com, "Execute Webhook", "Message resource", "Rate limits".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from bridge.expressions.filters import moment_of
from bridge.expressions.markup import Markup
from bridge.sinks.discord_text import TEXT, cut_text
from bridge.sinks.joining import Join, in_one, lines
from bridge.sinks.judge import document, judge, not_theirs, says, seconds
from bridge.sinks.model import (
    Delivery,
    HttpUrl,
    MessageModel,
    OneLine,
    Pace,
    SendError,
    SendOutcome,
    SinkConnection,
    SinkMessage,
    Wire,
    cut,
    text_of,
    unfit,
)

TEXT_MAX = 2000
EMBEDS_MAX = 10
_USERNAME_MAX = 80
_FIELDS_MAX = 25
_ALL_MAX = 6000  # characters of all embeds of a message
_LINK_MAX = 2048
_COLOR_MAX = 0xFFFFFF
_LINKS = ("url", "icon_url")
_SHOWN = {"title", "description", "fields", "image", "thumbnail", "author", "footer", "video"}
_SECONDS = 2.0  # 30 messages a minute and webhook
_UNKNOWN_CHANNEL = 10003
_PROBLEMS_MAX = 3

_EMBEDS = Markup(
    None,
    {
        "title": TEXT,
        "description": TEXT,
        "fields": Markup(None, {"name": TEXT, "value": TEXT}),
    },
)
"""Discord reads markdown in these; a footer's text and an author's name are plain, the rest is no text."""


class DiscordMessage(SinkMessage):
    """A message in the webhook's channel. It never mentions anyone (`allowed_mentions`)."""

    text: str | None = None
    """The message in Discord's markdown; values in it are plain text. Truncated at 2000 characters. It never
    mentions anyone."""
    embeds: list[dict[str, Any]] | None = None
    """Embeds, at most 10; values in texts are plain text, values elsewhere stay as they are."""
    username: OneLine | None = None
    """The sender's name that Discord shows."""
    thread_id: OneLine | None = None
    """A thread of the channel."""

    address: ClassVar[str] = "thread_id"
    either: ClassVar[tuple[tuple[str, ...], ...]] = (("text", "embeds"),)

    joins: ClassVar[Mapping[str, Join]] = {"text": lines, "embeds": in_one}

    @classmethod
    def markup(cls, _written: Mapping[str, Any]) -> Mapping[str, Markup]:
        return {"text": TEXT, "embeds": _EMBEDS}


class DiscordConnection(SinkConnection):
    """A channel."""

    type: Literal["discord"]
    """discord."""
    webhook_url: HttpUrl = Field(repr=False)
    """The webhook's address; it is a secret."""

    message: ClassVar[MessageModel] = DiscordMessage
    by_wire: ClassVar[bool] = True
    slowest_pace: ClassVar[float] = _SECONDS

    def pace(self, delivery: Delivery) -> Pace:
        """30 per minute and webhook."""
        return Pace(self.webhook_url, _SECONDS)

    async def send(self, delivery: Delivery, wire: Wire) -> SendOutcome:
        message = DiscordMessage.of(delivery.fields)
        text = cut_text(message.text or "", TEXT_MAX)
        embeds = fitted(message.embeds or [])
        if not text.strip() and not embeds:
            return unfit("neither text nor embeds")
        body: dict[str, Any] = {"allowed_mentions": {"parse": []}}
        if text.strip():
            body["content"] = text
        if embeds:
            body["embeds"] = embeds
        if message.username and message.username.strip():
            body["username"] = cut(message.username, _USERNAME_MAX)
        url = f"{self.webhook_url}{'&' if '?' in self.webhook_url else '?'}wait=true"
        if message.thread_id:
            if not message.thread_id.isdigit():
                return unfit("thread_id: must be digits")
            url += f"&thread_id={message.thread_id}"
        answer = await wire.post(url, delivery, body)
        found = document(answer)
        code = found.get("code")
        detail = f"Discord's code {code}{_problems(found)}" if isinstance(code, int) and code else ""
        outcome = judge(answer, detail=detail, retry_after=seconds(found.get("retry_after")))
        if outcome.verdict == "sent":  # wait=true: the answer is the message
            return outcome if says(answer, "id", r'"\d+"') else not_theirs("Discord")
        if code == _UNKNOWN_CHANNEL and message.thread_id:
            return SendOutcome("dead", outcome.code, outcome.cause, blame="recipient")
        return outcome


def _problems(found: Mapping[str, Any]) -> str:
    """Which fields are wrong: `errors` has the codes by the fields' path ("Error Messages")."""
    problems: list[str] = []

    def walk(node: Any, path: str) -> None:
        if not isinstance(node, dict) or len(problems) >= _PROBLEMS_MAX or len(path) > 100:
            return
        for error in node.get("_errors") or ():
            word = str(error.get("code", "")) if isinstance(error, dict) else ""
            if re.fullmatch(r"[A-Z_0-9]{1,60}", word):
                problems.append(f"{path or 'message'}: {word}")
        for name, below in node.items():
            if re.fullmatch(r"\d{1,3}", name):
                walk(below, f"{path}[{name}]")
            elif re.fullmatch(r"[a-z][a-z_]{0,40}", name):
                walk(below, f"{path}.{name}" if path else name)

    walk(found.get("errors"), "")
    return f": {'; '.join(problems[:_PROBLEMS_MAX])}" if problems else ""


def fitted(embeds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The embeds within Discord's limits, with the types that it takes: texts are truncated, and links that are too
    long and whatever is empty are left out. Raises SendError for what has no meaning in its field."""
    room = _Room()
    made = [_embed(embed, room, f"embeds[{place}]") for place, embed in enumerate(embeds[:EMBEDS_MAX])]
    for embed, one in zip(embeds, made, strict=False):  # the longest last: what is left of the room is theirs
        if text := room.text(embed.get("description"), 4096):
            one["description"] = text
    return [embed for embed in made if embed.keys() & _SHOWN]


class _Room:
    """The characters that are left for all embeds."""

    def __init__(self) -> None:
        self.left = _ALL_MAX

    def text(self, value: Any, limit: int, *, markdown: bool = True) -> str | None:
        shorten = cut_text if markdown else cut
        text = text_of(value).strip()
        limit = min(limit, self.left)
        if not text or limit < 1:
            return None
        made = shorten(text, limit)
        self.left -= len(made)
        return made


def _embed(embed: Mapping[str, Any], room: _Room, place: str) -> dict[str, Any]:
    made = {name: value for name, value in embed.items() if value is not None}
    made["title"] = room.text(made.get("title"), 256)
    made["author"] = _part(made.get("author"), "name", room, 256)
    made["footer"] = _part(made.get("footer"), "text", room, 2048)
    fields = made.get("fields")
    made["fields"] = [
        field
        for one in (fields if isinstance(fields, list) else [])[:_FIELDS_MAX]
        if isinstance(one, Mapping) and (field := _field(one, room))
    ]
    made.pop("description", None)
    for name in ("image", "thumbnail", "video"):
        part = _links(made.get(name))
        made[name] = part if part and part.get("url") else None
    made = _links(made) or {}
    made["color"] = _color(made.get("color"), f"{place}.color")
    made["timestamp"] = _timestamp(made.get("timestamp"), f"{place}.timestamp")
    return {name: value for name, value in made.items() if value not in (None, "", [])}


def _part(value: Any, name: str, room: _Room, limit: int) -> dict[str, Any] | None:
    """An author or a footer; None without its text, which Discord needs."""
    made = _links(value)
    text = room.text(made.get(name), limit, markdown=False) if made else None
    return {**made, name: text} if made and text else None


def _field(value: Mapping[str, Any], room: _Room) -> dict[str, Any] | None:
    name = room.text(value.get("name"), 256)
    text = room.text(value.get("value"), 1024)
    if name is None or text is None:
        return None
    inline = value.get("inline")
    return {"name": name, "value": text, "inline": inline is True or str(inline).lower() == "true"}


def _links(value: Any) -> dict[str, Any] | None:
    if not isinstance(value, Mapping):
        return None
    return {
        name: item
        for name, item in value.items()
        if item is not None and (name not in _LINKS or 0 < len(text_of(item).strip()) <= _LINK_MAX)
    }


def _color(value: Any, place: str) -> int | None:
    """A number, also as text; `#e67e22` and `0xe67e22` too."""
    if value is None or value == "":
        return None
    text = text_of(value).strip().lower()
    found = re.fullmatch(r"(?:#|0x)([0-9a-f]{6})|([0-9]{1,8})(?:\.0+)?", text)
    color = -1 if found is None else int(found[1], 16) if found[1] else int(found[2])
    if isinstance(value, bool) or not 0 <= color <= _COLOR_MAX:
        raise SendError(unfit(f"{place}: must be a number of at most {_COLOR_MAX}, or such as #e67e22"))
    return color


def _timestamp(value: Any, place: str) -> str | None:
    """ISO 8601; also as Postgres prints it, and as seconds or milliseconds since 1970."""
    if value is None or value == "":
        return None
    try:
        return moment_of(value).isoformat()
    except (ValueError, ArithmeticError, OSError):
        raise SendError(unfit(f"{place}: must be a moment in ISO 8601")) from None
