"""Apprise: many notification services through the Apprise library (`pip install 'outbox-bridge[apprise]'`).

The library makes its own requests. apprise_thread.py, the only module that imports it, says which of our rules apply
to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from bridge.sinks.joining import Join, first_and_more, lines
from bridge.sinks.judge import judge
from bridge.sinks.model import (
    ADDRESS_REFUSED,
    SENT,
    Delivery,
    MessageModel,
    OneLine,
    Reply,
    SendOutcome,
    SinkConnection,
    SinkMessage,
    Wire,
    is_reference,
    network,
    no_answer,
    unfit,
)
from bridge.sinks.reachable import AddressGuard

ELSEWHERE = frozenset(
    {
        *("amqp", "amqps", "deltachat", "deltachats", "mqtt", "mqtts", "smpp", "smpps", "xmpp", "xmpps"),
        *("blink1", "dbus", "gio", "glib", "gnome", "kde", "macosx", "qt", "syslog", "windows"),
    }
)
"""Services that connect in their own threads or libraries, where addresses cannot be checked, or that are on the
bridge's own machine.
"""


class AppriseMessage(SinkMessage):
    """A notification."""

    text: str
    """The message, as plain text."""
    title: OneLine | None = None
    """A title line, if the service has one."""
    level: Literal["info", "success", "warning", "failure"] = "info"
    """info, success, warning or failure; some services show it as a color or symbol."""

    joins: ClassVar[Mapping[str, Join]] = {"title": first_and_more, "text": lines}


class AppriseConnection(SinkConnection):
    """A service."""

    type: Literal["apprise"]
    """apprise."""
    url: str = Field(repr=False)
    """The service's Apprise URL, such as `ntfys://ntfy.example.com/topic`; it is a secret. One recipient."""
    allow: tuple[Annotated[str, AfterValidator(network)], ...] = ()
    """Networks that may be reached although they are not public: 10.20.0.0/16."""

    message: ClassVar[MessageModel] = AppriseMessage

    @model_validator(mode="after")
    def _is_known(self) -> AppriseConnection:
        scheme = self.url.partition("://")[0].lower()
        if scheme in ELSEWHERE:
            raise ValueError(
                f"url: {scheme} is not supported, because the addresses of its "
                "connections cannot be checked (docs/sinks.md)"
            )
        try:
            from bridge.sinks import apprise_thread  # noqa: PLC0415  # the library is an extra, and slow to load
        except ImportError:
            raise ValueError(
                "needs the apprise library, which is not installed: pip install 'outbox-bridge[apprise]'"
            ) from None
        if not is_reference(self.url) and not apprise_thread.service(self.url):
            raise ValueError("url is not an Apprise URL (github.com/caronc/apprise/wiki)")
        return self

    @property
    def guard(self) -> AddressGuard:
        """The addresses that it may reach."""
        return AddressGuard(tuple(ip_network(one) for one in self.allow))

    def library(self) -> str:
        from bridge.sinks import apprise_thread  # noqa: PLC0415  # as above

        return f"{apprise_thread.service(self.url)}, by apprise {apprise_thread.version()}"

    async def send(self, delivery: Delivery, wire: Wire) -> SendOutcome:
        from bridge.sinks import apprise_thread  # noqa: PLC0415  # as above

        message = AppriseMessage.of(delivery.fields)
        if not message.text.strip():
            return unfit("text is blank")
        said = await apprise_thread.notify(
            apprise_thread.Notification(
                self.url, delivery.id, message.text, message.title or "", message.level
            ),
            self.guard,
            wire.timeout,
        )
        return _outcome(said, wire.timeout)


def _outcome(said: str | int, timeout: float) -> SendOutcome:
    """Judge the HTTP status; without one, the library only reports a failure."""
    if isinstance(said, int):
        return judge(Reply(said))
    if said == "sent":
        return SENT
    if said == "refused":
        return ADDRESS_REFUSED
    if said == "timeout":
        return no_answer(timeout)
    if said == "busy":
        cause = "too many earlier messages are not finished: the service does not answer"
        return SendOutcome("retry", "apprise_busy", cause, blame="destination")
    return SendOutcome(
        "retry", "apprise_failed", "the Apprise library could not send it", blame="destination"
    )
