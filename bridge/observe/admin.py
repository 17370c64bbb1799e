"""The admin server: liveness, readiness, metrics, the ingress's OpenAPI, the status as JSON, and the console's pages.

`/livez` is public, and `/login` takes a token. Everything else needs one (access.py). Without a token the server must
listen on loopback, and the Host header must name loopback too: otherwise a web page could read this server through a
host name that resolves to 127.0.0.1 (DNS rebinding).

The pages are bridge/console, which is imported when the first of them is asked for.
"""

from __future__ import annotations

import asyncio
import html
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from bridge.errors import ConfigError
from bridge.observe.access import Access
from bridge.observe.listen import is_loopback
from bridge.observe.metrics import Metrics
from bridge.observe.server import serve
from bridge.observe.status import status_of

PUBLIC_PATHS = frozenset({"/livez"})
SIGN_IN = "/login"
_FORM_BYTES = 4096
_REFUSED_SECONDS = 0.5  # a wrong token is answered after it

HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}
_HEADERS = HEADERS


class TokenGuard:
    """Middleware that passes a request on, with who asks in its scope (`bridge.visit`), or answers 401 or 421. It is
    the only check of who may read; who may act is checked where the action is."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] in PUBLIC_PATHS:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["path"] == SIGN_IN and scope["method"] == "POST" and self._access.is_guarded:
            answer: ASGIApp = await self._sign_in(Request(scope, receive))
        elif (visit := self._access.visit(headers)) is None:
            answer = self._refusal(scope, headers)
        else:
            scope["bridge.visit"], scope["bridge.trusted"] = visit, True
            answer = self._app
        await answer(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> Response:
        if not self._access.is_guarded:
            return PlainTextResponse("this server answers for localhost only\n", 421, _HEADERS)
        if "text/html" in headers.get("accept", ""):
            query = scope["query_string"].decode("latin-1")
            return sign_in_page(scope["path"] + (f"?{query}" if query else ""))
        challenge = {"www-authenticate": 'Basic realm="outbox-bridge", charset="UTF-8"'}
        return PlainTextResponse("admin.token is needed\n", 401, {**_HEADERS, **challenge})

    async def _sign_in(self, request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _FORM_BYTES:
                return PlainTextResponse("too large\n", 413, _HEADERS)
        form = parse_qs(body.decode("utf-8", "replace"))
        back = form.get("next", ["/"])[0]
        cookie = self._access.sign_in(form.get("token", [""])[0])
        if cookie is None:
            await asyncio.sleep(_REFUSED_SECONDS)
            return sign_in_page(back, wrong=True)
        return Response(status_code=303, headers={**_HEADERS, "location": local(back), "set-cookie": cookie})


def local(path: str) -> str:
    """Where a form leads back to: only on this server."""
    fits = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if fits and path.isascii() else "/"


_SIGN_IN = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>Sign in - Outbox Bridge</title>
<style nonce="{nonce}">body {{ font: 16px/1.5 system-ui, sans-serif; margin: 0; }}
main {{ max-width: 22rem; margin: 15vh auto 0; padding: 0 1rem; }} h1 {{ font-size: 1.35rem; }}
input, button {{ font: inherit; padding: .5rem .75rem; width: 100%; box-sizing: border-box; }}
button {{ margin-top: 1rem; }} .bad {{ color: light-dark(#b42318, #ff8579); }}</style></head>
<body><main><h1>Outbox Bridge</h1>{wrong}
<form method="post" action="{action}"><input type="hidden" name="next" value="{back}">
<label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<button>Sign in</button></form>
<p>A token of <code>admin</code> in bridge.yaml.</p></main></body></html>
"""


def sign_in_page(back: str, *, wrong: bool = False) -> Response:
    """401 with the form. It needs nothing else of this server, because everything else needs a token."""
    nonce = secrets.token_urlsafe(12)
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    )
    said = '<p class="bad" role="alert">No such token.</p>' if wrong else ""
    text = _SIGN_IN.format(nonce=nonce, action=SIGN_IN, back=html.escape(local(back)), wrong=said)
    headers = {
        **_HEADERS,
        "content-security-policy": policy,
        "www-authenticate": 'Bearer realm="outbox-bridge"',  # browsers ask for Basic in a window of their own
    }
    return Response(text, 401, headers, media_type="text/html")


class _Pages:
    """Made when the first page is asked for."""

    def __init__(self, make: Callable[[Access], ASGIApp], access: Access) -> None:
        self._make = make
        self._access = access
        self._made: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._made is None:
            self._made = self._make(self._access)
        await self._made(scope, receive, send)


def _nothing() -> None:
    return None


async def _fresh() -> None:
    return None


def build_admin(
    metrics: Metrics,
    *,
    host: str = "127.0.0.1",
    access: Access | None = None,
    openapi: Callable[[], Mapping[str, Any] | None] = _nothing,
    fresh: Callable[[], Awaitable[None]] = _fresh,
    pages: Callable[[Access], ASGIApp] | None = None,
) -> Starlette:
    """The admin application. Raises ConfigError if `host` is not loopback and there is no token. `openapi`: the
    ingress's current document; None without an ingress. `fresh`: what /status waits for. `pages`: makes the console.
    """
    access = access or Access()
    if not access.is_guarded and not is_loopback(host):
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

    app = Starlette(
        routes=[
            Route("/livez", answer(livez)),
            Route("/readyz", answer(readyz)),
            Route("/metrics", answer(exposition)),
            Route("/status", status),
            Route("/openapi.json", answer(contracts)),
            *([Mount("/", _Pages(pages, access))] if pages is not None else []),
        ],
        middleware=[Middleware(TokenGuard, access=access)],
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
