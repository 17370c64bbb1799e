"""The two HTTP servers: admin (metrics, health, status page) and ingress (events in)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bridge.config.quantity import Address, Listen, Size
from bridge.config.section import EventType, PlainName, Section

Secret = Annotated[str, Field(min_length=1)]


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


class Webhook(Section):
    """One endpoint, POST /v1/webhooks/<name>, whose bodies become events."""

    scheme: Literal["standard", "github", "stripe"] = "standard"
    """How requests are signed: Standard Webhooks, GitHub's or Stripe's way."""
    secrets: Annotated[tuple[Secret, ...], Field(min_length=1, repr=False)]
    """Signing secrets; several are live at once while one is rotated."""
    event: EventType | None = None
    """The type its events get; absent: <name>.<the type the request names>."""


class Ingress(Section):
    """Events in over HTTP. Absent: no ingress."""

    listen: Address = Listen("127.0.0.1", 8378)
    """Where it listens."""
    api_keys: tuple[Secret, ...] = Field(default=(), repr=False)
    """Keys that may POST /v1/events/{type}; several are live at once."""
    max_payload: Size = 1024 * 1024
    """A larger body is refused with 413 before it is read."""
    webhooks: dict[PlainName, Webhook] = Field(default_factory=dict)
    """Endpoints for signed webhooks, by name."""

    @model_validator(mode="after")
    def _of_use(self) -> Ingress:
        if not self.api_keys and not self.webhooks:
            raise ValueError("lets nobody in: add api_keys or webhooks, or remove ingress")
        return self
