"""Email over SMTP: plain text, HTML, or both (RFC 5322, RFC 2046, 5.1.4)."""

from __future__ import annotations

import html
import ssl
from collections.abc import Mapping
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from bridge.sinks.joining import Join, first_and_more, lines, rules
from bridge.sinks.model import (
    SENT,
    Delivery,
    Escape,
    MessageModel,
    OneLine,
    SendError,
    SendOutcome,
    Server,
    SinkConnection,
    SinkMessage,
    Wire,
    is_reference,
    one_line,
    unfit,
)

_PORTS = {"starttls": 587, "tls": 465, "none": 25}
_TO_MAX = 50


def mailbox(text: str) -> str:
    """`ada@example.com` or `Ada <ada@example.com>`. ValueError, without the text, for anything else."""
    if not is_reference(text):
        _address(text)
    return text


def _address(text: str) -> Address:
    one_line(text)
    name, _, rest = text.rpartition("<")
    spec = rest.removesuffix(">").strip() if name or text.startswith("<") else text.strip()
    try:
        found = Address(display_name=name.strip().strip('"'), addr_spec=spec)
    except (MessageError, ValueError, IndexError):
        found = Address()
    if not found.username or not found.domain:
        raise ValueError("must be an address such as ada@example.com or Ada <ada@example.com>")
    return found


def _listed(value: Any) -> Any:
    return [one for one in [value] if one] if isinstance(value, str) or value is None else value


Mailbox = Annotated[str, AfterValidator(mailbox)]
Mailboxes = Annotated[tuple[Mailbox, ...], BeforeValidator(_listed), Field(max_length=_TO_MAX)]


class EmailMail(SinkMessage):
    """A mail."""

    to: Mailboxes = ()
    """An address, or a list of up to 50."""
    fallback: Mailboxes = ()
    """The recipient when `to` is null or empty."""
    subject: OneLine
    """One line; a line break in it makes a dead letter."""
    text: str | None = None
    """The plain text."""
    html: str | None = None
    """The HTML; values in it are escaped. With `text` the mail has both."""
    reply_to: Mailbox | None = None
    """The address for replies."""

    joins: ClassVar[Mapping[str, Join]] = {"subject": first_and_more, "text": lines, "html": rules}
    either: ClassVar[tuple[tuple[str, ...], ...]] = (("to", "fallback"), ("text", "html"))

    @classmethod
    def escapes(cls, _written: Mapping[str, Any]) -> Mapping[str, Escape]:
        return {"html": html.escape}


class EmailConnection(SinkConnection):
    """A mail server."""

    type: Literal["email"]
    """email."""
    host: OneLine
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

    def mail(self, delivery: Delivery) -> tuple[EmailMessage, list[str]]:
        """The message and the envelope's recipients. Raises SendError."""
        given = EmailMail.of(delivery.fields)
        to = [_address(one) for one in given.to or given.fallback]
        if not to:
            raise SendError(unfit("no `to`, and no fallback"))
        if not given.text and not given.html:
            raise SendError(unfit("neither text nor html"))
        sender = _address(self.sender)
        mail = EmailMessage(policy=SMTP)
        mail["From"] = sender
        mail["To"] = to
        mail["Subject"] = given.subject
        mail["Message-ID"] = f"<{delivery.id}@{sender.domain}>"
        mail["Auto-Submitted"] = "auto-generated"
        if delivery.occurred_at is not None:
            mail["Date"] = format_datetime(delivery.occurred_at)
        if given.reply_to:
            mail["Reply-To"] = _address(given.reply_to)
        if given.text:
            mail.set_content(given.text)
            if given.html:
                mail.add_alternative(given.html, subtype="html")
        else:
            mail.set_content(given.html or "", subtype="html")
        return mail, [one.addr_spec for one in to]

    async def send(self, delivery: Delivery, wire: Wire) -> SendOutcome:
        import aiosmtplib  # noqa: PLC0415  # lint reads this module too

        mail, to = self.mail(delivery)
        try:
            await aiosmtplib.send(  # where some recipients are refused, the others have it: sent
                mail,
                sender=_address(self.sender).addr_spec,
                recipients=to,
                hostname=self.host,
                port=self.port or _PORTS[self.security],
                use_tls=self.security == "tls",
                start_tls=self.security == "starttls",
                tls_context=ssl.create_default_context(cafile=self.ca_file),
                username=self.user,
                password=self.password,
                timeout=wire.timeout,
            )
        except aiosmtplib.SMTPException as error:
            return _judged(error, wire.timeout)
        except (OSError, EOFError):
            return _LOST
        except ValueError:
            return unfit("the server does not accept such an address or header")
        return SENT


_LOST = SendOutcome(
    "retry",
    "connection_lost",
    "no connection, or the connection was lost before the answer",
    blame="destination",
)


def _judged(error: Exception, timeout: float) -> SendOutcome:
    import aiosmtplib  # noqa: PLC0415  # as above

    if isinstance(error, aiosmtplib.SMTPRecipientsRefused):
        return _refused(max(one.code for one in error.recipients), "every recipient was refused")
    if isinstance(error, aiosmtplib.SMTPAuthenticationError):
        return _refused(error.code, "the login was refused", ours=True)
    if isinstance(error, aiosmtplib.SMTPResponseException) and 400 <= error.code < 600:
        return _refused(error.code, "the mail was refused")
    if type(error) in (
        aiosmtplib.SMTPException,
        aiosmtplib.SMTPNotSupported,
    ):  # its words for a missing STARTTLS
        cause = "the server offers no STARTTLS or no AUTH: nothing is sent in the clear"
        return SendOutcome("retry", "no_tls", cause, blame="destination")
    if isinstance(error, aiosmtplib.SMTPTimeoutError):
        return SendOutcome("retry", "timeout", f"no answer within {timeout:g} s", blame="destination")
    return _LOST


def _refused(code: int, what: str, *, ours: bool = False) -> SendOutcome:
    """RFC 5321, 4.2.1: 4yz is temporary, 5yz is permanent."""
    cause = f"SMTP {code}: {what}"
    if 400 <= code < 500:
        return SendOutcome("retry", f"smtp_{code}", cause, blame="destination")
    ours = ours or code in (530, 534, 535, 538, 454)
    return SendOutcome("dead", f"smtp_{code}", cause, blame="destination" if ours else "message")
