"""A mail server that answers as told and keeps what came: aiosmtpd in a thread."""

from __future__ import annotations

import asyncio
import email
import ssl
import threading
from collections.abc import Callable
from email.message import Message
from email.policy import default
from typing import Any, AnyStr

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from tests.support.servers import free_port

Say = Callable[[str, str], str | None]
"""A verb in capitals ("CONNECT" for the greeting) and its argument -> the reply; None: as usual."""


class _Speaker(SMTP):
    """Asks `say` before each reply."""

    say: Say

    async def push(self, status: AnyStr) -> None:
        assert self.session
        told = None
        if isinstance(status, str) and status.startswith("220 ") and self.session.host_name is None:
            told = self.say("CONNECT", "")
        if told is None:
            await super().push(status)
        else:
            await super().push(told)
            assert isinstance(self.transport, asyncio.WriteTransport)
            self.transport.close()

    async def _told(self, verb: str, argument: str | None, usual: Any) -> None:
        told = self.say(verb, argument or "")
        if told is None:
            await usual(argument)
        else:
            await self.push(told)

    async def smtp_EHLO(self, arg: str) -> None:
        await self._told("EHLO", arg, super().smtp_EHLO)

    async def smtp_HELO(self, arg: str) -> None:
        await self._told("HELO", arg, super().smtp_HELO)

    async def smtp_MAIL(self, arg: str | None) -> None:
        await self._told("MAIL", arg, super().smtp_MAIL)

    async def smtp_RCPT(self, arg: str | None) -> None:
        await self._told("RCPT", arg, super().smtp_RCPT)


class MailServer:
    """On 127.0.0.1. `answers` are given to DATA, one a mail, then 250; "cut": hang up without an answer; "wait": when
    `gate` is set. utf8: it offers SMTPUTF8. tls: from the first byte. authenticator: as aiosmtpd's, for
    AUTH."""

    def __init__(
        self,
        *,
        say: Say = lambda _verb, _argument: None,
        utf8: bool = False,
        tls: ssl.SSLContext | None = None,
        authenticator: Any = None,
    ) -> None:
        self.answers: list[str] = []
        self.refuse: set[str] = set()  # recipients that get 550
        self.mails: list[tuple[list[str], Message]] = []
        self.raw: list[bytes] = []
        self.greeted: list[str] = []  # the names that EHLO and HELO said
        self.most = 0  # mails that were taken at once
        self.gate = threading.Event()
        self._now = 0
        self._news = threading.Condition()
        self.port = free_port()
        speaker = type("Speaker", (_Speaker,), {"say": staticmethod(self._heard(say))})

        class Listener(Controller):
            def factory(self) -> SMTP:
                logins = {
                    "authenticator": authenticator,
                    "auth_require_tls": False,  # the socket has it
                }
                made: SMTP = speaker(self.handler, enable_SMTPUTF8=utf8, hostname="mx.example", **logins)
                return made

        self._controller = Listener(self, hostname="127.0.0.1", port=self.port, ssl_context=tls)
        self._controller.start()

    def _heard(self, say: Say) -> Say:
        def heard(verb: str, argument: str) -> str | None:
            if verb in ("EHLO", "HELO"):
                self.greeted.append(argument)
            return say(verb, argument)

        return heard

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address in self.refuse:
            return "550 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        content: Any = envelope.content
        with self._news:
            self.raw.append(content)
            self.mails.append((list(envelope.rcpt_tos), email.message_from_bytes(content, policy=default)))
            self._now += 1
            self.most = max(self.most, self._now)
            self._news.notify_all()
        answer = self.answers.pop(0) if self.answers else "250 OK"
        if answer == "wait":
            await asyncio.to_thread(self.gate.wait, 20.0)
            answer = "250 OK"
        if answer == "cut":
            assert isinstance(server.transport, asyncio.WriteTransport)
            server.transport.abort()
        self._now -= 1
        return answer

    def wait(self, count: int, deadline: float = 30.0) -> list[tuple[list[str], Message]]:
        """Until `count` mails have come."""
        with self._news:
            assert self._news.wait_for(lambda: len(self.mails) >= count, deadline)
            return list(self.mails)

    def close(self) -> None:
        self.gate.set()
        self._controller.stop()
