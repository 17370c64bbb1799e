"""From a signed webhook request to an event: signature, delivery, values."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, NamedTuple

import orjson

from bridge.config.model import Webhook
from bridge.errors import UnitFailure
from bridge.expressions.document import json_text, parse_exact
from bridge.expressions.expression import Expression
from bridge.expressions.template import Template
from bridge.ingress.body import LONGEST, NOT_IN_A_TYPE, check_text, read_documents
from bridge.ingress.problem import Refusal, unauthorized
from bridge.ingress.store import Item
from bridge.planning.rows import Escaped, Literal, ValueSource, classify, names_of
from bridge.signatures import BODY, SCHEMES, SIGNED, Signed

_TOPICS = (
    *(b"x-shopify-topic", b"x-wc-webhook-topic", b"x-github-event", b"x-gitea-event", b"x-gitlab-event"),
    *(b"x-event-key", b"sentry-hook-resource", b"circleci-event-type", b"x-event-type", b"x-topic"),
)
"""Headers in which senders say what happened to the thing that the body is about."""


class Endpoint:
    """One webhook, compiled."""

    def __init__(self, name: str, webhook: Webhook, *, clock: Callable[[], float] = time.time) -> None:
        self.name = name
        self.scheme = scheme = SCHEMES[webhook.scheme]
        self._secrets = webhook.secrets
        self._verify = scheme.verifier(webhook)
        self._identity = scheme.identity(webhook)
        self._clock = clock
        self._type = _Choice("type", webhook.type, scheme.type)
        self._delivery = _Choice("id", webhook.id, scheme.id)
        self._key = _Choice("key", webhook.key)
        self._idempotency_key = _Choice("idempotency_key", webhook.idempotency_key, scheme.idempotency_key)
        self._has_one_type = webhook.type is not None and isinstance(classify(webhook.type), Literal)
        self._payload = None if webhook.payload is None else classify(webhook.payload)
        self._headers = orjson.dumps({"webhook": name})

    def take(
        self, headers: Mapping[bytes, bytes], body: bytes, query: bytes = b""
    ) -> Item | list[Item] | Mapping[str, Any]:
        """The event of a request; one of each element, if its body is an array; or the answer to a request that only
        asks whether the secret is known. Raises Refusal: 401 for every invalid signature, with the same text; 400 and
        422 for a signed request that cannot become an event."""
        request = Signed(headers, body, self._clock(), query)
        if not self._verify(request):
            raise unauthorized(webhook=True)
        read, names = read_documents(request, self.scheme.json_field), _names(headers)
        if isinstance(read, list):
            return [self._item(request, names, document, text, n) for n, (document, text) in enumerate(read)]
        document, text = read
        reply = self.scheme.reply(document, self._secrets)
        return reply if reply is not None else self._item(request, names, document, text, None)

    def _item(
        self, request: Signed, names: Mapping[str, str], document: dict[str, Any], text: bytes, n: int | None
    ) -> Item:
        """n: the element's number, if the body is an array."""
        try:
            context = {"body": document if self._payload is None else parse_exact(text), "headers": names}
            if self._payload is not None:
                text = json_text(_value(self._payload, context))
            key = self._key.find(context)
            delivery = self._delivery_id(request, context, n)
            return Item(
                self._event_type(context),
                text,
                key=None if key is None else check_text("key", key.text),
                idempotency_key=self._repeat(request, context, n),
                headers=self._headers,
                endpoint=None if delivery is None else self.name,
                delivery=delivery,
            )
        except UnitFailure as failure:
            raise Refusal(422, "payload", failure.cause) from None

    def _event_type(self, context: Mapping[str, Any]) -> str:
        found = self._type.find(context)
        if found is None:
            raise _no_value("type")
        if self._type.is_written:
            return check_text("type", found.text)
        # a sender's own word may have what a type may not: Shopify's orders/create
        return check_text("type", f"{self.name}.{NOT_IN_A_TYPE.sub('.', found.text)}")

    def _repeat(self, request: Signed, context: Mapping[str, Any], n: int | None) -> str | None:
        """The idempotency key. Where one type and one key would make a thing's creation, change and end one event, what
        the sender says that happened is a part of the key."""
        found = self._idempotency_key.find(context)
        if found is None:
            return None
        text = check_text("idempotency_key", found.of(n))
        topic = next((name for name in _TOPICS if request.header(name)), None)
        if topic is None or not (self._has_one_type and self._idempotency_key.is_written):
            return text
        text = f"{request.header(topic).decode('utf-8', 'replace')}:{text}"
        fits = len(text) <= LONGEST["idempotency_key"]
        return check_text("idempotency_key", text if fits else f"sha256:{sha256(text.encode()).hexdigest()}")

    def _delivery_id(self, request: Signed, context: Mapping[str, Any], n: int | None) -> str | None:
        found = self._delivery.find(context)
        if found is None:
            if self._delivery.is_written:
                raise _no_value("id")
            return None
        if not found.stands_for_bytes:
            text = found.of(n)
            return text if len(text) <= LONGEST["id"] else f"sha256:{sha256(text.encode()).hexdigest()}"
        content = request.body if found.text == BODY else self._identity(request)
        return found._replace(text=f"sha256:{sha256(content or b'').hexdigest()}").of(n)


class _Found(NamedTuple):
    """A value that a request has. stands_for_bytes: it is BODY or SIGNED."""

    text: str
    reads_body: bool = False
    stands_for_bytes: bool = False

    def of(self, n: int | None) -> str:
        """For the nth element of an array: a value of the whole request would be the same for all of them."""
        return self.text if n is None or self.reads_body else f"{self.text}.{n}"


class _Choice:
    """A value of the configuration, or else the first that a preset finds."""

    def __init__(self, name: str, written: str | None, preset: tuple[str, ...] = ()) -> None:
        self._name = name
        self.is_written = written is not None
        marks = (BODY, SIGNED) if name == "id" else ()
        self._sources = [
            (_Found(each, stands_for_bytes=True), None) if each in marks else (None, classify(each))
            for each in (preset if written is None else (written,))
        ]

    def find(self, context: Mapping[str, Any]) -> _Found | None:
        """Raises Refusal 400 if a configured value is neither text nor an integer."""
        for mark, source in self._sources:
            if source is None:
                return mark
            try:
                value = _value(source, context)
            except UnitFailure:
                if self.is_written:
                    raise
                continue
            if isinstance(value, int) and not isinstance(value, bool):
                value = str(value)
            if isinstance(value, str) and value:
                reads = {name.partition(".")[0] for name in names_of(source)}
                return _Found(value, reads_body="body" in reads)
            if self.is_written and value is not None:
                raise _no_value(self._name)
        return None


def _no_value(name: str) -> Refusal:
    return Refusal(400, "malformed", f"{name} has no value in this request (ingress.webhooks)", field=name)


def _names(headers: Mapping[bytes, bytes]) -> dict[str, str]:
    """`x-github-event` is `$headers.x_github_event`."""
    return {
        name.decode("latin-1").replace("-", "_"): value.decode("utf-8", "replace")
        for name, value in headers.items()
    }


def _value(source: ValueSource, context: Mapping[str, Any]) -> Any:
    """The value; numbers that are only copied stay exact."""
    if isinstance(source, Literal):
        return source.value
    if isinstance(source, Expression):
        return source.evaluate(context)
    if isinstance(source, Template):
        return source.render(context)
    if isinstance(source, Escaped):  # only for a vendor's markup
        return source.made_inert(_value(source.source, context))
    if isinstance(source.items, dict):
        return {name: _value(item, context) for name, item in source.items.items()}
    return [_value(item, context) for item in source.items]
