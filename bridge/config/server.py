"""The two HTTP servers: admin (metrics, health, status page) and ingress (events in)."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from bridge.config.quantity import Address, Integer, Listen, Size
from bridge.config.section import PlainName, Section
from bridge.core.source import Literal as Written
from bridge.core.source import classify, names_of
from bridge.errors import ConfigError

Secret = Annotated[str, Field(min_length=1)]
BODY = "body"  # the word for "the delivery's bytes are its id"


class Admin(Section):
    """Metrics, health and the status page."""

    listen: Address = Listen("127.0.0.1", 8377)
    """Off loopback it needs a token."""
    token: Annotated[str, Field(min_length=1)] | None = Field(default=None, repr=False)
    """`authorization: Bearer` for everything but /livez."""

    @model_validator(mode="after")
    def _guarded(self) -> Admin:
        if self.token is None and not self.listen.is_loopback:
            raise ValueError("listens beyond this machine and so needs a token: ${BRIDGE_ADMIN_TOKEN}")
        return self


def _readable(value: Any) -> Any:
    """A value source whose roots are the request's body and headers."""
    try:
        names = names_of(classify(value))
    except ConfigError as error:
        raise ValueError(str(error.args[0])) from None
    unknown = sorted({name.partition(".")[0] for name in names} - {"body", "headers"})
    if unknown:
        raise ValueError(f"reads ${unknown[0]}: a webhook has $body and $headers")
    return value


def _delivery_id(value: str) -> str:
    if value != BODY and isinstance(classify(value), Written):
        raise ValueError(f"would be the same for every delivery: an expression such as $body.id, or {BODY}")
    return value


Readable = Annotated[str, Field(min_length=1), AfterValidator(_readable)]
Scheme = Literal["standard", "stripe", "github", "hmac", "bearer"]


class Webhook(Section):
    """One endpoint, POST /v1/webhooks/<name>, whose bodies become events."""

    scheme: Scheme = "standard"
    """How requests prove who sent them: Standard Webhooks, Stripe, GitHub, a plain HMAC, a bearer secret."""
    secrets: Annotated[tuple[Secret, ...], Field(min_length=1, repr=False)]
    """Signing secrets; several are live at once while one is rotated."""
    type: Readable | None = None
    """The type its events get; absent: <name>.<the type the request names>."""
    key: Readable | None = None
    """The events' ordering key."""
    idempotency_key: Readable | None = None
    """The events' idempotency key; absent: the provider's id of the delivery or event."""
    payload: Annotated[dict[str, Any], AfterValidator(_readable)] | None = None
    """Fields of the payload, from $body and $headers; absent: the body as it came."""
    id: Annotated[Readable, AfterValidator(_delivery_id)] | None = None
    """What tells a repeated delivery from a new one; `body`: its bytes. Absent: what the scheme has."""
    header: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,100}$")] | None = None
    """The signature's header; only for hmac."""
    encoding: Literal["hex", "base64"] = "hex"
    """How the signature is written; only for hmac."""

    @model_validator(mode="after")
    def _whole(self) -> Webhook:
        if self.scheme in ("hmac", "bearer") and self.type is None:
            raise ValueError(f"{self.scheme} names no type of event: add type, such as $body.type")
        if self.scheme == "hmac" and self.id is None:
            raise ValueError(
                "hmac has no id of a delivery, so a copy could be sent again: add id, such as $body.id, "
                f"or id: {BODY} where the same bytes are the same delivery"
            )
        if (self.scheme == "hmac") != (self.header is not None):
            raise ValueError("header is for hmac, which needs one: the header that carries the signature")
        if self.scheme == "standard" and not all(map(_is_standard_secret, self.secrets)):
            raise ValueError("has a secret that is not base64, as Standard Webhooks' are (whsec_...)")
        return self


def standard_secret(secret: str) -> bytes:
    """The key in a Standard Webhooks secret, `whsec_` and base64. Raises ValueError for anything else."""
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        raise ValueError("not base64") from None


def _is_standard_secret(secret: str) -> bool:
    if "${" in secret:  # not set on this machine
        return True
    try:
        return bool(standard_secret(secret))
    except ValueError:
        return False


class Ingress(Section):
    """Events in over HTTP. Absent: no ingress."""

    listen: Address = Listen("127.0.0.1", 8378)
    """Where it listens."""
    api_keys: tuple[Secret, ...] = Field(default=(), repr=False)
    """Keys that may POST /v1/events/{type}; several are live at once."""
    max_payload: Size = 1024 * 1024
    """A larger body is refused with 413 before it is read."""
    rate_limit: Annotated[Integer, Field(ge=1)] | None = None
    """Events a second for each API key; more are answered 429. Absent: no limit but the queue's."""
    max_connections: Annotated[Integer, Field(ge=1, le=10_000)] = 200
    """Connections at a time; more are answered 503, then closed unread."""
    webhooks: dict[PlainName, Webhook] = Field(default_factory=dict)
    """Endpoints for signed webhooks, by name."""

    @model_validator(mode="after")
    def _of_use(self) -> Ingress:
        if not self.api_keys and not self.webhooks:
            raise ValueError("lets nobody in: add api_keys or webhooks, or remove ingress")
        return self
