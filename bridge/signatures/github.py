"""GitHub (docs.github.com, "Validating webhook deliveries")."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from bridge.signatures.scheme import BODY, Scheme, Settings, Verify, hmac_of_body, keys_of


class GitHub(Scheme):
    """`x-hub-signature-256`. The delivery's id is not signed: a copy could be sent under another one, so the bytes of
    the body tell."""

    type: ClassVar[str | None] = "$headers.x_github_event"
    id: ClassVar[str | None] = BODY
    idempotency_key: ClassVar[str | None] = "$headers.x_github_delivery"

    @classmethod
    def verifier(cls, settings: Settings) -> Verify:
        return partial(hmac_of_body, keys_of(settings), b"x-hub-signature-256", "hex")
