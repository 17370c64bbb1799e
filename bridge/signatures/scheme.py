"""The parts that signatures of webhooks are made of, and their check: headers and raw bytes to true or false.

Pure: the clock is an argument. Malformed input is false. Every valid secret is compared in constant time, so that
neither the answer nor its time reveals which one was close. Almost every sender signs the same way: an HMAC of the
body, often with a time, an id or the address, in a header that may have several signatures. A Recipe says which. A
Scheme is a name of `ingress.webhooks` with its recipe, and where its requests have their event type and id.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, NamedTuple, Protocol
from urllib.parse import parse_qsl

BODY = "body"
"""Instead of an expression for an id: the bytes of the request are its id."""
SIGNED = "signed"
"""As BODY, for presets: everything that is signed is the id (the time and the address too, if they are)."""

TOLERANCE_SECONDS = 300
"""Allowed seconds between a signed time and ours, before or after (Standard Webhooks, Stripe, Slack and HubSpot use
five minutes).
"""

FORM = b"application/x-www-form-urlencoded"

_MOST_SIGNATURES = 32  # in one header: senders that rotate keys send two
_MOST_FIELDS = 1000  # of a form
_TIME = re.compile(rb"[0-9]{1,14}")
_MILLISECONDS = 100_000_000_000  # in seconds that is the year 5138, in milliseconds 1973
_ISO_TIME = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)")
_PLACEHOLDER = re.compile(r"\{(\w*)\}")
PLACEHOLDERS = ("body", "timestamp", "id", "method", "url", "form")
"""What a recipe can sign."""


class Signed(NamedTuple):
    """A request that claims to be signed. Header names in lower case; now: unix seconds; query: without `?`."""

    headers: Mapping[bytes, bytes]
    body: bytes
    now: float
    query: bytes = b""

    def header(self, name: bytes) -> bytes:
        """A header; empty if it is missing."""
        return self.headers.get(name, b"")

    @property
    def media_type(self) -> bytes:
        """Of the body, in lower case, without parameters."""
        return self.header(b"content-type").partition(b";")[0].strip().lower()

    def fields(self) -> list[tuple[str, str]]:
        """The fields of a form, in their order. Raises ValueError if it is not UTF-8 or has too many."""
        text = self.body.decode("ascii")
        return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_MOST_FIELDS)


Verify = Callable[[Signed], bool]
"""Did the sender know one of the secrets?"""


class SignatureSettings(Protocol):
    """What an entry of `ingress.webhooks` has for its scheme."""

    @property
    def secrets(self) -> tuple[str, ...]: ...
    @property
    def id(self) -> str | None: ...
    @property
    def url(self) -> str | None: ...
    @property
    def header(self) -> str | None: ...
    @property
    def algorithm(self) -> str: ...
    @property
    def encoding(self) -> str: ...
    @property
    def prefix(self) -> str | None: ...
    @property
    def separator(self) -> str | None: ...
    @property
    def signs(self) -> str: ...
    @property
    def timestamp(self) -> str | None: ...
    @property
    def delivery(self) -> str | None: ...
    @property
    def secret_encoding(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a sender signs. The keys of `scheme: hmac` in the configuration have the same names and meanings."""

    header: str
    """The header with the signature, or with several."""
    signs: str = "{body}"
    """What is signed: text with {body}, {timestamp}, {id}, {method}, {url}, {form}."""
    algorithm: str = "sha256"
    encoding: str = "hex"
    """hex or base64."""
    prefix: str | None = None
    """Before each signature. None: `<algorithm>=` may be there."""
    separator: str | None = None
    """Between the parts of the header. None: it is one signature."""
    timestamp: str | None = None
    """The header with {timestamp}; with `=` at its end, the part of the signature's header that begins so."""
    delivery: str | None = None
    """The header with {id}."""
    secret_encoding: str = "text"  # noqa: S105  no secret
    """text, base64 or hex."""
    decode_url: bool = False
    """HubSpot: some characters of the address are signed without their percent encoding."""

    @property
    def names(self) -> set[str]:
        """The placeholders of `signs`."""
        return set(_PLACEHOLDER.findall(self.signs))


class Scheme:
    """A way to sign. `type`, `id` and `idempotency_key` are value sources over $body and $headers, of which the first
    with a value counts."""

    source: ClassVar[str] = ""
    """Where the sender documents it."""
    recipe: ClassVar[Recipe | None] = None
    type: ClassVar[tuple[str, ...]] = ()
    """The event's type; empty: the webhook must have one."""
    id: ClassVar[tuple[str, ...]] = ()
    """Tells a repeated delivery from a new one; may have BODY or SIGNED. If none has a value, every request is new."""
    idempotency_key: ClassVar[tuple[str, ...]] = ()
    """The event's idempotency key."""
    json_field: ClassVar[str] = "payload"
    """The field of a form that has the whole body as JSON: GitHub, and Slack's interactivity."""
    accepted: ClassVar[int] = 202
    """The status for a new event. Some senders take nothing but 200 for success, and send again."""
    answer: ClassVar[tuple[bytes, str] | None] = None
    """The body and its media type, for senders that read them; None: the event's id."""
    takes: ClassVar[frozenset[str]] = frozenset()
    """Keys of the webhook that only some schemes use."""

    def __init_subclass__(cls, name: str) -> None:
        SCHEMES[name] = cls

    @classmethod
    def recipe_of(cls, settings: SignatureSettings) -> Recipe | None:
        """The recipe of a webhook; None: nothing is signed."""
        return cls.recipe

    @classmethod
    def problem(cls, settings: SignatureSettings) -> str | None:
        """What is wrong with a webhook of this scheme, for lint."""
        recipe = cls.recipe_of(settings)
        if recipe is None:
            return None
        if "url" in recipe.names and settings.url is None:
            return "url is missing: the sender signs the address that it sends to, so the bridge must know it"
        return _secret_problem(recipe.secret_encoding, settings.secrets)

    @classmethod
    def verifier(cls, settings: SignatureSettings) -> Verify:
        """The check for these secrets."""
        recipe = cls.recipe_of(settings)
        if recipe is None:
            raise NotImplementedError
        url = (settings.url or "").encode()
        keys = keys_of(settings.secrets, recipe.secret_encoding)

        def verify(request: Signed) -> bool:
            message = message_of(recipe, request, url)
            if message is None:
                return False
            return any_matches(keys, message, _signatures(recipe, request), recipe.algorithm)

        return verify

    @classmethod
    def identity(cls, settings: SignatureSettings) -> Callable[[Signed], bytes | None]:
        """What SIGNED stands for: the message that is signed."""
        recipe = cls.recipe_of(settings)
        if recipe is None:
            return lambda request: request.body
        url = (settings.url or "").encode()
        return lambda request: message_of(recipe, request, url)

    @classmethod
    def reply(cls, document: Mapping[str, Any], secrets: tuple[str, ...]) -> Mapping[str, Any] | None:
        """The answer to a signed request that only asks whether this endpoint knows the secret; None: it is an
        event."""
        return None


SCHEMES: dict[str, type[Scheme]] = {}
"""Every scheme by its name."""


# -- the check ----------------------------------------------------------------------------------------


def message_of(recipe: Recipe, request: Signed, url: bytes = b"") -> bytes | None:
    """The bytes that this request's signature is over; None if a part is missing or malformed, or the time is too far
    away. url: the configured address, without its query."""
    values: dict[str, bytes] = {"body": request.body, "method": b"POST"}
    names = recipe.names
    if recipe.timestamp is not None:
        values["timestamp"] = time = _timestamp(recipe.timestamp, recipe, request)
        if not is_near(time, request.now):
            return None
    if recipe.delivery is not None:
        values["id"] = request.header(recipe.delivery.lower().encode())
    if "url" in names:
        address = url + b"?" + request.query if request.query else url
        values["url"] = _PERCENT.sub(_plain, address) if recipe.decode_url else address
    if "form" in names:
        form = form_of(request)
        if form is None:
            return None
        values["form"] = form
    return _filled(recipe.signs, values)


def _filled(template: str, values: Mapping[str, bytes]) -> bytes | None:
    """None if a value is missing, or an id has the character that ends it: its rest could be taken for another
    part."""
    parts = _PLACEHOLDER.split(template)
    message = [parts[0].encode()]
    for name, literal in zip(parts[1::2], parts[2::2], strict=True):
        value = values.get(name)
        if value is None or (name == "id" and (not value or (literal and literal[:1].encode() in value))):
            return None
        message += [value, literal.encode()]
    return b"".join(message)


def _parts(recipe: Recipe, request: Signed) -> list[bytes]:
    value = request.header(recipe.header.lower().encode())
    if recipe.separator is None:
        return [value.strip()]
    parts = value.split(recipe.separator.encode(), _MOST_SIGNATURES + 1)
    return [part.strip() for part in parts[: _MOST_SIGNATURES + 1]]


def _timestamp(place: str, recipe: Recipe, request: Signed) -> bytes:
    if not place.endswith("="):
        return request.header(place.lower().encode()).strip()
    start = place.encode()
    found = [part[len(start) :] for part in _parts(recipe, request) if part.startswith(start)]
    return found[0] if len(found) == 1 else b""


def _signatures(recipe: Recipe, request: Signed) -> list[bytes]:
    parts = _parts(recipe, request)
    if recipe.prefix is None:
        given = [part.removeprefix(recipe.algorithm.encode() + b"=") for part in parts]
    else:
        start = recipe.prefix.encode()
        given = [part[len(start) :] for part in parts if part.startswith(start)]
    return [decoded(text, recipe.encoding) for text in given]


def any_matches(keys: Iterable[bytes], message: bytes, given: list[bytes], algorithm: str = "sha256") -> bool:
    """Is one of the signatures that of one of the keys?"""
    found = False
    for key in keys:
        expected = hmac.digest(key, message, algorithm)
        for signature in given:
            found |= hmac.compare_digest(expected, signature)
    return found


def is_secret(secrets: Iterable[str], given: bytes) -> bool:
    """Is this one of the secrets? Takes the same time for every length."""
    digest = hashlib.sha256(given).digest()
    found = False
    for secret in secrets:
        found |= hmac.compare_digest(hashlib.sha256(secret.encode()).digest(), digest)
    return found


def is_near(time: bytes, now: float) -> bool:
    """Unix seconds, milliseconds, or ISO 8601 with a zone, at most TOLERANCE_SECONDS from now."""
    if _TIME.fullmatch(time):
        number = int(time)
        return abs(now - (number / 1000 if number >= _MILLISECONDS else number)) <= TOLERANCE_SECONDS
    if not _ISO_TIME.fullmatch(time):
        return False
    try:
        moment = datetime.fromisoformat(time.decode()).timestamp()
    except (ValueError, OverflowError):  # the 31st of February
        return False
    return abs(now - moment) <= TOLERANCE_SECONDS


def decoded(text: bytes, encoding: str) -> bytes:
    """The signature's bytes; empty, which matches nothing, if it is malformed."""
    try:
        if encoding == "base64":
            return base64.b64decode(text, validate=True)
        return binascii.unhexlify(text)
    except (binascii.Error, ValueError):
        return b""


def form_of(request: Signed) -> bytes | None:
    """A form as Twilio and Mandrill sign it: names in order, each with its value, nothing between them. Of any other
    body Twilio signs the address, whose query has the body's SHA-256. None: it is neither."""
    try:
        fields = sorted(set(request.fields())) if request.media_type == FORM else None
        digest = dict(parse_qsl(request.query.decode("ascii"))).get("bodySHA256")
    except ValueError:
        return None
    ours = hashlib.sha256(request.body).hexdigest()
    if digest is not None and not hmac.compare_digest(digest.lower().encode(), ours.encode()):
        return None
    if fields is None:
        return None if digest is None else b""
    return "".join(name + value for name, value in fields).encode()


# HubSpot, "Validating requests", v3: these are decoded before signing
_PERCENT = re.compile(rb"%(3A|2F|3F|40|21|24|27|28|29|2A|2C|3B)", re.IGNORECASE)


def _plain(found: re.Match[bytes]) -> bytes:
    return bytes.fromhex(found[1].decode())


# -- secrets ------------------------------------------------------------------------------------------

_STANDARD_MARKS = re.compile(r"(v1,)?whsec_")  # Standard Webhooks; Supabase has the version before it


def keys_of(secrets: Iterable[str], encoding: str) -> list[bytes]:
    """The keys in secrets. Raises ValueError if one is not in its encoding."""
    if encoding != "base64":
        return [bytes.fromhex(one) if encoding == "hex" else one.encode() for one in secrets]
    keys = [key for secret in secrets for key in secret.split("|")]  # Supabase lists several so
    marks = [_STANDARD_MARKS.match(key) for key in keys]
    starts = [0 if mark is None else mark.end() for mark in marks]
    return [base64.b64decode(key[start:], validate=True) for key, start in zip(keys, starts, strict=True)]


def _secret_problem(encoding: str, secrets: Iterable[str]) -> str | None:
    known = [secret for secret in secrets if "${" not in secret]  # the others are not set on this machine
    try:
        fit = all(keys_of(known, encoding))
    except ValueError:  # binascii.Error, or a character that is not ASCII
        fit = False
    return None if fit else f"has a secret that is not {encoding}"
