"""A mail server that answers as told and keeps what came: aiosmtpd in a thread."""

from __future__ import annotations

import asyncio
import email
import threading
from email.message import Message
from email.policy import default
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from tests.support.servers import free_port


class MailServer:
    """On 127.0.0.1. `answers` are given to DATA, one a mail, then 250; "cut": hang up without an answer."""

    def __init__(self) -> None:
        self.answers: list[str] = []
        self.refuse: set[str] = set()  # recipients that get 550
        self.mails: list[tuple[list[str], Message]] = []
        self._news = threading.Condition()
        self.port = free_port()
        self._controller = Controller(self, hostname="127.0.0.1", port=self.port)
        self._controller.start()

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
            self.mails.append((list(envelope.rcpt_tos), email.message_from_bytes(content, policy=default)))
            self._news.notify_all()
        answer = self.answers.pop(0) if self.answers else "250 OK"
        if answer == "cut":
            assert isinstance(server.transport, asyncio.WriteTransport)
            server.transport.abort()
        return answer

    def wait(self, count: int, deadline: float = 30.0) -> list[tuple[list[str], Message]]:
        """Until `count` mails have come."""
        with self._news:
            assert self._news.wait_for(lambda: len(self.mails) >= count, deadline)
            return list(self.mails)

    def close(self) -> None:
        self._controller.stop()
