"""Refusals as problem+json (RFC 9457), without values of the request."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.responses import Response

_TITLES = {
    "malformed": "The request cannot be read",
    "unauthorized": "The request is not authenticated",
    "unknown-event": "No such event type",
    "not-found": "No such address",
    "method": "This address needs another method",
    "slow": "The body came too slowly",
    "too-large": "The body is too large",
    "media-type": "The body has an unsupported media type",
    "contract": "The payload breaks its contract",
    "payload": "The payload cannot be stored",
    "rate-limit": "Too many events",
    "unavailable": "The event may not be stored; try again",
    "internal": "An error of the bridge; try again",
}


class Refusal(Exception):
    """A request, or one line of it, is refused. `kind` is a word of docs/ingress.md."""

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        field: str | None = None,
        retry_after: float | None = None,
        close: bool = False,
    ) -> None:
        """field: the payload's field or the header. retry_after: seconds. close: the connection is not reused: the body
        was not read, or the client has no key."""
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.field = field
        self.retry_after = retry_after
        self.close = close
        self.challenge = "Bearer"

    def as_dict(self) -> dict[str, Any]:
        """The members of RFC 9457, section 3.1, and `field`, which is our extension."""
        members = {
            "type": f"urn:problem-type:outbox-bridge:{self.kind}",
            "title": _TITLES[self.kind],
            "status": self.status,
            "detail": self.detail,
        }
        return members if self.field is None else {**members, "field": self.field}

    def response(self) -> Response:
        """The whole answer."""
        headers = {"cache-control": "no-store"}
        if self.retry_after is not None:
            headers["retry-after"] = str(max(1, round(self.retry_after + 0.5)))
        if self.status == 401:
            headers["www-authenticate"] = self.challenge
        if self.close:
            headers["connection"] = "close"
        body = orjson.dumps(self.as_dict())
        return Response(body, self.status, headers, media_type="application/problem+json")


def unauthorized(*, webhook: bool = False) -> Refusal:
    """The answer to every unauthenticated request; it must not say what was wrong. webhook: senders with a password may
    wait to be asked for it (RFC 7617)."""
    refusal = Refusal(401, "unauthorized", "a valid API key or signature is needed", close=True)
    if webhook:
        refusal.challenge = 'Bearer, Basic realm="webhooks"'
    return refusal
