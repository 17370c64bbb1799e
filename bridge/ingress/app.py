"""The ingress's routes and their authentication.

A request needs an API key; a webhook's request needs a valid signature. Nothing is public, not even the OpenAPI
document. An unknown webhook is answered like an invalid signature.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Iterable, Mapping
from functools import partial
from http import HTTPStatus

import orjson
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bridge.errors import BridgeError
from bridge.ingress.body import (
    check_headers,
    check_text,
    hold_to_contract,
    read_body,
    read_lines,
    read_payload,
    result_line,
)
from bridge.ingress.problem import Refusal, unauthorized
from bridge.ingress.settings import SOURCE_HEADER, IngressSettings, Keys
from bridge.ingress.store import Item, Stored
from bridge.ingress.writer import StoreOutcome, Writer, unavailable
from bridge.log import Log
from bridge.postgres.safe_error import safe_error
from bridge.signatures import Scheme

PUBLIC_PATHS: frozenset[str] = frozenset()
"""Paths that need no authentication: none."""

_WEBHOOKS = "/v1/webhooks/"
_EVENTS = "/v1/events/"
_JSON, _LINES = b"application/json", b"application/x-ndjson"
_KEY_HEADERS = {
    "idempotency_key": b"idempotency-key",
    "key": b"x-outbox-key",
    "source": SOURCE_HEADER.encode(),
}

Count = Callable[[str, int], None]
"""(endpoint, HTTP status): one request more."""


class Ingress:
    """The application and a writer for each source. `reload` replaces the settings while requests run."""

    def __init__(
        self,
        settings: IngressSettings,
        sources: Mapping[str, str],
        *,
        count: Count,
        failed: Callable[[str, BridgeError], None],
        works: Callable[[str], None],
    ) -> None:
        """sources: the DSN of each that it writes to. failed, works: called with the source's name."""
        self.settings = settings
        self.writers = {
            name: Writer(
                dsn,
                failed=partial(failed, name),
                works=partial(works, name),
                deliveries=lambda: bool(self.settings.webhooks),
                source=f"source {name}" if len(sources) > 1 else "the source",
            )
            for name, dsn in sources.items()
        }
        self.app = Starlette(
            routes=[
                Route("/v1/events/{type}", self.events, methods=["POST"]),
                Route("/v1/webhooks/{name}", self.webhooks, methods=["POST"]),
                Route("/openapi.json", self.openapi, methods=["GET"]),
            ],
            middleware=[
                Middleware(Edge, count=count, webhooks=lambda: self.settings.webhooks),
                Middleware(Browsers, origins=lambda: self.settings.cors),
                Middleware(KeyGuard, keys=lambda: self.settings.keys),
            ],
            exception_handlers={Refusal: _refused, 404: _no_route, 405: _no_route},
        )
        self.app.router.redirect_slashes = False  # would answer with an address made of the Host header

    def reload(self, settings: IngressSettings) -> None:
        """Use these keys, contracts, webhooks and limits from now on; running requests keep theirs."""
        self.settings = settings

    async def write(self) -> None:
        """Until cancelled. What one source refuses keeps no other waiting."""
        async with asyncio.TaskGroup() as group:
            for name, writer in self.writers.items():
                group.create_task(writer.run(), name=f"ingress-writer {name}")

    def _writer(self, source: str) -> Writer:
        """Raises Refusal 503 if it was added by a reload."""
        found = self.writers.get(source)
        if found is None:
            raise unavailable(f"the ingress writes to source {source} after a restart of the bridge")
        return found

    async def events(self, request: Request) -> Response:
        """POST /v1/events/{type}"""
        settings, scope = self.settings, request.scope
        headers: dict[bytes, bytes] = dict(scope["headers"])
        event_type = check_text("type", request.path_params["type"])
        contract = settings.contract(event_type)
        writer = self._writer(settings.source(_header(scope["headers"], "source")))
        media_type = check_headers(headers, settings.max_payload, (_JSON, _LINES))
        if media_type == _LINES:
            return await self._lines(request, event_type, settings, writer)
        key, idempotency_key = _header(scope["headers"], "key"), _header(scope["headers"], "idempotency_key")
        _take(settings, scope, 1)
        body = await read_body(request.receive, settings.max_payload)
        document = read_payload(body)
        if contract is not None:
            hold_to_contract(contract, document, body)
        [outcome] = await writer.put([Item(event_type, body, key, idempotency_key)])
        return _answer(outcome)

    async def _lines(
        self, request: Request, event_type: str, settings: IngressSettings, writer: Writer
    ) -> Response:
        body = await read_body(request.receive, settings.max_payload)
        found = read_lines(body, event_type, settings.contract(event_type))
        _take(settings, request.scope, len(found))
        items = [one for one in found if isinstance(one, Item)]
        stored = iter(await writer.put(items) if items else ())
        outcomes: list[StoreOutcome] = [next(stored) if isinstance(one, Item) else one for one in found]
        text = b"".join(result_line(outcome) + b"\n" for outcome in outcomes)
        return Response(text, 200, media_type=_LINES.decode())

    async def webhooks(self, request: Request) -> Response:
        """POST /v1/webhooks/{name}"""
        settings = self.settings
        headers: dict[bytes, bytes] = dict(request.scope["headers"])
        endpoint = settings.webhooks.get(request.path_params["name"])
        if endpoint is None:
            raise unauthorized(webhook=True)
        check_headers(headers, settings.max_payload)
        body = await read_body(request.receive, settings.max_payload)
        taken = endpoint.take(headers, body, request.scope["query_string"])
        request.scope["bridge.trusted"] = True
        writer = self._writer(settings.hook_sources[request.path_params["name"]])
        if isinstance(taken, Item):
            [outcome] = await writer.put([taken])
            return _told(_answer(outcome), endpoint.scheme)
        if isinstance(taken, list):
            return _told(_answers(await writer.put(taken) if taken else []), endpoint.scheme)
        return Response(orjson.dumps(taken), media_type="application/json")

    async def openapi(self, _: Request) -> Response:
        """GET /openapi.json"""
        return Response(orjson.dumps(self.settings.openapi), media_type="application/json")


def _header(headers: Iterable[tuple[bytes, bytes]], name: str) -> str | None:
    values = [value for header, value in headers if header == _KEY_HEADERS[name]]
    if not values:
        return None
    header = _KEY_HEADERS[name].decode()
    if len(values) > 1:
        raise Refusal(400, "malformed", f"{header} appears twice", field=header)
    try:
        return check_text(name, values[0].decode(), header)
    except UnicodeDecodeError:
        raise Refusal(400, "malformed", f"{header} is not UTF-8 text", field=header) from None


def _take(settings: IngressSettings, scope: Scope, events: int) -> None:
    wait = settings.keys.take(scope["bridge.key"], events)
    if wait:
        raise Refusal(429, "rate-limit", "this API key is over ingress.rate_limit", retry_after=wait)


def _answer(outcome: StoreOutcome) -> Response:
    if isinstance(outcome, Refusal):
        raise outcome
    if outcome.duplicate:
        return Response(orjson.dumps({"id": outcome.id, "duplicate": True}), media_type="application/json")
    return Response(orjson.dumps({"id": outcome.id}), 202, media_type="application/json")


def _answers(outcomes: list[StoreOutcome]) -> Response:
    """Of a webhook's array. A sender repeats the whole of it, so one refusal is the answer; what was stored is known
    by its id then."""
    refusals = [outcome for outcome in outcomes if isinstance(outcome, Refusal)]
    if refusals:
        raise max(refusals, key=lambda refusal: refusal.status)
    stored = [outcome for outcome in outcomes if isinstance(outcome, Stored)]
    events = [{"id": one.id, "duplicate": True} if one.duplicate else {"id": one.id} for one in stored]
    status = 200 if all(one.duplicate for one in stored) else 202
    return Response(orjson.dumps({"events": events}), status, media_type="application/json")


def _told(response: Response, scheme: type[Scheme]) -> Response:
    """The answer as the sender takes it for success."""
    status = min(response.status_code, scheme.accepted)
    if scheme.answer is None:
        response.status_code = status
        return response
    body, media_type = scheme.answer
    return Response(body, status, media_type=media_type)


def _refused(_: Request, error: Exception) -> Response:
    if not isinstance(error, Refusal):
        raise error
    return error.response()


def _no_route(_: Request, error: Exception) -> Response:
    status = HTTPStatus(getattr(error, "status_code", 404))
    kind = "method" if status == HTTPStatus.METHOD_NOT_ALLOWED else "not-found"
    response = Refusal(int(status), kind, status.description or status.phrase).response()
    response.headers.update(getattr(error, "headers", None) or {})
    return response


class KeyGuard:
    """Requires a valid API key, except for webhooks, which check their own signature. `bridge.trusted` tells the server
    that the client has shown it (observe/server.py)."""

    def __init__(self, app: ASGIApp, keys: Callable[[], Keys]) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not scope["path"].startswith(_WEBHOOKS) and scope["path"] not in PUBLIC_PATHS:
            headers = dict(scope["headers"])
            scope["bridge.key"] = self._keys().find(headers.get(b"authorization", b""))
            if scope["bridge.key"] is None:
                await unauthorized().response()(scope, receive, send)
                return
            scope["bridge.trusted"] = True
        await self._app(scope, receive, send)


class Browsers:
    """Lets web pages of the configured origins send events and read the answers (CORS: fetch.spec.whatwg.org, 3.3).
    Their preflight has no key. For any other origin nothing is said, so its browser refuses."""

    def __init__(self, app: ASGIApp, origins: Callable[[], tuple[str, ...]]) -> None:
        self._app = app
        self._origins = origins
        self._made: tuple[tuple[str, ...], ASGIApp] = ((), app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origins = self._origins()
        if self._made[0] != origins:  # they were reloaded
            self._made = (origins, self._allowing(origins))
        origin = dict(scope["headers"]).get(b"origin", b"").decode("latin-1")
        is_allowed = origin in origins and scope["path"].startswith(_EVENTS)
        await (self._made[1] if is_allowed else self._app)(scope, receive, send)

    def _allowing(self, origins: tuple[str, ...]) -> ASGIApp:
        return CORSMiddleware(
            self._app,
            allow_origins=origins,
            allow_methods=["POST"],
            allow_headers=[
                "authorization",
                "content-type",
                *(name.decode() for name in _KEY_HEADERS.values()),
            ],
            expose_headers=["retry-after"],
        )


class Edge:
    """The outermost layer: counts answers, and turns unexpected errors into a 500 without values."""

    def __init__(self, app: ASGIApp, count: Count, webhooks: Callable[[], Container[str]]) -> None:
        self._app = app
        self._count = count
        self._webhooks = webhooks
        self._log = Log("bridge.ingress")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception as error:
            self._log.error("request failed", **safe_error(error))
            if not status:
                refusal = Refusal(500, "internal", "see the bridge's log", retry_after=1)
                await refusal.response()(scope, receive, sending)
        finally:
            self._count(self._label(scope["path"]), status)

    def _label(self, path: str) -> str:
        """The endpoint's label: a fixed word or a configured webhook's name, never a client's text."""
        if path.startswith(_EVENTS):
            return "events"
        if path.startswith(_WEBHOOKS):
            name = path.removeprefix(_WEBHOOKS)
            return f"webhooks/{name}" if name in self._webhooks() else "other"
        return "openapi" if path == "/openapi.json" else "other"
