"""The console's application: pages, forms and the API over one set of operations.

Who may read was decided before (observe/admin.py). Who may act is decided here, in one place (`_refused`): an operator,
by a bearer token or by a session whose form proves that it is ours.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bridge.console import operations as ops
from bridge.console.desk import Desk
from bridge.console.openapi import document
from bridge.console.pages import Notes, render, static_file
from bridge.console.registry import OPERATIONS, PAGES
from bridge.errors import BridgeError, CannotConnect, ConfigError
from bridge.log import Log
from bridge.observe.access import Access, Visit
from bridge.observe.admin import HEADERS, local
from bridge.operate.audit import Actor
from bridge.postgres.safe_error import safe_error

_BODY_BYTES = 4 << 20  # an edited payload
_LOG = Log("bridge.console")


def build_console(desk: Desk, access: Access) -> Starlette:
    """The application, behind the admin server's guard."""
    console = Console(desk, access)
    app = Starlette(routes=console.routes())
    app.router.redirect_slashes = False
    return app


class Console:
    def __init__(self, desk: Desk, access: Access) -> None:
        self._desk = desk
        self._access = access
        self._notes = Notes()

    def routes(self) -> list[Route]:
        routes = [
            Route("/static/{name:path}", static_file),
            Route("/logout", self._sign_out, methods=["POST"]),
            Route("/api/openapi.json", self._openapi),
        ]
        for path, page in PAGES.items():
            routes.append(Route(path, self._page(page)))
        for one in OPERATIONS:
            routes.append(Route(f"/api{one.path}", self._api(one), methods=[one.method]))
            if one.method == "POST":
                routes.append(Route(one.path, self._form(one), methods=["POST"]))
        return routes

    # --- pages ------------------------------------------------------------------------------------

    def _page(self, page: Callable[..., Awaitable[tuple[str, dict[str, Any]]]]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            try:
                template, values = await page(self._desk, request)
            except BridgeError as error:
                return self._trouble(request, error)
            except Exception as error:
                _LOG.error("defect", path=request.url.path, **safe_error(error))
                raise
            return render(template, request, self._notes, **values)

        return endpoint

    def _trouble(self, request: Request, error: BridgeError) -> Response:
        values = {"message": str(error.args[0]), "hint": error.hint, "reason": error.reason}
        template = "part_trouble.html" if "hx-request" in request.headers else "trouble.html"
        return render(template, request, self._notes, _status(error), **values)

    # --- forms ------------------------------------------------------------------------------------

    def _form(self, operation: ops.Operation) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            visit: Visit = request.scope["bridge.visit"]
            sent = parse_qs((await _body(request)).decode("utf-8", "replace"), keep_blank_values=True)
            csrf, back = (sent.pop(name, [""])[0] for name in ("csrf", "back"))
            if (why := _refused(visit, csrf or request.headers.get("x-csrf-token", ""), request)) is not None:
                return render(
                    "trouble.html", request, self._notes, 403, message=why, hint="", reason="forbidden"
                )
            known = {one.name for one in operation.every_field}  # one form has several buttons
            try:
                sent = {name: values for name, values in sent.items() if name in known}
                done = await self._run(operation, sent, request, "console")
            except BridgeError as error:
                if "hx-request" in request.headers:
                    return self._trouble(request, error)
                self._notes.leave(visit, {"bad": True, "said": str(error.args[0]), "hint": error.hint})
            else:
                if "hx-request" in request.headers:
                    return render("part_preview.html", request, self._notes, told=done.told, said=done.said)
                undo = {} if done.undo is None else {"undo": done.undo[0], "fields": _pairs(done.undo[1])}
                self._notes.leave(visit, {"bad": False, "said": done.said, **undo})
            return Response(status_code=303, headers={**HEADERS, "location": local(back or "/")})

        return endpoint

    async def _sign_out(self, request: Request) -> Response:
        visit: Visit = request.scope["bridge.visit"]
        csrf = parse_qs((await _body(request)).decode("utf-8", "replace")).get("csrf", [""])[0]
        if visit.session is None or not visit.proves(csrf, request.headers):
            return Response(status_code=403, headers=HEADERS)
        cookie = self._access.sign_out(request.headers)
        return Response(status_code=303, headers={**HEADERS, "location": "/", "set-cookie": cookie})

    # --- the API ----------------------------------------------------------------------------------

    def _api(self, operation: ops.Operation) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            visit: Visit = request.scope["bridge.visit"]
            try:
                if operation.acts:
                    why = _refused(visit, request.headers.get("x-csrf-token", ""), request)
                    if why is not None:
                        return _problem(403, "forbidden", why, "")
                sent = await _sent(request) if operation.method == "POST" else _query(request)
                done = await self._run(operation, sent, request, "api")
            except BridgeError as error:
                return _problem(_status(error), error.reason, str(error.args[0]), error.hint)
            return Response(json.dumps(done.told, default=str), 200, HEADERS, media_type="application/json")

        return endpoint

    async def _run(
        self, operation: ops.Operation, sent: Mapping[str, list[Any]], request: Request, via: Any
    ) -> ops.Done:
        person = request.scope["bridge.visit"].person
        named = {name: [value] for name, value in request.path_params.items()}
        given = ops.taken(operation, {**sent, **named})
        actor = Actor(person.name, via, given.get("reason"))
        return await self._desk.work(operation.run, ops.Request(self._desk, given, person, actor))

    async def _openapi(self, _: Request) -> Response:
        return JSONResponse(document(OPERATIONS), headers=HEADERS)


def _refused(visit: Visit, csrf: str, request: Request) -> str | None:
    """Why who asks may not act."""
    if visit.person.role != "operator":
        return (
            f"{visit.person.name} may only read: an action needs a token of admin.tokens with role: operator"
        )
    if not visit.may_act:
        return (
            "send the token as `Authorization: Bearer`, or sign in: a browser repeats Basic to whoever asks"
        )
    if not visit.proves(csrf, request.headers):
        return "the form is of an earlier session, or of another site: reload the page and try again"
    return None


def _status(error: BridgeError) -> int:
    if isinstance(error, CannotConnect):
        return 502
    return 422 if isinstance(error, ConfigError) else 409


def _problem(status: int, reason: str, message: str, hint: str | None) -> Response:
    told = {"status": status, "reason": reason, "message": message, "hint": hint or ""}
    return Response(json.dumps(told), status, HEADERS, media_type="application/problem+json")


async def _body(request: Request) -> bytes:
    found = b""
    async for part in request.stream():
        found += part
        if len(found) > _BODY_BYTES:
            raise ConfigError(f"the body is larger than {_BODY_BYTES >> 20} MiB")
    return found


async def _sent(request: Request) -> dict[str, list[Any]]:
    body = await _body(request)
    try:
        found = json.loads(body) if body.strip() else {}
    except ValueError:
        raise ConfigError("the body is not JSON") from None
    if not isinstance(found, dict):
        raise ConfigError("the body must be a JSON object")
    return {name: [value] for name, value in found.items()}


def _query(request: Request) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for name, value in request.query_params.multi_items():
        found.setdefault(name, []).append(value)
    return found


def _pairs(fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    """As a form's hidden fields."""
    return [
        (name, str(value))
        for name, values in fields.items()
        for value in (values if isinstance(values, (list, tuple)) else [values])
    ]
