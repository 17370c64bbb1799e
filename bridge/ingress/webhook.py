"""From a signed webhook request to an event: signature, delivery, values."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any

import orjson

from bridge.config.model import BODY, Scheme, Webhook
from bridge.errors import UnitFailure
from bridge.expressions.document import json_text, parse_exact
from bridge.expressions.expression import Expression
from bridge.expressions.template import Template
from bridge.ingress.body import LONGEST, check_text, read_payload
from bridge.ingress.problem import Refusal, unauthorized
from bridge.ingress.signature import Signed, verifier
from bridge.ingress.store import Item
from bridge.planning.rows import Escaped, Literal, ValueSource, classify

_IDS: dict[Scheme, tuple[str | None, str | None]] = {
    # scheme: (what tells a delivery, the event's idempotency key). GitHub does not sign its delivery id:
    # a copy could be sent under another one, so there the body's bytes tell.
    "standard": ("$headers.webhook_id", "$headers.webhook_id"),
    "stripe": ("$body.id", "$body.id"),
    "github": (BODY, "$headers.x_github_delivery"),
    "hmac": (None, None),
    "bearer": (None, None),
}
_TYPES: dict[Scheme, str] = {
    "standard": "$body.type",
    "stripe": "$body.type",
    "github": "$headers.x_github_event",
}


class Endpoint:
    """One webhook, compiled."""

    def __init__(self, name: str, webhook: Webhook, *, clock: Callable[[], float] = time.time) -> None:
        self.name = name
        self._verify = verifier(webhook)
        self._clock = clock
        delivery, idempotency_key = _IDS[webhook.scheme]
        self._type = classify(webhook.type or _TYPES[webhook.scheme])
        self._prefix = "" if webhook.type else f"{name}."
        self._delivery = webhook.id or delivery
        self._delivery_source = None if self._delivery in (None, BODY) else classify(self._delivery)
        self._key = None if webhook.key is None else classify(webhook.key)
        written = webhook.idempotency_key or idempotency_key
        self._idempotency_key = None if written is None else classify(written)
        self._payload = None if webhook.payload is None else classify(webhook.payload)
        self._headers = orjson.dumps({"webhook": name})

    def item(self, headers: Mapping[bytes, bytes], body: bytes) -> Item:
        """The event of a request. Raises Refusal: 401 for every invalid signature, with the same text; 400 and 422
        for a signed request that cannot become an event."""
        if not self._verify(Signed(headers, body, self._clock())):
            raise unauthorized()
        try:
            document = read_payload(body)
            exact = parse_exact(body) if self._payload is not None else document
            context = {"body": exact, "headers": _names(headers)}
            item = Item(self._prefix + _text(self._type, context, "type"), body, headers=self._headers)
            if self._payload is not None:
                item = replace(item, payload=json_text(_value(self._payload, context)))
            return replace(
                item,
                type=check_text("type", item.type),
                key=self._optional(self._key, context, "key"),
                idempotency_key=self._optional(self._idempotency_key, context, "idempotency_key"),
                endpoint=self.name if self._delivery is not None else None,
                delivery=self._delivery_id(context, body),
            )
        except UnitFailure as failure:
            raise Refusal(422, "payload", failure.cause) from None

    def _delivery_id(self, context: Mapping[str, Any], body: bytes) -> str | None:
        if self._delivery is None:
            return None
        if self._delivery_source is None:
            return f"sha256:{sha256(body).hexdigest()}"
        text = _text(self._delivery_source, context, "id")
        return text if len(text) <= LONGEST["id"] else f"sha256:{sha256(text.encode()).hexdigest()}"

    def _optional(self, source: ValueSource | None, context: Mapping[str, Any], name: str) -> str | None:
        if source is None or _value(source, context) is None:
            return None
        return check_text(name, _text(source, context, name))


def _names(headers: Mapping[bytes, bytes]) -> dict[str, str]:
    """`x-github-event` is `$headers.x_github_event`."""
    return {
        name.decode("latin-1").replace("-", "_"): value.decode("utf-8", "replace")
        for name, value in headers.items()
    }


def _text(source: ValueSource, context: Mapping[str, Any], name: str) -> str:
    value = _value(source, context)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value:
        raise Refusal(400, "malformed", f"{name} has no value in this request (ingress.webhooks)", field=name)
    return check_text(name, value) if name != "id" else value


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
