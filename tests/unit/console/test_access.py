"""Who may read and who may act: tokens, sessions, forms of other sites, and every route that acts."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from openapi_spec_validator import validate
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message

from bridge.config.load import load
from bridge.config.model import AdminToken
from bridge.console.app import build_console
from bridge.console.desk import Desk
from bridge.console.registry import OPERATIONS, PAGES
from bridge.observe import access as access_module
from bridge.observe import admin as admin_module
from bridge.observe.access import SESSIONS, Access
from bridge.observe.admin import build_admin
from bridge.observe.metrics import Metrics
from bridge.observe.samples import Sampler
from tests.support.bridge_process import DEFAULT_CONFIG, REPOSITORY
from tests.unit.observe.test_metrics import used_metrics

TOKENS = {
    "vera": AdminToken(token="v", role="viewer"),
    "omar": AdminToken(token="o", role="operator"),
}
NOWHERE = {"SOURCE_DSN": "host=127.0.0.1 port=1", "WAREHOUSE_DSN": "host=127.0.0.1 port=1"}


@dataclass
class Told:
    status: int
    headers: dict[str, str]
    text: str


def ask(app: ASGIApp, method: str, path: str, body: str = "", **headers: str) -> Told:
    told = Told(0, {}, "")
    target, _, query = path.partition("?")
    given = {"host": "bridge.example:8377", **{name.replace("_", "-"): v for name, v in headers.items()}}

    async def receive() -> Message:
        return {"type": "http.request", "body": body.encode(), "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            told.status = message["status"]
            told.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            told.text += message["body"].decode()

    scope: dict[str, Any] = {
        "type": "http",
        "method": method,
        "scheme": "http",
        "path": target,
        "raw_path": target.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }
    asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
    return told


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> ASGIApp:
    monkeypatch.setattr(admin_module, "_REFUSED_SECONDS", 0.0)
    return made(used_metrics(), Access("reads", TOKENS))


def made(metrics: Metrics, access: Access) -> ASGIApp:
    config = load(DEFAULT_CONFIG, {**os.environ, **NOWHERE})

    async def fresh() -> None: ...

    desk = Desk(metrics, lambda: config, Sampler(metrics), fresh)
    return build_admin(metrics, access=access, pages=lambda given: build_console(desk, given))


def signed_in(app: ASGIApp, token: str) -> tuple[str, str]:
    """The cookie, and the CSRF token of its forms."""
    told = ask(app, "POST", "/login", urlencode({"token": token, "next": "/"}))
    assert told.status == 303
    cookie = told.headers["set-cookie"].partition(";")[0]
    page = ask(app, "GET", "/no-such-page-but-the-guard-passes", cookie=cookie)
    assert page.status == 404
    csrf = re.search(r'"x-csrf-token": "([^"]+)"', ask(app, "GET", "/jobs", cookie=cookie).text)
    assert csrf is not None
    return cookie, csrf[1]


ACTIONS = [one for one in OPERATIONS if one.acts]


def at(path: str) -> str:
    return re.sub(r"\{\w+\}", "00000000", path)


def test_there_are_pages_and_actions() -> None:
    assert len(PAGES) > 5
    assert all(one.method == "POST" for one in ACTIONS)


@pytest.mark.security(13)
@pytest.mark.parametrize(
    "path", [*map(at, PAGES), *(at(f"/api{one.path}") for one in OPERATIONS), "/static/console.css"]
)
def test_every_page_and_operation_needs_a_token(app: ASGIApp, path: str) -> None:
    for method in ("GET", "POST"):
        told = ask(app, method, path)
        assert (told.status, "warehouse" in told.text) == (401, False)
    form = ask(app, "GET", path, accept="text/html,*/*")
    assert (form.status, "warehouse" in form.text) == (401, False)
    assert not form.headers["www-authenticate"].startswith("Basic")


@pytest.mark.security(22)
@pytest.mark.parametrize("operation", ACTIONS, ids=lambda one: one.path)
def test_an_action_needs_an_operator_and_a_form_of_ours(app: ASGIApp, operation: Any) -> None:
    form, api = at(operation.path), at(f"/api{operation.path}")
    for authorization in ("Bearer reads", "Bearer v", "Basic YTpv"):  # a:o
        assert ask(app, "POST", api, "{}", authorization=authorization).status == 403
        assert ask(app, "POST", form, "", authorization=authorization).status == 403
    viewer, csrf = signed_in(app, "v")
    assert ask(app, "POST", form, urlencode({"csrf": csrf}), cookie=viewer).status == 403
    cookie, csrf = signed_in(app, "o")
    for sent in ("", "wrong", signed_in(app, "o")[1]):
        assert ask(app, "POST", form, urlencode({"csrf": sent}), cookie=cookie).status == 403
        assert ask(app, "POST", api, "{}", cookie=cookie, x_csrf_token=sent).status == 403
    other = {"cookie": cookie, "sec_fetch_site": "cross-site"}
    assert ask(app, "POST", form, urlencode({"csrf": csrf}), **other).status == 403
    assert ask(app, "POST", form, urlencode({"csrf": csrf}), cookie=cookie).status != 403
    assert ask(app, "POST", api, "{}", authorization="Bearer o").status not in (401, 403)


def test_without_tokens_loopback_reads_and_nobody_acts() -> None:
    app = made(used_metrics(), Access())
    assert ask(app, "GET", "/jobs", host="localhost:8377").status == 200
    assert ask(app, "GET", "/jobs").status == 421
    for one in ACTIONS:
        assert ask(app, "POST", at(f"/api{one.path}"), "{}", host="localhost:8377").status == 403


def test_a_session_ends_by_time_by_number_and_by_signing_out() -> None:
    now = [0.0]
    access = Access("t", clock=lambda: now[0])

    def visits(cookie: str) -> bool:
        return access.visit(Headers({"cookie": cookie.partition(";")[0]})) is not None

    first = access.sign_in("t") or ""
    assert all(word in first for word in ("HttpOnly", "SameSite=Strict"))
    assert visits(first)
    for _ in range(SESSIONS):
        last = access.sign_in("t") or ""
    assert (visits(first), visits(last)) == (False, True)
    access.sign_out(Headers({"cookie": last.partition(";")[0]}))
    assert not visits(last)
    kept = access.sign_in("t") or ""
    now[0] = access_module.SESSION_SECONDS
    assert not visits(kept)


@pytest.mark.parametrize(
    "back", ["//evil.example", "https://evil.example", "/\\evil.example", "evil", "/a\r\nb: c"]
)
def test_signing_in_leads_nowhere_else(app: ASGIApp, back: str) -> None:
    told = ask(app, "POST", "/login", urlencode({"token": "v", "next": back}))
    assert (told.status, told.headers["location"]) == (303, "/")


@pytest.mark.security(22)
def test_pages_allow_no_foreign_content_and_no_script_of_their_own(app: ASGIApp) -> None:
    told = ask(app, "GET", "/jobs", authorization="Bearer v")
    policy = told.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for template in files("bridge.console").joinpath("templates").iterdir():
        text = template.read_text()
        assert not re.search(r"<script(?! src=)|<style|\sstyle=|\son\w+=|javascript:|\|\s*safe", text), (
            template.name
        )
        assert not re.search(r"https?://", text), template.name


def test_the_document_of_the_api_is_valid_and_names_each_operation(app: ASGIApp) -> None:
    document = json.loads(ask(app, "GET", "/api/openapi.json", authorization="Bearer v").text)
    validate(document)
    told = {(method.upper(), path) for path, one in document["paths"].items() for method in one}
    assert told == {(one.method, f"/api{one.path}") for one in OPERATIONS}
    assert all("403" in document["paths"][f"/api{one.path}"]["post"]["responses"] for one in ACTIONS)


def test_the_vendored_files_are_those_that_their_list_says() -> None:
    folder = Path(str(files("bridge.console").joinpath("static", "vendor")))
    rows = re.findall(
        r"^\| (\S+\.(?:js|css)) \|.*\| (\w{64}) \|$", (folder / "VENDORED.md").read_text(), re.MULTILINE
    )
    assert {name for name, _ in rows} == {
        one.name for one in folder.iterdir() if one.suffix in (".js", ".css")
    }
    for name, digest in rows:
        assert sha256((folder / name).read_bytes()).hexdigest() == digest, name


def test_nothing_of_the_console_is_imported_before_a_page() -> None:
    script = (
        "import sys, bridge.daemon, bridge.observe.admin;"
        "print([one for one in sys.modules if one.startswith(('bridge.console', 'bridge.operate'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert done.stdout.strip() == "[]"
