"""The whole of bridge.yaml: source, servers, tests. Connections, contracts and pipelines have modules of their own."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from datetime import timedelta
from hashlib import blake2s
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from bridge.config.connection import Connection, Libpq, PostgresConnection
from bridge.config.contract import ContractSection, Entity, EventContract
from bridge.config.pipeline import PipelineSection, SinkDestination, TableDestination
from bridge.config.quantity import Address, Boolean, Duration, Integer, Listen, Size, Start
from bridge.errors import ConfigError
from bridge.planning.rows import Literal as Written
from bridge.planning.rows import classify, names_of
from bridge.section import EventType, OpenSection, PlainName, RootName, Section, SlotWord
from bridge.sinks.model import SinkConnection

MiB = 2**20


class OutboxColumns(Section):
    """Names of the columns of an outbox of your own. id, type and payload keep these names when absent;
    the others are then taken to be missing from that table."""

    id: str = "id"
    """The event's id: unique, uuid or text."""
    type: str = "type"
    """The event's type."""
    payload: str = "payload"
    """json, jsonb, text or bytea that holds JSON."""
    key: str | None = None
    """The ordering key."""
    idempotency_key: str | None = None
    """The producer's idempotency key."""
    headers: str | None = None
    """json or jsonb."""
    occurred_at: str | None = None
    """When it happened, timestamptz."""
    seq: str | None = None
    """An identity column: order in polling and catch-up."""
    xid: str | None = None
    """xid8 default pg_current_xact_id(). Without it the outbox is slot-only and has no catch-up."""


class BatchLimits(Section):
    """How much one target transaction takes."""

    max_events: Annotated[Integer, Field(ge=1, le=100_000)] = 2000
    """Events at most; a source transaction is cut only when it alone is larger."""
    max_bytes: Annotated[Size, Field(ge=65536)] = 16 * MiB
    """Payload bytes at most, roughly."""


class SourceSection(Libpq):
    """The outbox and its reader. The parameters of the connection stand here too."""

    capture: Literal["slot", "poll", "auto"] = "slot"
    """slot: logical replication. poll: queries, the least privilege. auto: slot where it is possible."""
    slot: SlotWord = "outbox_bridge"
    """Slots are named <slot>_<connection>_<n>; the publication is <slot>."""
    max_retained_wal: Size = 8 * 1024 * MiB
    """The WAL brake: past it the slot is given up, and catch-up takes over without loss."""
    failover: bool = False
    """Make slots that a standby synchronizes, so that a promotion keeps them. PostgreSQL 17 and later."""
    table: str = "outbox.event"
    """The outbox, schema-qualified. Another than outbox.event is an outbox of your own."""
    columns: OutboxColumns | None = None
    """Names of the columns of an outbox of your own."""
    retention: Duration = timedelta(days=7)
    """How long delivered events stay in the outbox."""
    start: Start = "earliest"
    """Where a new stream starts: earliest, now, or a timestamp."""
    unmatched: Literal["ignore", "dead"] = "ignore"
    """Events with no pipeline and no contract: counted only, or dead letters."""
    poll_interval: Duration = timedelta(seconds=1)
    """How often polling looks when no NOTIFY wakes it."""
    batch: BatchLimits = BatchLimits()
    """How much one target transaction takes."""
    max_payload: Size = 64 * MiB
    """A larger payload is a dead letter (too_large)."""

    def instance(self) -> str:
        """Which bridge reads this source by this slot, for a running one to say to everybody: a digest, made of
        nothing secret. `1-`: how it is made, so that another version can tell that it makes it otherwise."""
        named = f"{self.slot}\n{self.place()}"
        return f"1-{blake2s(named.encode(), digest_size=8).hexdigest()}"


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


class IngressSection(Section):
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
    def _of_use(self) -> IngressSection:
        if not self.api_keys and not self.webhooks:
            raise ValueError("lets nobody in: add api_keys or webhooks, or remove ingress")
        return self


RESERVED_EXPECTATIONS = ("branch", "filtered", "dead", "entities")
"""No destination can have these names, so that an expectation cannot be misread."""


class Expectation(OpenSection):
    """What must come out. Every other key is a destination: the columns or fields it must get, at least."""

    branch: str | None = None
    """The branch taken."""
    filtered: Boolean = False
    """A filter stopped it; false: none did."""
    dead: str | None = None
    """The code of the dead letter: contract, missing_entity, expression, entity."""
    entities: dict[str, dict[str, dict[str, Any]] | None] = Field(default_factory=dict)
    """Entity to key to the fields that the event says of it, at least; null: nothing."""

    @property
    def destinations(self) -> Mapping[str, Any]:
        """Destination to column to value; null: that destination must get nothing."""
        return self.__pydantic_extra__ or {}


class CaseMeta(Section):
    """$meta of the event of a test; what is absent is made up."""

    id: str = "00000000-0000-7000-8000-000000000001"
    """The event's id."""
    key: str | None = None
    """The ordering key."""
    seq: int = 1
    """The event's number."""
    occurred_at: str = "2027-01-01T00:00:00+00:00"
    """A timestamp."""
    idempotency_key: str | None = None
    """The producer's idempotency key."""
    headers: dict[str, Any] | None = None
    """The event's headers."""


class Case(Section):
    """One of the config's own tests."""

    name: str
    """A sentence."""
    pipeline: str
    """The pipeline under test."""
    type: str | None = None
    """The event's type; absent: the one type the pipeline takes."""
    event: Any
    """The payload."""
    meta: CaseMeta = CaseMeta()
    """The event's $meta."""
    entities: dict[str, dict[str, Any] | None] = Field(default_factory=dict)
    """What each enrichment finds; absent or null: no row."""
    expect: Expectation
    """What must come out."""


__all__ = [
    "Admin",
    "Case",
    "Config",
    "EventContract",
    "IngressSection",
    "PipelineSection",
    "PostgresConnection",
    "SinkConnection",
    "SinkDestination",
    "SourceSection",
    "TableDestination",
]


class Config(Section):
    """A configuration, checked in itself. `load` also checks that its names meet."""

    version: Literal[1]
    """The version of this file's format."""
    source: SourceSection = SourceSection()
    """The database whose outbox is read."""
    connections: dict[SlotWord, Connection] = Field(default_factory=dict)
    """Where things go, by name."""
    events: dict[EventType, ContractSection] = Field(default_factory=dict)
    """Event contracts, by type."""
    entities: dict[RootName, Entity] = Field(default_factory=dict)
    """Entities to enrich with, by name: shared lookups, and those that events keep."""
    pipelines: dict[PlainName, PipelineSection] = Field(default_factory=dict)
    """Pipelines, by name."""
    admin: Admin = Admin()
    """Metrics, health and the status page."""
    ingress: IngressSection | None = None
    """Events in over HTTP; absent: none."""
    strict: Boolean = False
    """Refuse roles with more power than the bridge needs (superuser, BYPASSRLS, table owner)."""
    tests: tuple[Case, ...] = ()
    """The config's own tests, for `bridge test`."""
