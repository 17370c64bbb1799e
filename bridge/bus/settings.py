"""How to reach NATS, as a plain value: made from the configuration, used by the connection and by its advice."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bridge.config.nats import NatsConnection

MINIMUM_VERSION = (2, 10)
"""Metadata of streams and consumers, and answers that name a full stream by a code of its own, begin with it."""

CredentialKind = Literal["password", "token", "nkey", "credentials", "none"]


@dataclass(frozen=True, slots=True)
class BusTls:
    """Files in PEM. ca None: the authorities of this machine."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class BusSettings:
    """connection: its name in bridge.yaml, for messages. nkey, credentials: files, read at each login, so that a file
    that is replaced counts from the next login on."""

    connection: str
    servers: tuple[str, ...]
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    nkey: str | None = None
    credentials: str | None = None
    tls: BusTls | None = None
    replicas: int = 1
    domain: str | None = None
    inbox: str = "_INBOX.outbox_bridge"

    @property
    def credential(self) -> CredentialKind:
        """With what it logs in."""
        if self.user is not None:
            return "password"
        if self.token is not None:
            return "token"
        if self.nkey is not None:
            return "nkey"
        return "none" if self.credentials is None else "credentials"

    @property
    def secured(self) -> bool:
        """Must TLS come before the login?"""
        return self.tls is not None or any(server.startswith("tls:") for server in self.servers)


def bus_settings(name: str, connection: NatsConnection) -> BusSettings:
    """The settings of a connection in bridge.yaml."""
    tls = connection.tls
    return BusSettings(
        name,
        connection.servers,
        user=connection.user,
        password=connection.password,
        token=connection.token,
        nkey=connection.nkey,
        credentials=connection.credentials,
        tls=BusTls(tls.ca, tls.cert, tls.key) if tls is not None else None,
        replicas=connection.replicas,
        domain=connection.domain,
        inbox=connection.inbox,
    )
