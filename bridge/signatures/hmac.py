"""Any sender that has an HMAC-SHA256 of the body in one header."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from bridge.signatures.scheme import BODY, Scheme, Settings, Verify, hmac_of_body, keys_of


class Hmac(Scheme):
    """The webhook's `header`, in its `encoding`."""

    takes: ClassVar[frozenset[str]] = frozenset({"header", "encoding"})

    @classmethod
    def problem(cls, settings: Settings) -> str | None:
        if settings.id is None:
            return (
                "hmac has no id of a delivery, so a copy could be sent again: add id, such as $body.id, "
                f"or id: {BODY} where the same bytes are the same delivery"
            )
        if settings.header is None:
            return "header is missing: hmac needs the name of the header that has the signature"
        return None

    @classmethod
    def verifier(cls, settings: Settings) -> Verify:
        header = (settings.header or "").lower().encode()
        return partial(hmac_of_body, keys_of(settings), header, settings.encoding)
