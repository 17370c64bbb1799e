"""The admin server: liveness, readiness, metrics, the ingress's OpenAPI, and the status as JSON and as a page.

`/livez` is public. Everything else needs `admin.token`, as `Authorization: Bearer TOKEN` or as the password of HTTP
Basic, which browsers use. Without a token the server must listen on loopback, and the Host header must name loopback
too: otherwise a web page could read this server through a host name that resolves to 127.0.0.1 (DNS rebinding).

The page is one HTML document, rendered on the server. It works offline and under a strict content security policy. A
short script replaces the body every two seconds; without scripts the page reloads. The template escapes all text.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hmac
import ipaddress
import math
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import minijinja
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from bridge.errors import ConfigError
from bridge.observe.metrics import Metrics
from bridge.observe.server import serve
from bridge.observe.status import status_of

_WIDTH, _HEIGHT = 240.0, 36.0


def sparkline(values: Sequence[float]) -> str:
    """Points of an SVG polyline: the oldest value on the left, the largest at the top; empty for fewer than two
    values."""
    if len(values) < 2:
        return ""
    top = max(values) or 1.0
    step = _WIDTH / (len(values) - 1)
    return " ".join(
        f"{index * step:.1f},{_HEIGHT - 1 - (value / top) * (_HEIGHT - 2):.1f}"
        for index, value in enumerate(values)
    )


def human_bytes(size: float | None) -> str:
    """1536 -> '1.5 KiB'; None -> a dash."""
    if size is None:
        return "–"  # noqa: RUF001  # an en dash stands for no value
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def human_seconds(seconds: float | None) -> str:
    """0.00042 -> '0.42 ms', 95 -> '1 min 35 s'; None -> a dash."""
    if seconds is None or math.isnan(seconds):
        return "–"  # noqa: RUF001  # as above
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days"


@cache
def _environment() -> minijinja.Environment:
    environment = minijinja.Environment(
        templates={"status.html": (Path(__file__).parent / "status.html").read_text()},
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for filter_ in (human_bytes, human_seconds):
        environment.add_filter(filter_.__name__, filter_)
    environment.add_filter("count", lambda number: f"{number:,}".replace(",", "\u2009"))
    return environment


def render_page(status: Mapping[str, Any], rates: Mapping[str, Sequence[float]], nonce: str) -> str:
    """The document for `status_of()`; `rates` draws events a second for each stream."""
    return _environment().render_template(
        "status.html",
        nonce=nonce,
        status=status,
        uptime=human_seconds(max(0.0, status["now"] - status["started_at"])),
        lines={name: sparkline(values) for name, values in rates.items()},
        peaks={name: max(values, default=0.0) for name, values in rates.items()},
    )


PUBLIC_PATHS = frozenset({"/livez"})

_HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}


def is_loopback(host: str) -> bool:
    """True for localhost and the addresses that only this machine reaches."""
    host = host.strip("[]")
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class TokenGuard:
    """Middleware that passes a request on or answers 401 or 421. It is the only check."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = token.encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        answer = None if scope["path"] in PUBLIC_PATHS else self._refusal(Headers(scope=scope))
        await (answer or self._app)(scope, receive, send)

    def _refusal(self, headers: Headers) -> Response | None:
        if self._token is None:
            if is_loopback(_without_port(headers.get("host", ""))):
                return None
            return PlainTextResponse("this server answers for localhost only\n", 421, _HEADERS)
        if hmac.compare_digest(_credential(headers.get("authorization", "")), self._token):
            return None
        challenge = {"www-authenticate": 'Basic realm="outbox-bridge", charset="UTF-8"'}
        return PlainTextResponse("admin.token is needed\n", 401, {**_HEADERS, **challenge})


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.rpartition(":")[0] if ":" in host else host


def _credential(authorization: str) -> bytes:
    """The token that was sent; empty if it is malformed."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode()
    if scheme.lower() == "basic":
        with contextlib.suppress(binascii.Error, ValueError):
            return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
    return b""


def _nothing() -> None:
    return None


async def _fresh() -> None:
    return None


def build_admin(
    metrics: Metrics,
    *,
    host: str = "127.0.0.1",
    token: str | None = None,
    openapi: Callable[[], Mapping[str, Any] | None] = _nothing,
    fresh: Callable[[], Awaitable[None]] = _fresh,
) -> Starlette:
    """The admin application. Raises ConfigError if `host` is not loopback and there is no token. `openapi`: the
    ingress's current document; None without an ingress. `fresh`: what /status waits for."""
    if not token and not is_loopback(host):
        raise ConfigError(
            f"admin.listen is {host}, which other machines can reach, but admin.token is not set",
            hint="set admin: { token: ${ADMIN_TOKEN} }, or listen on 127.0.0.1",
        )
    health = metrics.health

    def answer(make: Callable[[], Response]) -> Callable[[Request], Any]:
        async def endpoint(_: Request) -> Response:
            response = make()
            response.headers.update(_HEADERS)
            return response

        return endpoint

    def livez() -> Response:
        return (
            PlainTextResponse("ok\n")
            if health.live
            else PlainTextResponse("a stream's thread has died\n", 503)
        )

    def readyz() -> Response:
        problems = health.problems()
        if not problems:
            return JSONResponse({"status": "ready", "reasons": []})
        return JSONResponse({"status": "not ready", "reasons": [one.as_dict() for one in problems]}, 503)

    def exposition() -> Response:
        return Response(metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def status(_: Request) -> Response:
        await fresh()
        return JSONResponse(status_of(metrics), headers=_HEADERS)

    def contracts() -> Response:
        document = openapi()
        if document is None:
            return PlainTextResponse("bridge.yaml has no ingress\n", 404)
        return JSONResponse(document)

    def page() -> Response:
        nonce = secrets.token_urlsafe(12)
        rates = {name: health.rates(name) for name in health.streams}
        policy = (
            f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        html = render_page(status_of(metrics), rates, nonce)
        return Response(html, media_type="text/html", headers={"content-security-policy": policy})

    app = Starlette(
        routes=[
            Route("/livez", answer(livez)),
            Route("/readyz", answer(readyz)),
            Route("/metrics", answer(exposition)),
            Route("/status", status),
            Route("/openapi.json", answer(contracts)),
            Route("/", answer(page)),
        ],
        middleware=[Middleware(TokenGuard, token=token)],
    )
    app.router.redirect_slashes = False  # an unknown address is a 404, not a redirect
    app.state.health = health
    return app


async def serve_admin(
    app: Starlette, listening: socket.socket, stop: asyncio.Event, *, instance: str
) -> None:
    """Serve `app` until `stop` is set. Closes `listening`."""
    sampling = asyncio.create_task(_sample(app), name="admin-rates")
    try:
        await serve(app, listening, stop, instance=instance)
    finally:
        sampling.cancel()


async def _sample(app: Starlette) -> None:
    while True:
        app.state.health.sample()
        await asyncio.sleep(1)
