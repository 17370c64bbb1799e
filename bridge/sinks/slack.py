"""Slack: an incoming webhook, or chat.postMessage with a bot's token.

Formatting: docs.slack.dev, "Formatting message text"; limits: "Rate limits", "chat.postMessage".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from bridge.expressions.markup import Markup
from bridge.sinks.joining import Join, in_one, lines
from bridge.sinks.judge import PATIENCE_SECONDS, document, judge, not_theirs, retry_after_of, says
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
    unfit,
)
from bridge.sinks.slack_blocks import MARKUP, TEXT_MAX, cut_text, fitted

_PASSING = {"internal_error", "fatal_error", "service_unavailable", "request_timeout", "rollup_error"}
_OURS = {"invalid_auth", "account_inactive", "token_revoked", "token_expired", "not_authed", "missing_scope"}
_PLACE = {"channel_not_found", "is_archived", "not_in_channel", "restricted_action", "channel_is_archived"}
_POINTER = re.compile(r"\[json-pointer:/([A-Za-z0-9_/]{1,120})\]")
_RULE = re.compile(
    r"must be (?:less|more) than \d+ (?:characters?|items?)|no (?:more|fewer) than \d+ items? allowed|"
    r"missing required field: [a-z_]{1,40}|invalid additional property|unsupported type|"
    r"must be a valid [a-z]{1,20}|failed to match all allowed schemas|invalid [a-z]{1,20}"
)
"""Slack's words for what is wrong with a block, as far as they hold no value."""
_PROBLEMS_MAX = 3


class SlackMessage(SinkMessage):
    """A message in a channel."""

    text: str | None = None
    """The message in mrkdwn; values in it cannot mention. Truncated at 40,000 characters."""
    blocks: list[dict[str, Any]] | None = None
    """Block Kit blocks; values in texts are escaped like `text`, values elsewhere stay as they are."""
    channel: OneLine | None = None
    """With a token: a channel's id or name, or a user's id."""
    fallback: OneLine | None = None
    """The channel when `channel` is null or empty."""
    thread_ts: OneLine | None = None
    """With a token: the message to reply to."""

    address: ClassVar[str] = "channel"
    either: ClassVar[tuple[tuple[str, ...], ...]] = (("text", "blocks"),)

    joins: ClassVar[Mapping[str, Join]] = {"text": lines, "blocks": in_one}

    @classmethod
    def markup(cls, _written: Mapping[str, Any]) -> Mapping[str, Markup]:
        return MARKUP


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

    def recipient(self, delivery: Delivery) -> str | None:
        return None if self.webhook_url is not None else super().recipient(delivery)

    def _channel(self, message: SlackMessage) -> str:
        return message.channel or message.fallback or self.channel or ""

    def pace(self, delivery: Delivery) -> Pace:
        """One per second and channel."""
        return Pace(self.webhook_url or self._channel(SlackMessage.of(delivery.fields)), 1.0)

    async def send(self, delivery: Delivery, wire: Wire) -> SendOutcome:
        message = SlackMessage.of(delivery.fields)
        text = cut_text(message.text or "", TEXT_MAX)
        blocks = fitted(message.blocks or [])
        if not text.strip() and not blocks:
            return unfit("neither text nor blocks")
        body: dict[str, Any] = {"text": text} if text.strip() else {}
        if blocks:
            body["blocks"] = blocks
        headers = {"content-type": "application/json; charset=utf-8"}  # Slack warns where it has to guess
        if self.webhook_url is not None:
            return _webhook(await wire.post(self.webhook_url, delivery, body, headers))
        headers["authorization"] = f"Bearer {self.token}"
        body["channel"] = self._channel(message)
        if message.thread_ts:
            body["thread_ts"] = message.thread_ts
        if not body["channel"]:
            return unfit("no channel, and no fallback")
        answer = await wire.post(f"{self.api_url.rstrip('/')}/chat.postMessage", delivery, body, headers)
        return _api(answer, chosen=bool(message.channel or message.fallback))


def _webhook(answer: Reply) -> SendOutcome:
    """Slack says `ok`, services that speak like it `{"ok": true}` or `{"success": true}`; no other 2xx is theirs."""
    said = answer.body.decode(errors="replace").strip()
    outcome = judge(answer, detail=said if re.fullmatch(r"[a-z_]{1,60}", said) else "")
    if outcome.verdict != "sent" or said == "ok":
        return outcome
    if says(answer, "ok", "true") or says(answer, "success", "true"):
        return SENT
    found = document(answer)
    return _error(answer, found, chosen=False) if found.get("ok") is False else not_theirs("Slack")


def _api(answer: Reply, *, chosen: bool) -> SendOutcome:
    """The Web API reports errors in a 200 answer."""
    outcome = judge(answer)
    if outcome.verdict != "sent":
        return replace(outcome, gone=False)  # an address of the API
    return SENT if says(answer, "ok", "true") else _error(answer, document(answer), chosen=chosen)


def _error(answer: Reply, found: Mapping[str, Any], *, chosen: bool) -> SendOutcome:
    """chosen: the message named the channel."""
    error = str(found.get("error", ""))
    if not re.fullmatch(r"[a-z_]{1,60}", error):
        return not_theirs("Slack")
    code, cause = f"slack_{error}", f"Slack says {error}{_problems(found)}"
    if error in ("ratelimited", "rate_limited"):
        return SendOutcome("retry", code, cause, retry_after_of(answer), blame="pace")
    if error in _PASSING:
        return SendOutcome("retry", code, cause, blame="destination")
    if error in _PLACE:
        return SendOutcome("dead", code, cause, blame="recipient" if chosen else "destination", gone=chosen)
    if error in _OURS:
        return SendOutcome("dead", code, cause, blame="destination", patience=PATIENCE_SECONDS)
    return SendOutcome("dead", code, cause)


def _problems(found: Mapping[str, Any]) -> str:
    """Which fields are wrong, by their JSON pointers ("Using Block Kit", errors)."""
    metadata = found.get("response_metadata")
    said = metadata.get("messages") if isinstance(metadata, dict) else None
    texts = said if isinstance(said, list) and said else found.get("errors")
    problems = []
    for text in texts if isinstance(texts, list) else ():
        pointer, rule = _POINTER.search(str(text)), _RULE.search(str(text))
        if pointer or rule:
            problems.append(" ".join(part for part in (pointer and pointer[1], rule and rule[0]) if part))
    return f": {'; '.join(problems[:_PROBLEMS_MAX])}" if problems else ""
