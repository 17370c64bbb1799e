"""What every signature scheme is: a check from headers and raw bytes to true or false, and where a request of such a
sender has its event type and its id.

Pure: the clock is an argument. Malformed input is false. Every valid secret is compared in constant time, so that
neither the answer nor its time reveals which one was close. A scheme is one module in this package, named as
`ingress.webhooks` calls it, with one subclass of Scheme; kinds.py finds it.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar, NamedTuple, Protocol

BODY = "body"
"""Instead of an expression for an id: the bytes of the request are its id."""

TOLERANCE_SECONDS = 300
"""Allowed seconds between a signed time and ours, before or after (Standard Webhooks and Stripe both use five
minutes).
"""

MOST_SIGNATURES = 32
"""In one header: senders that rotate keys send two."""

_TIME = re.compile(rb"[0-9]{1,12}")


class Signed(NamedTuple):
    """A request that claims to be signed. Header names in lower case; now: unix seconds."""

    headers: Mapping[bytes, bytes]
    body: bytes
    now: float

    def header(self, name: bytes) -> bytes:
        """A header; empty if it is missing."""
        return self.headers.get(name, b"")


Verify = Callable[[Signed], bool]
"""Did the sender know one of the secrets?"""


class Settings(Protocol):
    """What an entry of `ingress.webhooks` has for its scheme."""

    @property
    def secrets(self) -> tuple[str, ...]: ...

    @property
    def id(self) -> str | None: ...

    @property
    def header(self) -> str | None: ...

    @property
    def encoding(self) -> str: ...


class Scheme:
    """A way to sign. `type`, `id` and `idempotency_key` are value sources over $body and $headers."""

    type: ClassVar[str | None] = None
    """The event's type; None: the webhook must have one."""
    id: ClassVar[str | None] = None
    """Tells a repeated delivery from a new one; may be BODY."""
    idempotency_key: ClassVar[str | None] = None
    """The event's idempotency key."""
    takes: ClassVar[frozenset[str]] = frozenset()
    """Keys of the webhook that only some schemes use."""

    @classmethod
    def problem(cls, settings: Settings) -> str | None:
        """What is wrong with a webhook of this scheme, for lint."""
        return None

    @classmethod
    def verifier(cls, settings: Settings) -> Verify:
        """The check for these secrets."""
        raise NotImplementedError


def keys_of(settings: Settings) -> list[bytes]:
    """The secrets as keys, used as they are written."""
    return [secret.encode() for secret in settings.secrets]


def hmac_of_body(keys: Iterable[bytes], header: bytes, encoding: str, request: Signed) -> bool:
    """An HMAC-SHA256 of the body in one header, with or without the prefix `sha256=`. It signs no time; the
    delivery's id prevents replays."""
    value = request.header(header).strip().removeprefix(b"sha256=")
    return any_matches(keys, request.body, [decoded(value, encoding)])


def any_matches(keys: Iterable[bytes], message: bytes, given: list[bytes]) -> bool:
    """Is one of the signatures the HMAC-SHA256 of the message under one of the keys?"""
    found = False
    for key in keys:
        expected = hmac.digest(key, message, "sha256")
        for signature in given:
            found |= hmac.compare_digest(expected, signature)
    return found


def is_near(time: bytes, now: float) -> bool:
    """Is a signed time, in unix seconds, within the tolerance?"""
    return _TIME.fullmatch(time) is not None and abs(now - int(time)) <= TOLERANCE_SECONDS


def decoded(text: bytes, encoding: str) -> bytes:
    """The signature's bytes, from `hex` or `base64`; empty, which matches nothing, if it is malformed."""
    try:
        if encoding == "base64":
            return base64.b64decode(text, validate=True)
        return binascii.unhexlify(text)
    except (binascii.Error, ValueError):
        return b""
