"""Who may ask the admin server, and what it answers."""

from __future__ import annotations

import base64

import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from bridge.errors import ConfigError, Halt
from bridge.observe.access import Access
from bridge.observe.admin import PUBLIC_PATHS, build_admin
from bridge.observe.metrics import Metrics
from bridge.observe.state import StreamState
from tests.unit.observe.asgi import ask
from tests.unit.observe.test_metrics import used_metrics

TOKEN = "correct horse battery staple"


def paths(app: Starlette) -> set[str]:
    return {route.path for route in app.routes if isinstance(route, Route)}


def bearer(token: str) -> str:
    return f"Bearer {token}"


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anybody:{password}".encode()).decode()


@pytest.mark.security(13)
def test_the_routes_are_these_and_only_livez_is_public() -> None:
    app = build_admin(Metrics(), host="0.0.0.0", access=Access(TOKEN))
    assert len(app.routes) == len(paths(app))
    assert paths(app) == {"/livez", "/readyz", "/metrics", "/status", "/openapi.json"}
    assert {"/livez"} == PUBLIC_PATHS


@pytest.mark.parametrize(
    "path", ["/", "/readyz", "/metrics", "/status", "/no-such-path", "/livez/", "//livez"]
)
@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer wrong",
        f"bearer {TOKEN}x",
        f"Token {TOKEN}",
        basic("wrong"),
        "Basic %%%",
        "Basic YQ",
    ],
)
def test_every_route_but_livez_refuses_whoever_lacks_the_token(path: str, authorization: str) -> None:
    app = build_admin(used_metrics(), host="0.0.0.0", access=Access(TOKEN))
    answer = ask(app, path, authorization=authorization)
    assert answer.status == 401
    assert answer.headers["www-authenticate"].startswith("Basic")
    assert "warehouse" not in answer.text


@pytest.mark.parametrize("authorization", [bearer(TOKEN), basic(TOKEN)])
@pytest.mark.parametrize("path", ["/metrics", "/status"])
def test_the_token_opens_every_route_under_any_host_name(path: str, authorization: str) -> None:
    app = build_admin(used_metrics(), host="0.0.0.0", access=Access(TOKEN))
    assert ask(app, path, host="bridge.internal:8377", authorization=authorization).status == 200


def test_the_ingress_openapi_needs_the_token_and_an_ingress() -> None:
    app = build_admin(Metrics(), access=Access(TOKEN), openapi=lambda: {"openapi": "3.1.0"})
    assert ask(app, "/openapi.json", authorization=bearer(TOKEN)).text == '{"openapi":"3.1.0"}'
    assert ask(app, "/openapi.json").status == 401
    without = ask(build_admin(Metrics()), "/openapi.json")
    assert (without.status, without.text) == (404, "bridge.yaml has no ingress\n")


def test_livez_needs_nothing_and_tells_nothing() -> None:
    answer = ask(
        build_admin(used_metrics(), host="0.0.0.0", access=Access(TOKEN)), "/livez", host="10.0.0.7:8377"
    )
    assert (answer.status, answer.text) == (200, "ok\n")


def test_a_token_counts_on_loopback_too() -> None:
    assert ask(build_admin(Metrics(), access=Access(TOKEN)), "/status").status == 401


@pytest.mark.fault(78)
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "bridge.internal", ""])
def test_listening_to_other_machines_without_a_token_is_an_error(host: str) -> None:
    with pytest.raises(ConfigError, match=r"admin\.token"):
        build_admin(Metrics(), host=host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_token(host: str) -> None:
    assert ask(build_admin(used_metrics(), host=host), "/metrics").status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8377", "127.0.0.1.evil.example", "", "10.0.0.7:8377"]
)
def test_a_web_page_cannot_read_loopback_through_a_name_of_its_own(host: str) -> None:
    app = build_admin(used_metrics())
    assert ask(app, "/status", host=host).status == 421
    for good in ("localhost", "localhost:9000", "127.0.0.1:8377", "[::1]:8377", "[::1]"):
        assert ask(app, "/status", host=good).status == 200


def test_readyz_says_why_not_and_how_to_mend_it() -> None:
    metrics = Metrics()
    stream = metrics.health.add(StreamState("outbox_bridge_warehouse", "warehouse"))
    app = build_admin(metrics)
    assert ask(app, "/readyz").json["reasons"][0]["reason"] == "starting"
    stream.enter("streaming")
    ready = ask(app, "/readyz")
    assert (ready.status, ready.json["status"]) == (200, "ready")
    stream.halt(Halt("the slot was invalidated", reason="slot_lost", hint="bridge doctor"))
    answer = ask(app, "/readyz")
    assert answer.status == 503
    assert answer.json["status"] == "not ready"
    assert answer.json["reasons"] == [
        {
            "where": "outbox_bridge_warehouse",
            "reason": "slot_lost",
            "message": "the slot was invalidated",
            "hint": "bridge doctor",
        }
    ]
    assert ask(app, "/livez").status == 200


def test_livez_fails_when_a_stream_thread_died() -> None:
    metrics = Metrics()
    metrics.health.add(StreamState("s", "c", alive=lambda: False))
    assert ask(build_admin(metrics), "/livez").status == 503


def test_status_tells_what_the_command_prints() -> None:
    status = ask(build_admin(used_metrics()), "/status").json
    assert status["ready"] is False
    (stream,) = status["streams"]
    assert stream["phase"] == "halted"
    assert stream["oldest_pending_event_age_seconds"] == 10
    assert stream["slot"] == {
        "name": "outbox_bridge_warehouse_1",
        "active": True,
        "retained_wal_bytes": 4096,
        "safe_wal_bytes": 1 << 30,
        "full_in_seconds": 900.0,
    }
    (pipeline,) = status["pipelines"]
    assert pipeline["events"] == {"applied": 3, "filtered": 1}
    assert pipeline["dead_letters"] == 2
    assert 0 < pipeline["latency_p50_seconds"] < 0.001
    assert status["deliveries"] == {"nudge": {"sent": 1}}
    assert status["waiting_deliveries"] == {"nudge": {"messages": 2, "oldest_seconds": 61.0}}


def test_only_reading_is_offered() -> None:
    app = build_admin(used_metrics())
    for path in sorted(paths(app)):
        assert {ask(app, path, method=method).status for method in ("POST", "PUT", "DELETE", "PATCH")} == {
            405
        }


def test_answers_are_not_cached_or_framed() -> None:
    headers = ask(build_admin(used_metrics()), "/status").headers
    assert headers["cache-control"] == "no-store"
    assert headers["x-frame-options"] == "DENY"
