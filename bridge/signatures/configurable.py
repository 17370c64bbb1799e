"""The schemes that a webhook describes itself: any HMAC, and the secret itself in a header."""

from __future__ import annotations

import base64
import binascii

from bridge.signatures.scheme import BODY, Recipe, Scheme, SignatureSettings, Signed, Verify, is_secret


class Hmac(Scheme, name="hmac"):
    """An HMAC in a header, which the webhook describes, for any sender."""

    takes = frozenset(
        {
            *("header", "encoding", "algorithm", "prefix", "separator", "signs"),
            *("timestamp", "delivery", "secret_encoding", "url"),
        }
    )

    @classmethod
    def recipe_of(cls, settings: SignatureSettings) -> Recipe | None:
        return Recipe(
            header=settings.header or "",
            signs=settings.signs,
            algorithm=settings.algorithm,
            encoding=settings.encoding,
            prefix=settings.prefix,
            separator=settings.separator,
            timestamp=settings.timestamp,
            delivery=settings.delivery,
            secret_encoding=settings.secret_encoding,
        )

    @classmethod
    def problem(cls, settings: SignatureSettings) -> str | None:
        if settings.id is None:
            return (
                "hmac has no id of a delivery, so a copy could be sent again: add id, such as $body.id, "
                f"or id: {BODY} where the same bytes are the same delivery"
            )
        if settings.header is None:
            return "header is missing: hmac needs the name of the header that has the signature"
        recipe = Recipe(settings.header, settings.signs)
        if not recipe.names & {"body", "form"}:
            return "signs has no {body}: anyone could send another body under the same signature"
        for name, key in (("timestamp", settings.timestamp), ("id", settings.delivery)):
            if (name in recipe.names) != (key is not None):
                needed = "delivery" if name == "id" else name
                return f"signs with {{{name}}} and {needed} need each other"
        if settings.timestamp is not None and settings.timestamp.endswith("=") and settings.separator is None:
            return "timestamp is a part of the header, so separator must say where the parts end"
        return super().problem(settings)


class Bearer(Scheme, name="bearer"):
    """The secret itself, as a bearer token or alone in another header: for senders that cannot sign."""

    takes = frozenset({"header"})

    @classmethod
    def verifier(cls, settings: SignatureSettings) -> Verify:
        header = (settings.header or "").lower().encode()
        if header in (b"", b"authorization"):
            return lambda request: _has_token(settings.secrets, request)
        return lambda request: is_secret(settings.secrets, request.header(header).strip())


def _has_token(secrets: tuple[str, ...], request: Signed) -> bool:
    scheme, _, token = request.header(b"authorization").partition(b" ")
    return is_secret(secrets, token.strip()) and scheme.lower() == b"bearer"


class Basic(Scheme, name="basic"):
    """HTTP Basic (RFC 7617). A secret is `user:password`."""

    source = "https://www.rfc-editor.org/rfc/rfc7617"

    @classmethod
    def problem(cls, settings: SignatureSettings) -> str | None:
        if all(":" in secret or "${" in secret for secret in settings.secrets):
            return None
        return "has a secret that is not user:password, as basic needs"

    @classmethod
    def verifier(cls, settings: SignatureSettings) -> Verify:
        return lambda request: _has_password(settings.secrets, request)


def _has_password(secrets: tuple[str, ...], request: Signed) -> bool:
    scheme, _, credentials = request.header(b"authorization").partition(b" ")
    try:
        given = base64.b64decode(credentials.strip(), validate=True)
    except (binascii.Error, ValueError):
        given = b""
    return is_secret(secrets, given) and scheme.lower() == b"basic"
