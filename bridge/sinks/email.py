"""Email over SMTP: plain text, HTML, or both.

mailbox.py reads addresses, mail.py makes the bytes, smtp.py speaks to the server and says what its answers mean.
"""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal
from weakref import WeakKeyDictionary

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from bridge.expressions.markup import Markup
from bridge.sinks.joining import Join, first_and_more, lines, rules
from bridge.sinks.mail import Mail
from bridge.sinks.mailbox import address_of, ascii_domain, mailbox
from bridge.sinks.model import (
    SENT,
    Delivery,
    MessageModel,
    OneLine,
    SendError,
    SendOutcome,
    Server,
    SinkConnection,
    SinkMessage,
    Wire,
    cut,
    is_reference,
    unfit,
)

if TYPE_CHECKING:
    from bridge.sinks.smtp import Told

_PORTS = {"starttls": 587, "tls": 465, "none": 25}
_TO_MAX = 50
_SUBJECT_MAX = 998  # characters: a line of RFC 5322, 2.1.1
_WAIT_PART = 0.5  # of the time-out: for a connection, before the message is put off
_OURS = "_"
"""The first character of fields that the attempts of one mail leave to each other. No destination can have them."""


def _listed(value: Any) -> Any:
    return [one for one in [value] if one] if isinstance(value, str) or value is None else value


def _greeting(text: str) -> str:
    if not is_reference(text) and not re.fullmatch(r"[A-Za-z0-9._-]{1,255}|\[[0-9A-Za-z:.]+\]", text):
        raise ValueError("must be a host name such as bridge.example.com, or an address such as [192.0.2.1]")
    return text


def _host(text: str) -> str:
    if not is_reference(text) and not text.isascii():
        ascii_domain(text)
    return text


Mailbox = Annotated[str, AfterValidator(mailbox)]
Mailboxes = Annotated[
    tuple[Mailbox, ...],
    BeforeValidator(_listed, json_schema_input_type=str | list[str]),
    Field(max_length=_TO_MAX),
]


class EmailMail(SinkMessage):
    """A mail."""

    to: Mailboxes = ()
    """An address, or a list of up to 50."""
    fallback: Mailboxes = ()
    """The recipient when `to` is null or empty."""
    subject: OneLine
    """One line; a line break in it makes a dead letter. Truncated at 998 characters."""
    text: str | None = None
    """The plain text."""
    html: str | None = None
    """The HTML; values in it are escaped. With `text` the mail has both."""
    reply_to: Mailbox | None = None
    """The address for replies."""

    address: ClassVar[str] = "to"
    joins: ClassVar[Mapping[str, Join]] = {"subject": first_and_more, "text": lines, "html": rules}
    either: ClassVar[tuple[tuple[str, ...], ...]] = (("to", "fallback"), ("text", "html"))

    @classmethod
    def markup(cls, _written: Mapping[str, Any]) -> Mapping[str, Markup]:
        return {"html": Markup(html.escape)}


class EmailConnection(SinkConnection):
    """A mail server."""

    type: Literal["email"]
    """email."""
    host: Annotated[OneLine, AfterValidator(_host)]
    """The server."""
    port: int | None = Field(default=None, ge=1, le=65535)
    """Its port. Absent: 587, 465 or 25, depending on `security`."""
    security: Literal["starttls", "tls", "none"] = "starttls"
    """starttls: TLS after a plain greeting; without TLS nothing is sent. tls: TLS from the first byte. none: no TLS,
    and no password."""
    user: OneLine | None = None
    """For AUTH."""
    password: str | None = Field(default=None, repr=False)
    """For AUTH."""
    ca_file: str | None = None
    """The file of your own certificate authority."""
    sender: Mailbox = Field(alias="from")
    """The sender: `Bridge <bridge@example.com>`."""
    ehlo: Annotated[OneLine, AfterValidator(_greeting)] | None = None
    """The name that the server is greeted with. Absent: this host's full name, or its address in brackets."""
    connections: int = Field(default=4, ge=1, le=100)
    """At most so many connections to the server at once, across all pipelines of the process."""

    message: ClassVar[MessageModel] = EmailMail

    @model_validator(mode="after")
    def _both_or_none(self) -> EmailConnection:
        if (self.user is None) != (self.password is None):
            raise ValueError("needs user and password, or neither")
        if self.security == "none" and self.password is not None:
            raise ValueError("would send the password in the clear: security: starttls, or tls")
        return self

    def server(self) -> Server:
        port = self.port or _PORTS[self.security]
        return Server(self.host, port, self.security == "tls", greeting=b"220", ca_file=self.ca_file)

    def at_once(self) -> int:
        return self.connections

    def recipient(self, delivery: Delivery) -> str | None:
        """The mailboxes, of a mail that has several all of them."""
        given = _given(delivery)[0]
        to = given.to or given.fallback
        return ", ".join(sorted(address_of(one).spec.casefold() for one in to)) or None

    def to_fallback(self, fields: Mapping[str, Any]) -> Mapping[str, Any] | None:
        return super().to_fallback({n: v for n, v in fields.items() if not n.startswith(_OURS)})

    def mail(self, delivery: Delivery) -> tuple[Mail, list[str]]:
        """The mail, and the mailboxes that do not have it yet. Raises SendError."""
        given, left = _given(delivery)
        named: dict[tuple[str, str], str] = {}
        for one in given.to or given.fallback:
            named.setdefault(_same(one), one)
        to = list(named.values())
        if not to:
            raise SendError(unfit("no `to`, and no fallback"))
        if not given.text and not given.html:
            raise SendError(unfit("neither text nor html"))
        mail = Mail(
            identity=delivery.id,
            sender=address_of(self.sender),
            to=[address_of(one) for one in left.get("_shown") or to],
            subject=cut(given.subject, _SUBJECT_MAX),
            text=given.text,
            html=given.html,
            reply_to=address_of(given.reply_to) if given.reply_to else None,
            date=delivery.occurred_at,
        )
        return mail, to

    async def send(self, delivery: Delivery, wire: Wire) -> SendOutcome:
        from bridge.sinks import smtp  # noqa: PLC0415  # lint reads this module too

        mail, to = self.mail(delivery)
        way = smtp.Way(
            self.host,
            self.port or _PORTS[self.security],
            self.security,
            self.user,
            self.password,
            self.ca_file,
            self.ehlo,
        )
        gate = self._gate()
        try:
            async with asyncio.timeout(wire.timeout * _WAIT_PART):
                await gate.acquire()
        except TimeoutError:
            cause = "every connection to the mail server is busy: raise the connection's `connections`"
            return SendOutcome("retry", "busy", cause, blame="message")
        try:
            told = await smtp.tell(way, mail, [address_of(one) for one in to], wire.timeout)
        finally:
            gate.release()
        return _outcome(told, to, delivery)

    def _gate(self) -> asyncio.Semaphore:
        """One of each loop and server: two connections of the configuration may name the same."""
        gates = _GATES.setdefault(asyncio.get_running_loop(), {})
        key = (self.host, self.port, self.user, self.connections)
        return gates.setdefault(key, asyncio.Semaphore(self.connections))


_GATES: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Any, asyncio.Semaphore]] = WeakKeyDictionary()


def _same(text: str) -> tuple[str, str]:
    """Equal for texts that name the same mailbox (RFC 5321, 2.4: the case of a domain does not count)."""
    found = address_of(text)
    return found.local, found.domain.lower()


def _given(delivery: Delivery) -> tuple[EmailMail, Mapping[str, Any]]:
    """The message, and what the attempts before left. Raises SendError."""
    left = {name: value for name, value in delivery.fields.items() if name.startswith(_OURS)}
    return EmailMail.of({name: v for name, v in delivery.fields.items() if name not in left}), left


def _outcome(told: Told, to: Sequence[str], delivery: Delivery) -> SendOutcome:
    """Of all recipients: who accepted it has it and is not told again, who was deferred is tried again, and who was
    refused for good makes a dead letter once nobody else is left. Nobody has it, and nobody exists: the fallback
    gets it."""
    _, before = _given(delivery)
    shown = list(before.get("_shown") or to)
    judged = {place: answer.judged() for place, answer in told.refusals.items()}
    final = [place for place, (verdict, _) in judged.items() if verdict == "dead"]
    refused = [*before.get("_refused", ()), *(to[place] for place in final)]
    if told.failed is not None and told.failed.verdict == "dead":
        return told.failed
    again = [
        one
        for place, one in enumerate(to)
        if place not in final and (told.failed is not None or place in judged)
    ]
    worst = max((told.refusals[place] for place in final), key=lambda one: one.code, default=None)
    why: list[str] | None = before.get("_why")
    if why is None and worst is not None:
        why = [worst.outcome().code, worst.outcome().cause]
    if again:
        deferred = [answer for place, answer in told.refusals.items() if place not in final]
        everybody = next((one for one in deferred if one.judged()[1] == "destination"), None)
        outcome = told.failed or (everybody or deferred[0]).outcome()
        if len(again) == len(to) and not refused:
            return outcome
        left = {"to": again, "_shown": shown, "_refused": refused, "_why": why}
        cause = outcome.cause + _count(again, shown, "will be tried again")
        return SendOutcome("retry", outcome.code, cause, outcome.retry_after, outcome.blame, left)
    if not refused or why is None:
        return SENT
    cause = why[1] + _count(refused, shown, "did not get it")
    if len(refused) == len(shown):
        return SendOutcome("dead", why[0], cause, blame="message", gone=worst is None or worst.gone)
    left = {"to": refused, "_shown": shown, "_refused": [], "_why": None}
    return SendOutcome("dead", why[0], cause, blame="message", left=left)


def _count(some: Sequence[str], of: Sequence[str], what: str) -> str:
    """Without addresses: a cause has no values."""
    return f" ({len(some)} of {len(of)} recipients {what})" if len(of) > 1 else ""
