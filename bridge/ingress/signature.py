"""Verify a webhook's signature: one function per scheme, from headers and raw bytes to true or false.

Pure: the clock is an argument. Malformed input is false. Every valid secret is compared in constant time, so that
neither the answer nor its time reveals which one was close.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple

from bridge.config.model import Webhook, standard_secret


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

TOLERANCE_SECONDS = 300
"""Allowed seconds between a signed time and ours, before or after (Standard Webhooks and Stripe both use five
minutes).
"""

_MOST_SIGNATURES = 32  # in one header: senders that rotate keys send two
_TIME = re.compile(rb"[0-9]{1,12}")


def verifier(webhook: Webhook) -> Verify:
    """The signature check of a webhook's configuration."""
    keys = [secret.encode() for secret in webhook.secrets]
    if webhook.scheme == "standard":
        return partial(standard, [standard_secret(secret) for secret in webhook.secrets])
    if webhook.scheme == "stripe":
        return partial(stripe, keys)
    if webhook.scheme == "github":
        return partial(plain, keys, b"x-hub-signature-256", "hex")
    if webhook.scheme == "hmac":
        return partial(plain, keys, (webhook.header or "").lower().encode(), webhook.encoding)
    return partial(bearer, keys)


def standard(keys: Iterable[bytes], request: Signed) -> bool:
    """Standard Webhooks (github.com/standard-webhooks, spec, "Signature scheme"), symmetric keys, v1."""
    delivery, time = request.header(b"webhook-id"), request.header(b"webhook-timestamp")
    if not delivery or b"." in delivery or not _is_near(time, request.now):
        return False
    parts = request.header(b"webhook-signature").split(b" ")[:_MOST_SIGNATURES]
    given = [_decoded(part[3:], "base64") for part in parts if part.startswith(b"v1,")]
    return _any_matches(keys, b"%b.%b.%b" % (delivery, time, request.body), given)


def stripe(keys: Iterable[bytes], request: Signed) -> bool:
    """Stripe (docs.stripe.com/webhooks, "Verify manually"): `t=TIME,v1=HEX[,v1=HEX]`."""
    pairs = [part.strip().partition(b"=") for part in request.header(b"stripe-signature").split(b",")][
        : _MOST_SIGNATURES + 1
    ]
    times = [value for name, _, value in pairs if name == b"t"]
    if len(times) != 1 or not _is_near(times[0], request.now):
        return False
    given = [_decoded(value, "hex") for name, _, value in pairs if name == b"v1"]
    return _any_matches(keys, b"%b.%b" % (times[0], request.body), given)


def plain(keys: Iterable[bytes], header: bytes, encoding: str, request: Signed) -> bool:
    """An HMAC-SHA256 of the body in one header, with or without the prefix `sha256=`, as GitHub uses it
    (docs.github.com, "Validating webhook deliveries"). It signs no time; the delivery's id prevents replays."""
    value = request.header(header).strip().removeprefix(b"sha256=")
    return _any_matches(keys, request.body, [_decoded(value, encoding)])


def bearer(keys: Iterable[bytes], request: Signed) -> bool:
    """The secret itself as a bearer token: for senders that cannot sign."""
    scheme, _, token = request.header(b"authorization").partition(b" ")
    given = hashlib.sha256(token.strip()).digest()
    found = False
    for key in keys:
        found |= hmac.compare_digest(hashlib.sha256(key).digest(), given)
    return found and scheme.lower() == b"bearer"


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
