"""One mail over one SMTP session, and what each answer of the server means (RFC 5321, 4.2; RFC 3463 for the enhanced
codes). The session is aiosmtplib's, asked step by step, because who is to blame depends on the step.

- Greeting, EHLO, STARTTLS, login, MAIL: about this bridge, and every mail would hear it. Postfix puts such a refusal
  off until RCPT (`smtpd_delay_reject`), where only the enhanced code tells.
- RCPT: about one recipient. 4yz, a full mailbox and a policy (x.7.z) may pass; another 5yz does not.
- DATA: about this mail, unless the code says that the sender is not authenticated (5.7.20 to 5.7.29).
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal

import aiosmtplib

from bridge.sinks.mail import Mail
from bridge.sinks.mailbox import Address, ascii_domain
from bridge.sinks.model import Blame, SendOutcome, no_answer, unfit

Step = Literal["greeting", "hello", "tls", "login", "sender", "recipient", "content"]

_ABOUT: dict[Step, str] = {
    "greeting": "the mail server refuses connections from here",
    "hello": "the mail server refuses our name: set the connection's `ehlo` to a host name that it knows",
    "tls": "the mail server refuses STARTTLS",
    "login": "the login was refused",
    "sender": "the sender was refused",
    "recipient": "the recipient was refused",
    "content": "the mail was refused",
}
_LOGIN = frozenset({454, 530, 534, 535, 538})  # RFC 4954, 6; 454: RFC 3207 too
_ENHANCED = re.compile(r"([245]\.\d{1,3}\.\d{1,3})\b")
_UNAUTHENTICATED = re.compile(r"5\.7\.2\d")  # SPF, DKIM, DMARC, reverse DNS: RFC 7372; IANA's registry
_QUIT_SECONDS = 1.0
LOST = SendOutcome(
    "retry",
    "connection_lost",
    "no connection, or the connection was lost before the answer",
    blame="destination",
)

_DISTRUST = SendOutcome(
    "retry",
    "tls",
    "no TLS: the server's certificate is not trusted or not for this host, or `ca_file` cannot be read",
    blame="destination",
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A refusal at one step. enhanced: 5.1.1, or empty."""

    step: Step
    code: int
    enhanced: str = ""
    words: str = ""

    @classmethod
    def of(cls, step: Step, error: aiosmtplib.SMTPResponseException) -> Answer:
        found = _ENHANCED.match(error.message.lstrip())
        return cls(step, error.code, found[1] if found else "", _ABOUT[step])

    @property
    def said(self) -> str:
        """The codes only: a server's text quotes addresses."""
        return f"SMTP {self.code}{f' {self.enhanced}' if self.enhanced else ''}"

    @property
    def gone(self) -> bool:
        """There is no such recipient: 5.1.z, 5.2.1 (disabled), or no enhanced code."""
        return self.step == "recipient" and (not self.enhanced or self.enhanced.startswith(("5.1.", "5.2.1")))

    def judged(self) -> tuple[Literal["retry", "dead"], Blame]:
        """Whether the same may succeed later, and whose fault it is."""
        subject, _, detail = self.enhanced.partition(".")[2].partition(".")
        if self.code == 421 or self.code in _LOGIN:
            return "retry", "destination"
        if self.step == "sender":
            large = self.code == 552 or self.enhanced == "5.3.4"
            return ("dead", "message") if large else ("retry", "destination")
        if self.step == "recipient":
            return self._at_recipient(subject, detail)
        if self.step == "content":
            if self.code >= 500:
                ours = _UNAUTHENTICATED.fullmatch(self.enhanced)
                return ("retry", "destination") if ours else ("dead", "message")
            blamed: dict[str, Blame] = {"2": "recipient", "6": "message", "7": "message"}
            return "retry", blamed.get(subject, "destination")
        return "retry", "destination"

    def _at_recipient(self, subject: str, detail: str) -> tuple[Literal["retry", "dead"], Blame]:
        sender = subject == "1" and detail in ("7", "8")
        protocol = (subject == "5" and detail != "3") or (not subject and self.code in (503, 504))
        if sender or protocol:
            return "retry", "destination"
        if (subject, detail) == ("2", "3"):  # the mail is too large for this mailbox
            return "dead", "message"
        full = self.code == 552 or (subject, detail) == ("2", "2")
        policy = subject == "7" or (not subject and self.code == 554)
        if self.code < 500 or full or policy:
            return "retry", "recipient"
        return "dead", "message"

    def outcome(self) -> SendOutcome:
        verdict, blame = self.judged()
        return SendOutcome(verdict, f"smtp_{self.code}", f"{self.said}: {self.words}", blame=blame)


NO_UTF8 = Answer(
    "recipient",
    553,
    "5.6.7",
    "an address has letters outside ASCII before the @, and the mail server does not offer SMTPUTF8",
)
"""What a server with SMTPUTF8 says of an address that another does not take: RFC 6531, 3.7.4.2."""


@dataclass(frozen=True, slots=True)
class Way:
    """A mail server and how it is spoken to."""

    host: str
    port: int
    security: Literal["starttls", "tls", "none"]
    user: str | None = None
    password: str | None = None
    ca_file: str | None = None
    ehlo: str | None = None


@dataclass(slots=True)
class Told:
    """What became of the recipients, by their place in the list. failed: nobody has the mail, for this reason."""

    refusals: dict[int, Answer] = field(default_factory=dict)
    failed: SendOutcome | None = None


async def tell(way: Way, mail: Mail, to: Sequence[Address], timeout: float) -> Told:
    """Send the mail to these recipients, within `timeout` seconds. The header shows all of `mail.to`."""
    told = Told()
    client = aiosmtplib.SMTP(
        hostname=ascii_domain(way.host) if not way.host.isascii() else way.host,
        port=way.port,
        use_tls=way.security == "tls",
        start_tls=False,
        local_hostname=way.ehlo or "localhost",  # of the connection only: hello() says the name
        timeout=timeout,
    )
    step: Step = "greeting"
    try:
        async with asyncio.timeout(timeout):
            await client.connect(tls_context=_trusted(way))
            step = "hello"
            await _hello(client, way)
            if way.security == "starttls":
                step = "tls"
                await client.starttls()
                await _hello(client, way)
            if way.user is not None:
                step = "login"
                await client.login(way.user, way.password or "")
            step = "sender"
            told = await _envelope(client, mail, to)
            step = "content"
            if told.failed is None and len(told.refusals) < len(to):
                await client.data(_bytes(client, mail))
    except aiosmtplib.SMTPResponseException as error:
        told.failed = LOST if error.code < 400 else Answer.of(step, error).outcome()
    except (TimeoutError, aiosmtplib.SMTPTimeoutError):
        told.failed = no_answer(timeout)
    except (OSError, EOFError) as error:  # the library's own for a lost connection is one
        told.failed = _DISTRUST if isinstance(error.__cause__ or error, ssl.SSLError) else LOST
    except aiosmtplib.SMTPException:  # its word for a missing STARTTLS or AUTH
        cause = "the server offers no STARTTLS or no AUTH: nothing is sent in the clear"
        told.failed = SendOutcome("retry", "no_tls", cause, blame="destination")
    except ValueError as error:
        told.failed = unfit(str(error))
    finally:
        with suppress(aiosmtplib.SMTPException, OSError, TimeoutError):
            if client.is_connected:
                await client.quit(timeout=_QUIT_SECONDS)
        client.close()
    return told


def _trusted(way: Way) -> ssl.SSLContext | None:
    if way.security == "none":
        return None
    try:
        return ssl.create_default_context(cafile=way.ca_file)
    except OSError:
        raise ssl.SSLError("ca_file") from None


async def _hello(client: aiosmtplib.SMTP, way: Way) -> None:
    """EHLO, or HELO for a server that does not know it. The name: the configured one, or this host's full name, or the
    address that the server sees (RFC 5321, 4.1.4)."""
    name = way.ehlo or socket.gethostname()
    if way.ehlo is None and ("." not in name or not name.isascii()):
        address = str(client.get_transport_info("sockname")[0]).partition("%")[0]
        name = f"[IPv6:{address}]" if ":" in address else f"[{address}]"
    try:
        await client.ehlo(hostname=name)
    except aiosmtplib.SMTPHeloError as error:
        if error.code not in (500, 501, 502) or not client.is_connected:
            raise
        await client.helo(hostname=name)


def _utf8(client: aiosmtplib.SMTP) -> bool:
    return client.supports_extension("smtputf8")


async def _envelope(client: aiosmtplib.SMTP, mail: Mail, to: Sequence[Address]) -> Told:
    """MAIL, and RCPT for each. Raises what aiosmtplib raises; RCPT's refusals are returned."""
    told = Told()
    whole = _bytes(client, mail)
    options = [f"SIZE={len(whole)}".encode()] if client.supports_extension("size") else []
    if not whole.isascii() or not all(one.spec.isascii() for one in (mail.sender, *to)):
        if not _utf8(client) and not mail.sender.spec.isascii():
            cause = "the sender's address needs SMTPUTF8, which the mail server does not offer"
            told.failed = SendOutcome("retry", "no_smtputf8", cause, blame="destination")
            return told
        if _utf8(client):
            options += [b"BODY=8BITMIME", b"SMTPUTF8"]
    sender = await client.execute_command(b"MAIL", f"FROM:<{mail.sender.spec}>".encode(), *options)
    if sender.code != 250:
        raise aiosmtplib.SMTPSenderRefused(sender.code, sender.message, "")
    for place, one in enumerate(to):
        if not one.spec.isascii() and not _utf8(client):
            told.refusals[place] = NO_UTF8
            continue
        answer = await client.execute_command(b"RCPT", f"TO:<{one.spec}>".encode())
        if answer.code == 421:
            raise aiosmtplib.SMTPRecipientRefused(answer.code, answer.message, "")
        if answer.code not in (250, 251):
            refusal = aiosmtplib.SMTPRecipientRefused(answer.code, answer.message, "")
            told.refusals[place] = Answer.of("recipient", refusal)
    return told


def _bytes(client: aiosmtplib.SMTP, mail: Mail) -> bytes:
    """Without the addresses that this server cannot take. Raises ValueError for one to reply to."""
    if _utf8(client):
        return mail.whole()
    if mail.reply_to is not None and not mail.reply_to.spec.isascii():
        raise ValueError(f"reply_to: {NO_UTF8.words}")
    shown = [one for one in mail.to if one.spec.isascii()]
    return replace(mail, to=shown).whole()
