"""Any HTTP endpoint, signed according to Standard Webhooks (standardwebhooks.com, specification 1.0.0)."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from ipaddress import ip_network
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from bridge.expressions.document import json_text
from bridge.sinks.joining import Join, as_list
from bridge.sinks.judge import judge
from bridge.sinks.model import (
    ADDRESS_REFUSED,
    Delivery,
    HttpUrl,
    MessageModel,
    OneLine,
    SendError,
    SendOutcome,
    SinkConnection,
    SinkMessage,
    Wire,
    is_reference,
    network,
    unfit,
)
from bridge.sinks.reachable import AddressGuard

if TYPE_CHECKING:
    from standardwebhooks import Webhook

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")  # RFC 9110, 5.6.2
_TAKEN = {
    *("host", "content-length", "content-type", "transfer-encoding", "connection", "user-agent"),
    *("webhook-id", "webhook-timestamp", "webhook-signature"),
}


def _headers(headers: Mapping[str, str]) -> dict[str, str]:
    for name in headers:
        if not _TOKEN.fullmatch(name):
            raise ValueError("a header's name must be letters, digits and - only")
        if name.lower() in _TAKEN:
            raise ValueError(f"the header {name.lower()} is reserved for the bridge")
    return {name.lower(): value for name, value in headers.items()}


def _secret(text: str) -> str:
    if is_reference(text):
        return text
    try:
        key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except ValueError:
        key = b""
    if not 24 <= len(key) <= 64:
        raise ValueError(
            "must be whsec_ and 24 to 64 random bytes in base64: "
            "echo whsec_$(head -c 32 /dev/urandom | base64)"
        )
    return text


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Headers = Annotated[dict[str, OneLine], AfterValidator(_headers)]


class WebhookMessage(SinkMessage):
    """One POST: `{"type": ..., "timestamp": ..., "data": ...}`."""

    data: Any = None
    """The value of `data` in the body. Numbers keep their exact value."""
    url: HttpUrl | None = None
    """The URL, instead of the connection's: for example a customer's own endpoint."""
    fallback: HttpUrl | None = None
    """The URL when `url` is null."""
    headers: Headers = Field(default_factory=dict)
    """Additional headers."""

    given: ClassVar[Mapping[str, Any]] = {"data": "$event"}
    address: ClassVar[str] = "url"
    joins: ClassVar[Mapping[str, Join]] = {"data": as_list}


class WebhookConnection(SinkConnection):
    """An endpoint."""

    type: Literal["webhook"]
    """webhook."""
    url: HttpUrl | None = Field(default=None, repr=False)
    """The URL to POST to. Absent: each destination has its own."""
    secret: Annotated[
        tuple[Annotated[str, AfterValidator(_secret)], ...],
        BeforeValidator(_listed, json_schema_input_type=str | list[str]),
        Field(min_length=1),
    ] = Field(repr=False)
    """The signing secret, `whsec_` and base64. With a list, each secret signs, for a rotation."""
    headers: Headers = Field(default_factory=dict, repr=False)
    """Additional headers of every request, for example authorization."""
    allow: tuple[Annotated[str, AfterValidator(network)], ...] = ()
    """Networks that may be reached although they are not public: 10.20.0.0/16."""

    message: ClassVar[MessageModel] = WebhookMessage
    by_wire: ClassVar[bool] = True

    @model_validator(mode="after")
    def _no_blank_secret(self) -> WebhookConnection:
        if any(not one for one in self.secret):
            raise ValueError("secret is empty")
        return self

    def needs(self) -> tuple[tuple[str, ...], ...]:
        return () if self.url else (("url", "fallback"),)

    @cached_property
    def guard(self) -> AddressGuard:
        """The addresses that it may reach."""
        return AddressGuard(tuple(ip_network(one) for one in self.allow))

    async def send(self, delivery: Delivery, wire: Wire) -> SendOutcome:
        message = WebhookMessage.of(delivery.fields)
        url = message.url or message.fallback or self.url
        if url is None:
            return unfit("no url, and no fallback")
        body = json_text(
            {
                "type": delivery.event_type,
                "timestamp": None if delivery.occurred_at is None else delivery.occurred_at.isoformat(),
                "data": delivery.fields.get("data"),
            }
        )
        headers = {**self.headers, **message.headers, **self.signed(delivery.id, body, datetime.now(UTC))}
        headers["content-type"] = "application/json"
        try:
            answer = await wire.http.post(
                url, headers=headers, content=body, timeout=wire.timeout, guard=self.guard
            )
            outcome = judge(answer)
        except SendError as error:
            outcome = error.outcome
        return outcome if url == self.url else _of_one(outcome)

    @cached_property
    def _signers(self) -> Sequence[Webhook]:
        from standardwebhooks import Webhook  # noqa: PLC0415  # lint reads this module too

        return [Webhook(secret) for secret in self.secret]

    def signed(self, identity: str, body: bytes, now: datetime) -> dict[str, str]:
        """The three headers of the specification. `now` changes with each attempt, `identity` does not."""
        text = body.decode()
        signatures = [signer.sign(identity, now, text) for signer in self._signers]
        return {
            "webhook-id": identity,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(signatures),
        }


def _of_one(outcome: SendOutcome) -> SendOutcome:
    """The outcome at an endpoint that the message names: others' endpoints are not affected."""
    if outcome.code == ADDRESS_REFUSED.code:
        return replace(outcome, blame="message")
    return replace(outcome, blame="recipient") if outcome.blame == "destination" else outcome
