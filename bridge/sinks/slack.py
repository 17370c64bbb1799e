"""Slack: an incoming webhook, or chat.postMessage with a bot's token.

Formatting: docs.slack.dev, "Formatting message text"; limits: "Rate limits", "chat.postMessage".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from bridge.sinks.judge import document, judge, retry_after_of
from bridge.sinks.model import (
    SENT,
    Delivery,
    Escape,
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
    unfit,
)

TEXT_MAX = 40_000
BLOCKS_MAX = 50
_PASSING = {"internal_error", "fatal_error", "service_unavailable", "request_timeout", "rollup_error"}
_OURS = {"invalid_auth", "account_inactive", "token_revoked", "token_expired", "not_authed", "missing_scope"}


def escape(text: str) -> str:
    """Escape Slack's three control characters, so that a value cannot create a mention, link or channel."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


class SlackMessage(SinkMessage):
    """A message in a channel."""

    text: str | None = None
    """The message in mrkdwn; values in it cannot mention or link. Truncated at 40,000 characters."""
    blocks: list[dict[str, Any]] | None = None
    """Block Kit blocks, at most 50; values inside are rendered and escaped like text."""
    channel: OneLine | None = None
    """With a token: a channel's id or name, or a user's id."""
    fallback: OneLine | None = None
    """The channel when `channel` is null or empty."""
    thread_ts: OneLine | None = None
    """With a token: the message to reply to."""

    either: ClassVar[tuple[tuple[str, ...], ...]] = (("text", "blocks"),)

    @classmethod
    def escapes(cls, _written: Mapping[str, Any]) -> Mapping[str, Escape]:
        return {"text": escape, "blocks": escape}


class SlackConnection(SinkConnection):
    """A workspace: webhook_url for one channel, or token for all that the bot may write to."""

    type: Literal["slack"]
    """slack."""
    webhook_url: HttpUrl | None = Field(default=None, repr=False)
    """An incoming webhook's address; it is a secret."""
    token: OneLine | None = Field(default=None, repr=False)
    """A bot's token (xoxb-...) with chat:write, instead."""
    channel: OneLine | None = None
    """With a token: the default channel."""
    api_url: HttpUrl = "https://slack.com/api"
    """The address of Slack's API."""

    message: ClassVar[MessageModel] = SlackMessage
    by_wire: ClassVar[bool] = True
    slowest_pace: ClassVar[float] = 1.0

    @model_validator(mode="after")
    def _one_way(self) -> SlackConnection:
        if (self.webhook_url is None) == (self.token is None):
            raise ValueError("needs webhook_url or token, one of the two")
        if self.webhook_url is not None and self.channel is not None:
            raise ValueError("a webhook_url writes to its own channel: use a token to choose one")
        return self

    def needs(self) -> tuple[tuple[str, ...], ...]:
        chosen = self.webhook_url is None and not self.channel
        return (*SlackMessage.either, ("channel", "fallback")) if chosen else SlackMessage.either

    def idle(self) -> tuple[str, ...]:
        return () if self.webhook_url is None else ("channel", "fallback", "thread_ts")

    def _recipient(self, message: SlackMessage) -> str:
        return message.channel or message.fallback or self.channel or ""

    def pace(self, delivery: Delivery) -> Pace:
        """One per second and channel."""
        return Pace(self.webhook_url or self._recipient(SlackMessage.of(delivery.fields)), 1.0)

    async def send(self, delivery: Delivery, wire: Wire) -> SendOutcome:
        message = SlackMessage.of(delivery.fields)
        if not message.text and not message.blocks:
            return unfit("neither text nor blocks")
        if message.blocks is not None and len(message.blocks) > BLOCKS_MAX:
            return unfit(f"more than {BLOCKS_MAX} blocks")
        body: dict[str, Any] = {"text": cut(message.text or "", TEXT_MAX)}
        if message.blocks:
            body["blocks"] = message.blocks
        headers = {"content-type": "application/json; charset=utf-8"}  # Slack warns where it has to guess
        if self.webhook_url is not None:
            url = self.webhook_url
        else:
            url = f"{self.api_url.rstrip('/')}/chat.postMessage"
            headers["authorization"] = f"Bearer {self.token}"
            body["channel"] = self._recipient(message)
            if message.thread_ts:
                body["thread_ts"] = message.thread_ts
            if not body["channel"]:
                return unfit("no channel, and no fallback")
        answer = await wire.post(url, delivery, body, headers)
        return _webhook(answer) if self.webhook_url is not None else _api(answer)


def _webhook(answer: Reply) -> SendOutcome:
    said = answer.body.decode(errors="replace").strip()
    return judge(answer, detail=said if re.fullmatch(r"[a-z_]{1,60}", said) else "")


def _api(answer: Reply) -> SendOutcome:
    """The Web API reports errors in a 200 answer."""
    if answer.status != 200:
        return judge(answer)
    found = document(answer)
    if found.get("ok") is True:
        return SENT
    error = str(found.get("error", ""))
    if not re.fullmatch(r"[a-z_]{1,60}", error):
        return SendOutcome("retry", "unreadable", "the answer is not from Slack", blame="destination")
    code, cause = f"slack_{error}", f"Slack says {error}"
    if error in ("ratelimited", "rate_limited"):
        return SendOutcome("retry", code, cause, retry_after_of(answer), blame="pace")
    if error in _PASSING:
        return SendOutcome("retry", code, cause, blame="destination")
    return SendOutcome("dead", code, cause, blame="destination" if error in _OURS else "message")
