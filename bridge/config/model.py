"""The whole of bridge.yaml: source, servers, tests. Connections, contracts and pipelines have modules of their own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from hashlib import blake2s
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from bridge.config.connection import Connection, Libpq
from bridge.config.contract import ContractSection
from bridge.config.original import NOTHING, Original
from bridge.config.pipeline import PipelineSection
from bridge.config.scale import ScaleSection
from bridge.errors import ConfigError
from bridge.planning.entity import Entity
from bridge.planning.rows import Literal as Written
from bridge.planning.rows import classify, names_of
from bridge.quantity import Address, Boolean, Duration, Integer, Listen, Origin, PublicUrl, Size, Start
from bridge.section import (
    ONE_OR_MORE,
    SOURCE,
    EventType,
    OpenSection,
    PlainName,
    RootName,
    Section,
    SlotWord,
    Text,
)
from bridge.signatures import BODY, SCHEMES
from bridge.signatures.scheme import PLACEHOLDERS

MiB = 2**20


def _not_boolean(value: Any) -> Any:
    if isinstance(value, bool):  # True == 1
        raise ValueError("must be 1")  # noqa: TRY004  pydantic reports ValueErrors
    return value


class OutboxColumns(Section):
    """The column names of your own outbox. id, type and payload default to these names; other absent columns do not
    exist in the table."""

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
    """When the event happened, timestamptz."""
    seq: str | None = None
    """An identity column: the order in polling and catch-up."""
    xid: str | None = None
    """xid8 default pg_current_xact_id(). Without it the outbox works with a slot only and has no catch-up."""


class BatchLimits(Section):
    """The size of one target transaction."""

    max_events: Annotated[Integer, Field(ge=1, le=100_000)] = 2000
    """Maximum number of events. A source transaction is split only if it alone is larger."""
    max_bytes: Annotated[Size, Field(ge=65536)] = 16 * MiB
    """Maximum payload bytes, approximately."""


class SourceSection(Libpq):
    """The outbox and its reader, with the connection's parameters."""

    capture: Literal["slot", "poll", "auto"] = "slot"
    """slot: logical replication. poll: queries, least privilege. auto: slot if possible, otherwise poll."""
    slot: SlotWord = "outbox_bridge"
    """Slots are named <slot>_<connection>_<n>; the publication is named <slot>."""
    max_retained_wal: Size = 8 * 1024 * MiB
    """The WAL brake: if a slot retains more WAL, it is dropped, and catch-up takes over without loss."""
    failover: bool = False
    """Create failover slots, which a standby synchronizes, so that a promotion keeps them. PostgreSQL 17 and later."""
    table: str = "outbox.event"
    """The outbox table, schema-qualified. Any name other than outbox.event is your own outbox."""
    columns: OutboxColumns | None = None
    """The column names of your own outbox."""
    retention: Duration = timedelta(days=7)
    """How long delivered events stay in the outbox."""
    start: Start = "earliest"
    """Where a new stream starts: earliest, now, or a timestamp."""
    unmatched: Literal["ignore", "dead"] = "ignore"
    """Events with no pipeline and no contract: ignore counts and reports them, dead makes them dead letters."""
    ignore_types: Annotated[tuple[Text, ...], ONE_OR_MORE] = ()
    """Types, or globs such as audit.*, that no pipeline has to take: counted, not reported, never dead letters."""
    poll_interval: Duration = timedelta(seconds=1)
    """How often to poll when no NOTIFY arrives."""
    batch: BatchLimits = BatchLimits()
    """The size of one target transaction."""
    max_payload: Size = 64 * MiB
    """A larger payload becomes a dead letter (too_large)."""

    def instance(self) -> str:
        """Which bridge reads this source by this slot, for a running one to say to everybody: a digest, made of
        nothing secret. `1-`: how it is made, so that another version can tell that it makes it otherwise."""
        named = f"{self.slot}\n{self.place()}"
        return f"1-{blake2s(named.encode(), digest_size=8).hexdigest()}"


Secret = Annotated[str, Field(min_length=1)]


class AdminToken(Section):
    """A person or program that may use the admin server."""

    token: Secret = Field(repr=False)
    """The secret: for `authorization: Bearer`, and to sign in to the console."""
    role: Literal["viewer", "operator"] = "viewer"
    """viewer: reads. operator: also acts; `bridge.audit` keeps each action with this token's name."""
    show_values: Boolean = False
    """Show the values of events."""


class Admin(Section):
    """Metrics, health and the console."""

    listen: Address = Listen("127.0.0.1", 8377)
    """The address to listen on. Any address other than loopback needs a token."""
    token: Annotated[str, Field(min_length=1)] | None = Field(default=None, repr=False)
    """The token for `authorization: Bearer`, required for everything but /livez. It reads."""
    tokens: dict[PlainName, AdminToken] = Field(default_factory=dict)
    """More tokens, by the name of who has each: viewers and operators of the console."""

    @model_validator(mode="after")
    def _guarded(self) -> Admin:
        if self.token is None and not self.tokens and not self.listen.is_loopback:
            raise ValueError("is reachable from other machines, so it needs a token: ${BRIDGE_ADMIN_TOKEN}")
        every = [one.token for one in self.tokens.values()] + ([self.token] if self.token else [])
        if len(set(every)) < len(every):
            raise ValueError("has one token twice: each name needs its own")
        return self

    @property
    def any_token(self) -> str | None:
        """One that reads."""
        return self.token or next((one.token for one in self.tokens.values()), None)


def _readable(value: Any) -> Any:
    """A value whose roots are the request's body and headers."""
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


HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,100}$")]


def _known_parts(signs: str) -> str:
    for name in re.findall(r"\{(.*?)\}", signs):
        if name not in PLACEHOLDERS:
            raise ValueError(
                f"has {{{name}}}: the parts are {', '.join(f'{{{one}}}' for one in PLACEHOLDERS)}"
            )
    return signs


def _is_scheme(name: str) -> str:
    if name not in SCHEMES:
        raise PydanticCustomError("literal_error", "no scheme", {"expected": ", ".join(map(repr, SCHEMES))})
    return name


SchemeName = Annotated[
    str, AfterValidator(_is_scheme), WithJsonSchema({"type": "string", "enum": list(SCHEMES)})
]


class Webhook(Section):
    """One endpoint, POST /v1/webhooks/<name>, whose bodies become events."""

    scheme: SchemeName = "standard"
    """The sender ([ingress.md](ingress.md#senders) lists them), or hmac, bearer or basic, for any other."""
    source: SlotWord | None = None
    """Of several sources, the one whose outbox gets its events. Absent: ingress.source."""
    secrets: Annotated[tuple[Secret, ...], Field(min_length=1, repr=False)]
    """Signing secrets. Several can be valid at once during a rotation."""
    type: Readable | None = None
    """The type of its events. Absent: <name>.<the type that the request names>."""
    key: Readable | None = None
    """The events' ordering key."""
    idempotency_key: Readable | None = None
    """The events' idempotency key. Absent: the provider's id of the delivery or event."""
    payload: Annotated[dict[str, Any], AfterValidator(_readable)] | None = None
    """Fields of the payload, from $body and $headers. Absent: the unchanged body."""
    id: Annotated[Readable, AfterValidator(_delivery_id)] | None = None
    """Identifies a delivery, so that a repeat is recognized; `body` means the body's bytes. Absent: the scheme's own
    id."""
    url: PublicUrl | None = None
    """The address that the sender sends to, without its query: for senders that sign it."""
    header: HeaderName | None = None
    """The header with the signature, for hmac; with the secret, for bearer. Absent: authorization, for bearer."""
    algorithm: Literal["sha1", "sha256", "sha512"] = "sha256"
    """The hash of the HMAC; only for hmac."""
    encoding: Literal["hex", "base64"] = "hex"
    """The encoding of the signature; only for hmac."""
    prefix: str | None = None
    """What stands before a signature: v1=. Absent: <algorithm>= may; only for hmac."""
    separator: Annotated[str, Field(min_length=1)] | None = None
    """What stands between the parts of the header, if it has several; only for hmac."""
    signs: Annotated[str, AfterValidator(_known_parts)] = "{body}"
    """What is signed: text with {body}, {timestamp}, {id}, {method}, {url} and {form}; only for hmac."""
    timestamp: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,100}=?$")] | None = None
    """The header with the signed time; with = at its end, the part of the signature's header that begins so; only for
    hmac."""
    delivery: HeaderName | None = None
    """The header with the signed {id}; only for hmac."""
    secret_encoding: Literal["text", "base64", "hex"] = "text"  # noqa: S105  no secret
    """The encoding of the secrets; only for hmac."""

    @model_validator(mode="after")
    def _fits_its_scheme(self) -> Webhook:
        scheme = SCHEMES[self.scheme]
        if self.type is None and not scheme.type:
            raise ValueError(
                f"{self.scheme} requests do not name an event type: add type, such as $body.type"
            )
        for key in sorted(frozenset().union(*(each.takes for each in SCHEMES.values()))):
            if key in self.model_fields_set - scheme.takes:
                users = [name for name, each in SCHEMES.items() if key in each.takes]
                raise ValueError(f"{key} is for {' or '.join(users)}")
        problem = scheme.problem(self)
        if problem is not None:
            raise ValueError(problem)
        return self


class IngressSection(Section):
    """Accept events over HTTP. Absent: no ingress."""

    listen: Address = Listen("127.0.0.1", 8378)
    """The address to listen on."""
    source: SlotWord | None = None
    """Of several sources, the one whose outbox gets the events. Absent: each request names it in x-outbox-source."""
    api_keys: tuple[Secret, ...] = Field(default=(), repr=False)
    """Keys that may POST /v1/events/{type}. Several can be valid at once."""
    max_payload: Size = 1024 * 1024
    """A larger body is refused with 413 before it is read."""
    rate_limit: Annotated[Integer, Field(ge=1)] | None = None
    """Events per second for each API key; above it the answer is 429. Absent: only the queue limits the rate."""
    max_connections: Annotated[Integer, Field(ge=1, le=10_000)] = 200
    """Connections at a time; more are answered 503, then closed unread."""
    cors: tuple[Origin, ...] = ()
    """Origins of web pages that may POST /v1/events/{type}: https://app.example.com. Absent: browsers get no answer."""
    webhooks: dict[PlainName, Webhook] = Field(default_factory=dict)
    """Endpoints for signed webhooks, by name."""

    @model_validator(mode="after")
    def _of_use(self) -> IngressSection:
        if not self.api_keys and not self.webhooks:
            raise ValueError("accepts no request: add api_keys or webhooks, or remove ingress")
        return self


RESERVED_EXPECTATIONS = ("branch", "filtered", "dead", "entities")
"""Names that a destination cannot have, so that an expectation is unambiguous."""


class Expectation(OpenSection):
    """The expected result. Every other key is a destination, with the columns or fields that it must get, at least
    these."""

    branch: str | None = None
    """The branch taken."""
    filtered: Boolean = False
    """True: a filter stopped the event. False: none did."""
    dead: str | None = None
    """The code of the dead letter: contract, missing_entity, unreadable_entity, expression, entity."""
    entities: dict[str, dict[str, dict[str, Any]] | None] = Field(default_factory=dict)
    """Entity to key to the fields that are stored, at least these; null: nothing is stored."""

    @property
    def destinations(self) -> Mapping[str, Any]:
        """Destination to column to value; null: the destination must get nothing."""
        return self.__pydantic_extra__ or {}


class CaseMeta(Section):
    """$meta of a test's event; absent values have defaults."""

    id: str = "00000000-0000-7000-8000-000000000001"
    """The event's id."""
    source: SlotWord = SOURCE
    """The name of its source."""
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
    """One config test."""

    name: str
    """A sentence."""
    pipeline: str
    """The pipeline under test."""
    type: str | None = None
    """The event's type. Absent: the one type that the pipeline takes."""
    event: Any
    """The payload."""
    meta: CaseMeta = CaseMeta()
    """The event's $meta."""
    entities: dict[str, dict[str, Any] | None] = Field(default_factory=dict)
    """The row that each enrichment finds. Absent or null: no row."""
    expect: Expectation
    """The expected result."""


class Config(Section):
    """A configuration. `load` also checks that its names exist."""

    version: Annotated[Literal[1], BeforeValidator(_not_boolean)]
    """The version of this file's format."""
    source: SourceSection = SourceSection()
    """The database with the outbox."""
    sources: dict[SlotWord, SourceSection] = Field(default_factory=dict)
    """Several databases with an outbox, by name, in place of `source`."""
    connections: dict[SlotWord, Connection] = Field(default_factory=dict)
    """Target databases and sinks, by name."""
    events: dict[EventType, ContractSection] = Field(default_factory=dict)
    """Event contracts, by type."""
    entities: dict[RootName, Entity] = Field(default_factory=dict)
    """Entities to enrich with, by name: shared lookups, and entities maintained by events."""
    pipelines: dict[PlainName, PipelineSection] = Field(default_factory=dict)
    """Pipelines, by name."""
    admin: Admin = Admin()
    """Metrics, health and the console."""
    ingress: IngressSection | None = None
    """Accept events over HTTP. Absent: no ingress."""
    scale: ScaleSection | None = None
    """Several machines that share this file's streams. Absent: one runs them all."""
    strict: Boolean = False
    """Refuse roles with more privileges than the bridge needs (superuser, BYPASSRLS, table owner)."""
    tests: tuple[Case, ...] = ()
    """The configuration's own tests, for `bridge test`."""
    _original: Original = PrivateAttr(default=NOTHING)
    _source_name: str = PrivateAttr(default=SOURCE)

    @model_validator(mode="after")
    def _one_or_several(self) -> Config:
        """With several, there is no `source`: what has not chosen one fails, and reads no other database."""
        if not self.sources:
            return self
        if "source" in self.model_fields_set:
            raise ValueError("`source` and `sources` stand in one file: move the one under `sources`")
        for name, section in self.sources.items():
            if "slot" not in section.model_fields_set and name != SOURCE:
                section.__dict__["slot"] = f"{section.slot}_{name}"  # frozen for everybody else
        del self.__dict__["source"]
        return self

    @property
    def source_name(self) -> str:
        """The source's name in the file, `source` where it is the only one. Of a configuration for one source."""
        return self._source_name

    @property
    def original(self) -> Original:
        """What it was made of."""
        return self._original
