"""The common part of all sinks: configuration models, which addresses may be reached, the outcome of a send.

A webhook's address can come from an event, so an author of events could point the bridge at internal machines
(server-side request forgery, OWASP). The name is resolved once, every address is checked, and the connection is made
to an address that passed. Importing a sink imports no HTTP or mail library, because `lint` reads these models too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import ip_network
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, ConfigDict, ValidationError

from bridge.discover import Kinds
from bridge.expressions.document import json_text
from bridge.expressions.markup import Markup
from bridge.section import Section
from bridge.sinks.joining import Join
from bridge.sinks.reachable import AddressGuard

QUIET_HOURS = "quiet_hours"
"""Why nothing is sent to a destination: nobody is to blame."""

Blame = Literal["destination", "recipient", "message", "pace"]
"""The cause of a failure: the destination (it is down or refuses us: every message would get this), the recipient that
this message names (others are not affected), this message itself, or the pace (too fast)."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One claimed message. `id` is the same at every attempt: uuid5(event, pipeline, destination)."""

    id: str
    event_id: str
    event_type: str
    event_key: str | None
    occurred_at: datetime | None
    fields: Mapping[str, Any]  # rendered when the event was planned, without DIGEST; numbers exact
    attempts: int = 0  # that were made before
    expires_in: float = 86400.0  # seconds until it is older than max_age
    group: str | None = None  # DIGEST's value; messages of one group go as one
    event_seq: int = 0
    sent_as: str | None = None  # the id that the receiver knows, of a message that was moved here
    last_code: str | None = None  # of the answer to the attempt before; None: there was none


@dataclass(frozen=True, slots=True)
class SendOutcome:
    """The outcome of one attempt. `cause` has no values; retry_after: the seconds that the vendor asks for.

    left: the fields of the next attempt, where a part of this one was accepted: the recipients that are left.
    gone: of a dead message, there is no such recipient; its fallback takes it.
    patience: of a dead message, it is retried while it is younger than this many seconds, because the cause is often
    mended soon: a token that is being replaced, an endpoint that is being deployed.
    """

    verdict: Literal["sent", "retry", "dead"]
    code: str = ""  # http_404, smtp_451, timeout, connect, message, ...
    cause: str = ""
    retry_after: float | None = None
    blame: Blame = "message"
    left: Mapping[str, Any] | None = None
    gone: bool = False
    patience: float = 0.0


SENT = SendOutcome("sent")


ADDRESS_REFUSED = SendOutcome(
    "dead",
    "address_refused",
    "its host has no public address; to reach a private one, add it to the connection's `allow`",
    blame="destination",
)


def no_answer(timeout: float) -> SendOutcome:
    """The outcome of an attempt that took longer than `timeout` seconds."""
    return SendOutcome("retry", "timeout", f"no answer within {timeout:g} s", blame="destination")


class SendError(Exception):
    """A send that ended without an answer to judge."""

    def __init__(self, outcome: SendOutcome) -> None:
        super().__init__(outcome.code)
        self.outcome = outcome


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP response; header names in lower case, the body capped."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


class Http(Protocol):
    """The HTTP client of all sinks. Raises SendError if there is no answer."""

    async def post(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        content: bytes,
        timeout: float,
        guard: AddressGuard | None,
    ) -> Reply: ...


_NO_HEADERS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Wire:
    """The HTTP client for one send, and the seconds that the whole send may take."""

    http: Http
    timeout: float = 10.0

    async def post(
        self, url: str, delivery: Delivery, body: Mapping[str, Any], headers: Mapping[str, str] = _NO_HEADERS
    ) -> Reply:
        """POST a body as JSON with exact numbers and the delivery's id, to an address that does not come from an
        event. Raises SendError if there is no answer."""
        return await self.http.post(
            url,
            headers={"content-type": "application/json", "idempotency-key": delivery.id, **headers},
            content=json_text(body),
            timeout=self.timeout,
            guard=None,
        )


@dataclass(frozen=True, slots=True)
class Pace:
    """A vendor's rate limit: at most one message every `seconds` to this recipient."""

    recipient: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Server:
    """What a sink connects to, for `bridge doctor --network`. tls: TLS comes first. greeting: the bytes with which a
    server that speaks first begins."""

    host: str
    port: int
    tls: bool
    greeting: bytes = b""
    ca_file: str | None = None
    guard: AddressGuard | None = None


def server_of(url: str | None, guard: AddressGuard | None = None) -> Server | None:
    """The server of a URL. None: there is no URL yet, or it is not one for HTTP."""
    parts = urlsplit(url or "")
    if parts.scheme not in ("http", "https"):
        return None
    tls = parts.scheme == "https"
    return Server(parts.hostname or "", parts.port or (443 if tls else 80), tls, guard=guard)


class SinkMessage(Section):
    """A destination's keys; each is a value, rendered when an event is planned."""

    model_config = ConfigDict(coerce_numbers_to_str=True, populate_by_name=True)

    given: ClassVar[Mapping[str, Any]] = {}
    """Values of keys that a destination leaves out."""
    address: ClassVar[str] = ""
    """The key that names the recipient; `fallback` names the one that takes its place."""
    literal: ClassVar[frozenset[str]] = frozenset()
    """Keys that must be literals, because `markup` reads them."""

    joins: ClassVar[Mapping[str, Join]] = {}
    """How a digest makes each key from those of its messages; a key that is not here is the first message's. Empty:
    such a message cannot stand for several."""

    either: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Groups of keys; a message needs one of each group."""

    @classmethod
    def markup(cls, _written: Mapping[str, Any]) -> Mapping[str, Markup]:
        """Key -> where values from events must be made inert, and how. _written: the destination's keys."""
        return {}

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """The rendered message. Raises SendError (dead), which names the invalid keys, without values."""
        try:
            return cls.model_validate({name: value for name, value in fields.items() if value is not None})
        except ValidationError as error:
            wrong = {".".join(map(str, one["loc"][:1])): _words(one) for one in error.errors()}
            cause = "; ".join(f"{name}: {what}" for name, what in sorted(wrong.items()))
            raise SendError(unfit(cause)) from None


MessageModel = type[SinkMessage]


def _words(problem: Any) -> str:
    return "is missing, or null" if problem["type"] == "missing" else str(problem["msg"])


def unfit(cause: str) -> SendOutcome:
    """The outcome of a message that can never be sent."""
    return SendOutcome("dead", "message", f"the message cannot be sent: {cause}", blame="message")


class SinkConnection(Section):
    """A vendor's address and secrets, and how a message is sent."""

    type: str
    """The vendor."""

    message: ClassVar[MessageModel]
    """The message model of this connection's destinations."""
    slowest_pace: ClassVar[float] = 0.0
    """Upper bound of Pace.seconds."""
    by_wire: ClassVar[bool] = False
    """True if it sends by its `wire` only: then what it would send can be shown without sending it."""

    def needs(self) -> tuple[tuple[str, ...], ...]:
        """Groups of keys; a destination must have one of each group, or no message can be sent."""
        return self.message.either

    def idle(self) -> tuple[str, ...]:
        """Keys of a message that have no effect with this connection."""
        return ()

    def names(self) -> Mapping[str, Iterable[str]]:
        """Key of a message -> the names allowed in a mapping below it. For other keys any name is allowed."""
        return {}

    def server(self) -> Server | None:
        """The server of `webhook_url`, `url` or `api_url`. None: only a message or a library knows it."""
        values = dict(self)
        url = next((values[key] for key in ("webhook_url", "url", "api_url") if values.get(key)), None)
        return server_of(url, getattr(self, "guard", None))

    def library(self) -> str | None:
        """For `bridge doctor`, of a sink that sends through a library: what that library makes of the connection."""
        return None

    def pace(self, delivery: Delivery) -> Pace | None:
        """The vendor's rate limit for this message; None: no known limit."""
        return None

    def at_once(self) -> int | None:
        """How many messages may be in flight at once; None: as many as the dispatcher likes."""
        return None

    def recipient(self, delivery: Delivery) -> str | None:
        """Who gets the message, where the message says so: one that fails is left alone without the others. None: the
        connection says it, for every message."""
        fields = delivery.fields
        named = fields.get(self.message.address) or fields.get("fallback")
        return named if isinstance(named, str) else None

    def to_fallback(self, fields: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The fields of a message whose recipient is gone, for its fallback; None: it has none, or that is gone."""
        address = self.message.address
        if not fields.get(address) or not fields.get("fallback"):
            return None
        return {**fields, address: fields["fallback"], "fallback": None}

    async def send(self, delivery: Delivery, wire: Wire) -> SendOutcome:
        """One attempt. Raises SendError if there is no answer."""
        raise NotImplementedError


_BESIDE = (
    *("apprise_thread", "discord_text", "http", "joining", "judge", "mail", "mailbox", "model", "reachable"),
    *("slack_blocks", "smtp"),
)
SINKS = Kinds(__name__, SinkConnection, but=_BESIDE)
"""Every sink by its connection's `type`: the modules of this package. One is imported when it is asked for."""


# -- texts --------------------------------------------------------------------------------------------

_URL = re.compile(r"https?://[\x21-\x7e]+")


def is_reference(text: str) -> bool:
    """Is this a `${VAR}` without a value on this machine? Offline commands connect to nothing."""
    return "${" in text


def http_url(text: str) -> str:
    """Validate an HTTP URL. Raises ValueError, which never quotes it."""
    if is_reference(text):
        return text
    try:
        parts = urlsplit(text)
        whole = bool(_URL.fullmatch(text)) and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        whole = False
    if not whole:
        raise ValueError("must be an address such as https://example.com/hook, in ASCII and without blanks")
    if "@" in parts.netloc:
        raise ValueError("must not have a user or password in it: use headers")
    return text.partition("#")[0]


def network(text: str) -> str:
    """Parse a network or one address. Raises ValueError."""
    if not is_reference(text):
        try:
            ip_network(text)
        except ValueError:
            raise ValueError("must be networks such as 10.20.0.0/16") from None
    return text


def one_line(text: str) -> str:
    """Validate a header's text. Raises ValueError for line breaks and other control characters."""
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ValueError("must not contain line breaks or control characters")
    return text


def cut(text: str, limit: int) -> str:
    """Truncate to `limit` characters, with an ellipsis at the end."""
    return text if len(text) <= limit else text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


def text_of(value: Any) -> str:
    """A text of a value that stands where a vendor takes text only; empty for null."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json_text(value).decode()


HttpUrl = Annotated[str, AfterValidator(http_url)]
OneLine = Annotated[str, AfterValidator(one_line)]
