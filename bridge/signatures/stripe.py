"""Stripe (docs.stripe.com/webhooks, "Verify manually"): `t=TIME,v1=HEX[,v1=HEX]`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import ClassVar

from bridge.signatures.scheme import (
    MOST_SIGNATURES,
    Scheme,
    Settings,
    Signed,
    Verify,
    any_matches,
    decoded,
    is_near,
    keys_of,
)


class Stripe(Scheme):
    """`stripe-signature`."""

    type: ClassVar[str | None] = "$body.type"
    id: ClassVar[str | None] = "$body.id"
    idempotency_key: ClassVar[str | None] = "$body.id"

    @classmethod
    def verifier(cls, settings: Settings) -> Verify:
        return partial(_verify, keys_of(settings))


def _verify(keys: Iterable[bytes], request: Signed) -> bool:
    parts = request.header(b"stripe-signature").split(b",")[: MOST_SIGNATURES + 1]
    pairs = [part.strip().partition(b"=") for part in parts]
    times = [value for name, _, value in pairs if name == b"t"]
    if len(times) != 1 or not is_near(times[0], request.now):
        return False
    given = [decoded(value, "hex") for name, _, value in pairs if name == b"v1"]
    return any_matches(keys, b"%b.%b" % (times[0], request.body), given)
