"""How senders of webhooks sign their requests: for each scheme a check from headers and raw bytes to true or false, and
where a request of such a sender has its event type and its id.

Pure: the clock is an argument. Malformed input is false. Every valid secret is compared in constant time, so that
neither the answer nor its time reveals which one was close. A scheme is one class here; its name is what
`ingress.webhooks` calls it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import ClassVar, NamedTuple, Protocol

BODY = "body"
"""Instead of an expression for an id: the bytes of the request are its id."""

TOLERANCE_SECONDS = 300
"""Allowed seconds between a signed time and ours, before or after (Standard Webhooks and Stripe both use five
minutes).
"""

_MOST_SIGNATURES = 32  # in one header: senders that rotate keys send two
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


class SignatureSettings(Protocol):
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

    def __init_subclass__(cls, name: str) -> None:
        SCHEMES[name] = cls

    @classmethod
    def problem(cls, settings: SignatureSettings) -> str | None:
        """What is wrong with a webhook of this scheme, for lint."""
        return None

    @classmethod
    def verifier(cls, settings: SignatureSettings) -> Verify:
        """The check for these secrets."""
        raise NotImplementedError


SCHEMES: dict[str, type[Scheme]] = {}
"""Every scheme by its name."""


class Standard(Scheme, name="standard"):
    """Standard Webhooks (github.com/standard-webhooks, spec, "Signature scheme"), symmetric keys, v1."""

    type = "$body.type"
    id = "$headers.webhook_id"
    idempotency_key = "$headers.webhook_id"

    @classmethod
    def problem(cls, settings: SignatureSettings) -> str | None:
        if all(map(_is_standard_secret, settings.secrets)):
            return None
        return "has a secret that is not base64, as Standard Webhooks requires (whsec_...)"

    @classmethod
    def verifier(cls, settings: SignatureSettings) -> Verify:
        return partial(_standard, [_standard_key(secret) for secret in settings.secrets])


def _standard(keys: Iterable[bytes], request: Signed) -> bool:
    delivery, time = request.header(b"webhook-id"), request.header(b"webhook-timestamp")
    if not delivery or b"." in delivery or not _is_near(time, request.now):
        return False
    parts = request.header(b"webhook-signature").split(b" ")[:_MOST_SIGNATURES]
    given = [_decoded(part[3:], "base64") for part in parts if part.startswith(b"v1,")]
    return _any_matches(keys, b"%b.%b.%b" % (delivery, time, request.body), given)


def _standard_key(secret: str) -> bytes:
    """The key in a secret, `whsec_` and base64. Raises binascii.Error for anything else."""
    return base64.b64decode(secret.removeprefix("whsec_"), validate=True)


def _is_standard_secret(secret: str) -> bool:
    if "${" in secret:  # not set on this machine
        return True
    try:
        return bool(_standard_key(secret))
    except ValueError:  # binascii.Error, or a character that is not ASCII
        return False


class Stripe(Scheme, name="stripe"):
    """Stripe (docs.stripe.com/webhooks, "Verify manually"): `t=TIME,v1=HEX[,v1=HEX]`."""

    type = "$body.type"
    id = "$body.id"
    idempotency_key = "$body.id"

    @classmethod
    def verifier(cls, settings: SignatureSettings) -> Verify:
        return partial(_stripe, _keys(settings))


def _stripe(keys: Iterable[bytes], request: Signed) -> bool:
    parts = request.header(b"stripe-signature").split(b",")[: _MOST_SIGNATURES + 1]
    pairs = [part.strip().partition(b"=") for part in parts]
    times = [value for name, _, value in pairs if name == b"t"]
    if len(times) != 1 or not _is_near(times[0], request.now):
        return False
    given = [_decoded(value, "hex") for name, _, value in pairs if name == b"v1"]
    return _any_matches(keys, b"%b.%b" % (times[0], request.body), given)


class GitHub(Scheme, name="github"):
    """GitHub (docs.github.com, "Validating webhook deliveries"). The delivery's id is not signed: a copy could be sent
    under another one, so the bytes of the body tell."""

    type = "$headers.x_github_event"
    id = BODY
    idempotency_key = "$headers.x_github_delivery"

    @classmethod
    def verifier(cls, settings: SignatureSettings) -> Verify:
        return partial(_hmac_of_body, _keys(settings), b"x-hub-signature-256", "hex")


class Hmac(Scheme, name="hmac"):
    """An HMAC-SHA256 of the body in one header, which the webhook names, for any sender."""

    takes = frozenset({"header", "encoding"})

    @classmethod
    def problem(cls, settings: SignatureSettings) -> str | None:
        if settings.id is None:
            return (
                "hmac has no id of a delivery, so a copy could be sent again: add id, such as $body.id, "
                f"or id: {BODY} where the same bytes are the same delivery"
            )
        if settings.header is None:
            return "header is missing: hmac needs the name of the header that has the signature"
        return None

    @classmethod
    def verifier(cls, settings: SignatureSettings) -> Verify:
        header = (settings.header or "").lower().encode()
        return partial(_hmac_of_body, _keys(settings), header, settings.encoding)


class Bearer(Scheme, name="bearer"):
    """The secret itself as a bearer token: for senders that cannot sign."""

    @classmethod
    def verifier(cls, settings: SignatureSettings) -> Verify:
        return partial(_bearer, _keys(settings))


def _bearer(keys: Iterable[bytes], request: Signed) -> bool:
    scheme, _, token = request.header(b"authorization").partition(b" ")
    given = hashlib.sha256(token.strip()).digest()
    found = False
    for key in keys:
        found |= hmac.compare_digest(hashlib.sha256(key).digest(), given)
    return found and scheme.lower() == b"bearer"


# -- what schemes share -------------------------------------------------------------------------------


def _keys(settings: SignatureSettings) -> list[bytes]:
    return [secret.encode() for secret in settings.secrets]


def _hmac_of_body(keys: Iterable[bytes], header: bytes, encoding: str, request: Signed) -> bool:
    """The header's value may have the prefix `sha256=`. It signs no time; the delivery's id prevents replays."""
    value = request.header(header).strip().removeprefix(b"sha256=")
    return _any_matches(keys, request.body, [_decoded(value, encoding)])


def _any_matches(keys: Iterable[bytes], message: bytes, given: list[bytes]) -> bool:
    found = False
    for key in keys:
        expected = hmac.digest(key, message, "sha256")
        for signature in given:
            found |= hmac.compare_digest(expected, signature)
    return found


def _is_near(time: bytes, now: float) -> bool:
    return _TIME.fullmatch(time) is not None and abs(now - int(time)) <= TOLERANCE_SECONDS


def _decoded(text: bytes, encoding: str) -> bytes:
    """The signature's bytes; empty, which matches nothing, if it is malformed."""
    try:
        if encoding == "base64":
            return base64.b64decode(text, validate=True)
        return binascii.unhexlify(text)
    except (binascii.Error, ValueError):
        return b""
