"""Standard Webhooks (github.com/standard-webhooks, spec, "Signature scheme"), symmetric keys, v1."""

from __future__ import annotations

import base64
import binascii
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
)


class Standard(Scheme):
    """`webhook-id`, `webhook-timestamp` and `webhook-signature`."""

    type: ClassVar[str | None] = "$body.type"
    id: ClassVar[str | None] = "$headers.webhook_id"
    idempotency_key: ClassVar[str | None] = "$headers.webhook_id"

    @classmethod
    def problem(cls, settings: Settings) -> str | None:
        if all(map(_is_secret, settings.secrets)):
            return None
        return "has a secret that is not base64, as Standard Webhooks' are (whsec_...)"

    @classmethod
    def verifier(cls, settings: Settings) -> Verify:
        return partial(_verify, [_key(secret) for secret in settings.secrets])


def _verify(keys: Iterable[bytes], request: Signed) -> bool:
    delivery, time = request.header(b"webhook-id"), request.header(b"webhook-timestamp")
    if not delivery or b"." in delivery or not is_near(time, request.now):
        return False
    parts = request.header(b"webhook-signature").split(b" ")[:MOST_SIGNATURES]
    given = [decoded(part[3:], "base64") for part in parts if part.startswith(b"v1,")]
    return any_matches(keys, b"%b.%b.%b" % (delivery, time, request.body), given)


def _key(secret: str) -> bytes:
    """The key in a secret, `whsec_` and base64. Raises binascii.Error for anything else."""
    return base64.b64decode(secret.removeprefix("whsec_"), validate=True)


def _is_secret(secret: str) -> bool:
    if "${" in secret:  # not set on this machine
        return True
    try:
        return bool(_key(secret))
    except binascii.Error:
        return False
