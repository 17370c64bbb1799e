"""Telegram: a bot's sendMessage.

core.telegram.org/bots/api: "sendMessage", "MarkdownV2 style", "HTML style"; rate: bots/faq, "broadcasting".
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from bridge.expressions.markup import Markup
from bridge.sinks.joining import Join, lines
from bridge.sinks.judge import document, judge, not_theirs, says, seconds
from bridge.sinks.model import (
    SENT,
    Delivery,
    HttpUrl,
    MessageModel,
    OneLine,
    Pace,
    Reply,
    SendOutcome,
    SinkConnection,
    SinkMessage,
    Wire,
    cut,
    is_reference,
    unfit,
)

TEXT_MAX = 4096
_RESERVED = re.compile(r"([\\_*\[\]()~`>#+\-=|{}.!])")
_KNOWN = (
    "chat not found",
    "bot was blocked by the user",
    "bot was kicked",
    "can't parse entities",
    "message is too long",
    "message text is empty",
    "not enough rights",
    "user is deactivated",
)
_OF_THE_CHAT = frozenset({"chat not found"})


def escape(text: str) -> str:
    """Escape every character that MarkdownV2 reserves with a backslash."""
    return _RESERVED.sub(r"\\\1", text)


def _token(text: str) -> str:
    if not is_reference(text) and not re.fullmatch(r"[0-9]{1,20}:[A-Za-z0-9_-]{10,100}", text):
        raise ValueError("must be a bot's token as @BotFather gives it: digits, a colon and letters")
    return text


class TelegramMessage(SinkMessage):
    """A message to a chat."""

    text: str
    """The message; values in it are plain text whatever `format` is. Without `format` it is truncated at 4096
    characters; Telegram refuses a longer formatted message."""
    format: Literal["text", "markdown", "html"] = "text"
    """`text`: plain text. `markdown`: you write MarkdownV2, and escape your own `.`, `!` and `-`. `html`: Telegram's
    HTML. Must be a literal."""
    chat_id: OneLine | None = None
    """A chat's number, or @channel."""
    fallback: OneLine | None = None
    """The chat when `chat_id` is null or empty."""

    address: ClassVar[str] = "chat_id"
    joins: ClassVar[Mapping[str, Join]] = {"text": lines}
    literal: ClassVar[frozenset[str]] = frozenset({"format"})

    @classmethod
    def markup(cls, _written: Mapping[str, Any]) -> Mapping[str, Markup]:
        forms = {"markdown": {"text": Markup(escape)}, "html": {"text": Markup(html.escape)}}
        return forms.get(str(_written.get("format")), {})


class TelegramConnection(SinkConnection):
    """A bot."""

    type: Literal["telegram"]
    """telegram."""
    token: Annotated[str, AfterValidator(_token)] = Field(repr=False)
    """The bot's token."""
    chat_id: OneLine | None = None
    """The default chat."""
    api_url: HttpUrl = "https://api.telegram.org"
    """The address of Telegram's API, or of your own Bot API server."""

    message: ClassVar[MessageModel] = TelegramMessage
    by_wire: ClassVar[bool] = True
    slowest_pace: ClassVar[float] = 1.0

    def needs(self) -> tuple[tuple[str, ...], ...]:
        return () if self.chat_id else (("chat_id", "fallback"),)

    def _chat(self, message: TelegramMessage) -> str:
        return message.chat_id or message.fallback or self.chat_id or ""

    def pace(self, delivery: Delivery) -> Pace:
        """One per second and chat."""
        return Pace(self._chat(TelegramMessage.of(delivery.fields)), 1.0)

    async def send(self, delivery: Delivery, wire: Wire) -> SendOutcome:
        message = TelegramMessage.of(delivery.fields)
        chat = self._chat(message)
        if not chat:
            return unfit("no chat_id, and no fallback")
        body: dict[str, Any] = {"chat_id": chat, "text": message.text}
        if message.format == "text":
            body["text"] = cut(message.text, TEXT_MAX)
        else:
            body["parse_mode"] = {"markdown": "MarkdownV2", "html": "HTML"}[message.format]
        url = f"{self.api_url.rstrip('/')}/bot{self.token}/sendMessage"
        chosen = bool(message.chat_id or message.fallback)
        answer = await wire.post(url, delivery, body)
        moved = _moved(answer)
        if moved is None:
            return _outcome(answer, chosen=chosen)
        outcome = _outcome(await wire.post(url, delivery, {**body, "chat_id": moved}), chosen=chosen)
        new = f"the group became a supergroup: set its chat_id to {moved}"
        cause = f"{outcome.cause}; {new}" if outcome.cause else new
        return replace(outcome, code=outcome.code or "chat_moved", cause=cause)


def _moved(answer: Reply) -> int | None:
    """The id that a group has since it is a supergroup ("ResponseParameters"). Its old id is refused from then on."""
    parameters = document(answer).get("parameters")
    moved = parameters.get("migrate_to_chat_id") if isinstance(parameters, dict) else None
    return moved if isinstance(moved, int) and not isinstance(moved, bool) else None


def _outcome(answer: Reply, *, chosen: bool) -> SendOutcome:
    """chosen: the message named the chat."""
    found = document(answer)
    if 200 <= answer.status < 300:
        return SENT if says(answer, "ok", "true") else not_theirs("Telegram")
    description = str(found.get("description", ""))
    words = next((words for words in _KNOWN if words in description), "")
    parameters = found.get("parameters")
    wait = seconds(parameters.get("retry_after")) if isinstance(parameters, dict) else None
    outcome = judge(answer, detail=f"Telegram says {words!r}" if words else "", retry_after=wait)
    if outcome.code == "http_403" or words in _OF_THE_CHAT:  # this chat's choice, not the bot's fault
        return replace(outcome, blame="recipient" if chosen else "destination", gone=chosen, patience=0.0)
    return replace(outcome, gone=False)  # 404: no such bot
