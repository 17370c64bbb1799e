"""The section of a connection of type nats: a NATS server with JetStream, or a cluster of them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from bridge.quantity import Integer
from bridge.section import Section, Text

DEFAULT_PORT = 4222
_SCHEMES = ("nats", "tls")
_TOKENS = re.compile(r"[A-Za-z0-9_$-]{1,40}(?:\.[A-Za-z0-9_$-]{1,40}){0,7}")


def _server(text: str) -> str:
    """Validate one server's address. Raises ValueError, which never quotes it."""
    if "${" in text:  # not set on this machine: offline commands connect to nothing
        return text
    try:
        parts = urlsplit(text if "://" in text else f"nats://{text}")
        whole = parts.scheme in _SCHEMES and bool(parts.hostname) and (parts.port or 1) > 0
        whole = whole and not (parts.path.strip("/") or parts.query or parts.fragment)
    except ValueError:
        whole = False
    if not whole:
        raise ValueError("must be an address such as nats://log.example.com:4222")
    if "@" in parts.netloc:
        raise ValueError("must not have a user or password in it: use user and password, or token")
    host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else parts.hostname
    return f"{parts.scheme}://{host}:{parts.port or DEFAULT_PORT}"


def _each(value: Any) -> Any:
    """One address, or several with commas between them, as a variable has them."""
    if not value:
        raise ValueError("must name one address at least, such as nats://log.example.com:4222")
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _prefix(text: str) -> str:
    if not _TOKENS.fullmatch(text):
        raise ValueError("must be words of letters, digits, _ and - with dots between them")
    return text


Server = Annotated[str, AfterValidator(_server)]


class NatsTls(Section):
    """TLS to NATS. The server's certificate and its host name are always verified."""

    ca: Text | None = None
    """The certificate authority's file. Absent: the authorities that this machine trusts."""
    cert: Text | None = None
    """The client certificate's file, where the server wants one."""
    key: Text | None = None
    """The client key's file."""

    @model_validator(mode="after")
    def _pair(self) -> NatsTls:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key belong together: name both, or neither")
        return self


class NatsConnection(Section):
    """NATS with JetStream: a destination of events, and the log of `scale`."""

    type: Literal["nats"]
    """nats."""
    servers: Annotated[
        tuple[Server, ...],
        BeforeValidator(_each, json_schema_input_type=Text | list[Text]),
    ]
    """One address or more: nats://host:4222. The other nodes of a cluster are learned from the first that answers."""
    user: Text | None = None
    """The user, with `password`."""
    password: Text | None = Field(default=None, repr=False)
    """The user's password. Take it from a variable or a file; do not write it here."""
    token: Text | None = Field(default=None, repr=False)
    """The server's token, where it has one for everybody."""
    nkey: Text | None = None
    """The file with the nkey's seed (SU...)."""
    credentials: Text | None = None
    """The credentials file with a JWT and its seed, as `nsc` writes it."""
    tls: NatsTls | None = None
    """TLS, which is then required: nothing is sent, no password either, to a server that does not offer it."""
    replicas: Annotated[Integer, Field(ge=1, le=5)] = 1
    """On how many nodes the streams that the bridge makes are kept: 3 for a cluster of three."""
    domain: Annotated[Text, AfterValidator(_prefix)] | None = None
    """The JetStream domain, where the servers are leaf nodes of another."""
    inbox: Annotated[Text, AfterValidator(_prefix)] = "_INBOX.outbox_bridge"
    """The subjects below which the server answers, so that a user needs no right to the answers of others."""

    @model_validator(mode="after")
    def _one_credential(self) -> NatsConnection:
        ways = [name for name in ("user", "token", "nkey", "credentials") if getattr(self, name) is not None]
        if len(ways) > 1:
            raise ValueError(f"has {' and '.join(ways)}: a server takes one of them; remove the others")
        if self.password is not None and self.user is None:
            raise ValueError("has a password and no user: add user; a secret without a user is a token")
        if self.user is not None and self.password is None:
            raise ValueError("has a user and no password: add password")
        return self

    def place(self) -> str:
        """Which servers, without secrets."""
        return " ".join(self.servers)
