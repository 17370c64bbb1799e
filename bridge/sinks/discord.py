"""Discord: a channel's webhook.

Formatting, limits and rate: docs.discord.com, "Execute Webhook", "Message resource", "Rate limits".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from bridge.sinks.judge import document, judge, seconds
from bridge.sinks.model import (
    Delivery,
    Escape,
    HttpUrl,
    MessageModel,
    OneLine,
    Pace,
    SendOutcome,
    SinkConnection,
    SinkMessage,
    Wire,
    cut,
    unfit,
)

TEXT_MAX = 2000
EMBEDS_MAX = 10
_SECONDS = 2.0  # 30 messages a minute and webhook
_MARKUP = re.compile(r"([\\*_~`|>#\[\]()<:@-])")


def escape(text: str) -> str:
    """Escape Discord's markdown with backslashes."""
    return _MARKUP.sub(r"\\\1", text)


class DiscordMessage(SinkMessage):
    """A message in the webhook's channel. It never mentions anyone (`allowed_mentions`)."""

    text: str | None = None
    """The message in Discord's markdown; values in it are plain text. Truncated at 2000 characters. It never
    mentions anyone."""
    embeds: list[dict[str, Any]] | None = None
    """Embeds, at most 10; values inside are rendered and escaped like text."""
    username: OneLine | None = None
    """The sender's name that Discord shows."""
    thread_id: OneLine | None = None
    """A thread of the channel."""

    either: ClassVar[tuple[tuple[str, ...], ...]] = (("text", "embeds"),)

    @classmethod
    def escapes(cls, _written: Mapping[str, Any]) -> Mapping[str, Escape]:
        return {"text": escape, "embeds": escape}


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
        if not message.text and not message.embeds:
            return unfit("neither text nor embeds")
        if message.embeds is not None and len(message.embeds) > EMBEDS_MAX:
            return unfit(f"more than {EMBEDS_MAX} embeds")
        body: dict[str, Any] = {"allowed_mentions": {"parse": []}}
        if message.text:
            body["content"] = cut(message.text, TEXT_MAX)
        if message.embeds:
            body["embeds"] = message.embeds
        if message.username:
            body["username"] = cut(message.username, 80)
        url = f"{self.webhook_url}{'&' if '?' in self.webhook_url else '?'}wait=true"
        if message.thread_id:
            if not message.thread_id.isdigit():
                return unfit("thread_id: must be digits")
            url += f"&thread_id={message.thread_id}"
        answer = await wire.post(url, delivery, body)
        found = document(answer)
        code = found.get("code")
        detail = f"Discord's code {code}" if isinstance(code, int) and code else ""
        return judge(answer, detail=detail, retry_after=seconds(found.get("retry_after")))
