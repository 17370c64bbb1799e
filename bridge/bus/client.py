"""The NATS client that the bridge uses: nats-py's, and what it does not do.

nats-py sends the login to a server that does not offer TLS although TLS was asked for, and closes for good when a
server ends a session, because a user was changed, say. Here the first is refused, and the second is a reconnect.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import nats.errors
from nats.aio.client import Client

from bridge.bus.settings import BusSettings, BusTls
from bridge.config.from_files import FromFiles

RECONNECT_SECONDS = 0.5
"""Between two attempts at one server, once it was lost."""
PING_SECONDS, PINGS_LOST = 5, 3
"""A half-open link is noticed within 15 to 20 s; nats-py's own 2 minutes twice would be four."""


class Acks(Protocol):
    """sid: of the subscription to its answers."""

    sid: int

    def answered(self, subject: bytes, data: bytes, headers: bytes | None) -> None: ...


_VIOLATION = re.compile(r'Permissions Violation for (Publish|Subscription) to "([^"]+)"')


class BusClient(Client):
    """violated: called with a subject, and what was refused to it: publish or subscription."""

    def __init__(self, settings: BusSettings, violated: Callable[[str, str], None]) -> None:
        super().__init__()
        self.settings = settings
        self.violated = violated
        self.connected_once = False
        self.acks: Acks | None = None
        """Who is given the answers to what it has published, without an object of nats-py each."""

    async def _select_next_server(self) -> None:
        if self.connected_once:
            await super()._select_next_server()
            return
        server = self._server_pool[0]  # the first attempt is of one server, and says what is wrong with it
        await self._connect_to_server(server)
        self._current_server = server

    async def _connect_to_server(self, s: Any) -> None:
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.close()  # of a login that was refused: nats-py forgets it open
        await super()._connect_to_server(s)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection and self.settings.secured and info.get("tls_available"):
            info["tls_required"] = True  # a server that takes both is asked for it
        await super()._process_info(info, initial_connection)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        if self.acks is not None and sid == self.acks.sid:
            self.acks.answered(subject, data, headers)
        else:
            await super()._process_msg(sid, subject, reply, data, headers)

    def _connect_command(self) -> bytes:
        writer = getattr(self._transport, "_io_writer", None)
        if self.settings.secured and (writer is None or writer.get_extra_info("ssl_object") is None):
            raise nats.errors.SecureConnWantedError
        command: bytes = super()._connect_command()
        return command

    async def _process_err(self, err_msg: str) -> None:
        words = err_msg.strip("'")
        if "permissions violation" in words:
            line = (
                bytes(self._ps.buf).partition(b"\r\n")[0].decode(errors="replace")
            )  # err_msg is in lower case
            found = _VIOLATION.search(line)
            self.violated(found[2] if found else "?", found[1].lower() if found else "publish")
            return
        if self.is_connected:  # the server closes this session: a changed user, a limit, a shutdown
            await self._process_op_err(nats.errors.Error(f"nats: {words}"))
            return
        await super()._process_err(err_msg)

    async def open(
        self, server: str, others: Sequence[str], name: str, timeout: float, **callbacks: Any
    ) -> None:
        """Connect to one server; the others are for when it is lost. Raises what nats-py raises, of this server."""
        settings = self.settings
        context = tls_context(settings.tls) if settings.secured else None
        await self.connect(
            servers=[server],
            name=name,
            allow_reconnect=False,
            connect_timeout=timeout,  # type: ignore[arg-type]  # asyncio's, whatever it says
            ping_interval=PING_SECONDS,
            max_outstanding_pings=PINGS_LOST,
            tls=context,
            **self._login(),
            nkeys_seed=settings.nkey,
            user_credentials=settings.credentials,
            inbox_prefix=settings.inbox,
            drain_timeout=5,
            flush_timeout=10,
            **callbacks,
        )
        self.connected_once = True
        self._setup_server_pool(list(others))
        self.options["allow_reconnect"] = True
        self.options["max_reconnect_attempts"] = -1
        self.options["reconnect_time_wait"] = RECONNECT_SECONDS

    def _login(self) -> dict[str, Any]:
        """nats-py calls these at each login."""
        settings = self.settings
        return {
            name: None if value is None else partial(_fresh, value)
            for name, value in (
                ("user", settings.user),
                ("password", settings.password),
                ("token", settings.token),
            )
        }

    def log_in_with(self, settings: BusSettings) -> None:
        """What the next login is made with: a secret was replaced."""
        self.settings = settings
        self.options.update(self._login())


def _fresh(value: str) -> str:
    """As its file has it now; while the file is away, or empty, as it was."""
    if not isinstance(value, FromFiles):
        return value
    try:
        return value.reread()
    except ValueError:
        return str(value)


def tls_context(files: BusTls | None) -> ssl.SSLContext:
    """Verifies the server's certificate and host name. Raises OSError or ssl.SSLError for a file."""
    for file in (files.ca, files.cert, files.key) if files is not None else ():
        if file is not None:
            Path(file).open("rb").close()  # OpenSSL's error does not name the file
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=files.ca if files else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if files is not None and files.cert is not None:
        context.load_cert_chain(files.cert, files.key)
    return context
