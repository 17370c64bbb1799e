"""POST /v1/events/{type}: what is taken, what is refused, and how each looks."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest

from tests.integration.ingress.serving import CONFIG, EVENT, Answer, IngressServer
from tests.support.servers import Database


def problem(answer: Answer, status: int, kind: str) -> dict[str, Any]:
    """The members of an RFC 9457 answer, after the ones that every answer has."""
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = answer.json
    assert found["status"] == status
    assert found["type"] == f"urn:problem-type:outbox-bridge:{kind}"
    assert found["title"]
    return found


def test_an_event_is_in_the_outbox_when_202_comes(ingress: IngressServer, source: Database) -> None:
    answer = ingress.event(idempotency_key="k1", x_outbox_key="cus_1")
    assert answer.status == 202
    event_id = answer.json["id"]
    assert answer.json == {"id": str(UUID(event_id))}
    assert source.execute(
        "select id::text, type, key, payload, idempotency_key, headers from outbox.event"
    ) == [(event_id, "usage.limit_reached", "cus_1", EVENT, "k1", None)]


def test_the_same_idempotency_key_gives_the_first_id_and_one_event(
    ingress: IngressServer, source: Database
) -> None:
    first = ingress.event(idempotency_key="k1")
    again = ingress.event({**EVENT, "used": 1}, idempotency_key="k1")
    assert again.status == 200
    assert again.json == {"id": first.json["id"], "duplicate": True}
    assert source.value("select payload ->> 'used' from outbox.event") == "95210"


def test_idempotency_keys_are_scoped_by_type(serving: Callable[..., IngressServer], source: Database) -> None:
    ingress = serving(text=CONFIG.replace("events:\n", "events:\n  other: { a: string }\n"))
    assert ingress.event(idempotency_key="k").status == 202
    assert ingress.post("/v1/events/other", {"a": "b"}, idempotency_key="k").status == 202
    assert source.value("select count(*) from outbox.event") == 2


def test_concurrent_requests_with_one_key_make_one_event_and_hear_of_it(
    ingress: IngressServer, source: Database
) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda n: ingress.event(idempotency_key=f"k{n % 4}"), range(64)))
    assert sorted({answer.status for answer in answers}) == [200, 202]
    assert sum(answer.status == 202 for answer in answers) == 4
    ids = {(n % 4): answer.json["id"] for n, answer in enumerate(answers)}
    assert all(answer.json["id"] == ids[n % 4] for n, answer in enumerate(answers))
    assert source.value("select count(*) from outbox.event") == 4
    assert ingress.counts == {("events", 202): 4, ("events", 200): 60}


def test_numbers_keep_every_digit(ingress: IngressServer, source: Database) -> None:
    limit, used = "123456789012345678901234567890.000000000000000000012345", "1e400"
    body = json.dumps(EVENT).replace("100000", limit).replace("95210", used).encode()
    assert ingress.event(body).status == 202
    assert source.value("select payload ->> 'limit' from outbox.event") == limit
    assert source.value("select (payload ->> 'used')::numeric = 1e400::numeric from outbox.event")


@pytest.mark.parametrize(
    ("change", "field", "detail"),
    [
        ({"metric": "api-cals"}, "metric", 'field "metric": not one of seats, api-calls, storage'),
        ({"limit": "100000"}, "limit", 'field "limit": expected number, got string'),
        ({"plan": None}, "plan", 'field "plan": expected string, got null'),
    ],
)
def test_a_broken_contract_is_told_with_its_field_and_without_the_value(
    ingress: IngressServer, source: Database, change: dict[str, Any], field: str, detail: str
) -> None:
    found = problem(ingress.event({**EVENT, **change}), 422, "contract")
    assert (found["field"], found["detail"]) == (field, detail)
    assert source.value("select count(*) from outbox.event") == 0


def test_a_missing_field_is_named(ingress: IngressServer) -> None:
    found = problem(ingress.event({k: v for k, v in EVENT.items() if k != "used"}), 422, "contract")
    assert found["field"] == "used"
    assert found["detail"] == 'field "used": missing'


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (rb'"a\u0000b"', "NUL"),
        (rb'"\ud800"', "surrogate"),
        (rb"NaN", "NaN"),
        (rb"[1, -Infinity]", "an infinity"),
        (b"[" * 20_000 + b"]" * 20_000, "nested too deeply"),
    ],
)
def test_what_jsonb_has_no_place_for_is_422_and_names_the_field(
    ingress: IngressServer, value: bytes, words: str
) -> None:
    body = json.dumps(EVENT).encode().replace(b'"pro"', value)
    found = problem(ingress.event(body), 422, "payload")
    assert found.get("field") == (None if value.startswith(b"[[") else "plan")
    assert words in found["detail"]


def test_a_number_that_only_the_server_refuses_costs_its_neighbours_nothing(
    ingress: IngressServer, source: Database
) -> None:
    body = json.dumps(EVENT).encode()
    bodies = [body.replace(b"95210", b"1e200000") if n % 8 == 3 else body for n in range(32)]
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ingress.event, bodies))
    for n, answer in enumerate(answers):
        if n % 8 == 3:
            assert "(22003): a number is beyond" in problem(answer, 422, "payload")["detail"]
        else:
            assert answer.status == 202
    assert source.value("select count(*) from outbox.event") == 28


@pytest.mark.fault(73)
@pytest.mark.parametrize("body", [b"", b"{", b'{"a":1,}', b"\xff\xfe", b'{"a":1} {"b":2}', b"\xef\xbb\xbf{}"])
def test_what_is_not_json_is_400(ingress: IngressServer, body: bytes) -> None:
    problem(ingress.event(body), 400, "malformed")


@pytest.mark.parametrize("body", [b"[]", b"1", b'"text"', b"null"])
def test_a_payload_is_an_object(ingress: IngressServer, body: bytes) -> None:
    problem(ingress.event(body), 422, "payload")


@pytest.mark.fault(73)
@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer wrong", "Basic a2V5", "Bearer key-of-the-test"]
)
def test_without_a_live_key_it_is_401_with_one_body(
    ingress: IngressServer, source: Database, authorization: str
) -> None:
    answer = ingress.event(key=None, authorization=authorization)
    assert problem(answer, 401, "unauthorized")["detail"] == "a valid API key or signature is needed"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert source.value("select count(*) from outbox.event") == 0


def test_keys_rotate_while_it_runs(ingress: IngressServer) -> None:
    assert ingress.event(key="second-key").status == 202
    ingress.reload(CONFIG.replace("second-key", "third-key"))
    assert ingress.event(key="second-key").status == 401
    assert ingress.event(key="third-key").status == 202
    assert ingress.event().status == 202


def test_an_unknown_type_is_404_where_there_are_contracts(ingress: IngressServer) -> None:
    found = problem(ingress.post("/v1/events/usage.limit_reachd", EVENT), 404, "unknown-event")
    assert "did you mean usage.limit_reached?" in found["detail"]


def test_a_type_that_only_a_pipeline_names_is_taken(
    serving: Callable[..., IngressServer], source: Database
) -> None:
    pipelines = (
        "connections: { w: { type: postgres, dsn: dbname=w } }\n"
        "pipelines: { p: { event: 'user.*', destinations: { t: { connection: w, table: a.b } } } }\n"
    )
    ingress = serving(text=CONFIG + pipelines)
    assert ingress.post("/v1/events/user.created", {"a": 1}).status == 202
    problem(ingress.post("/v1/events/usr.created", {"a": 1}), 404, "unknown-event")
    assert source.value("select type from outbox.event") == "user.created"


def test_without_any_contract_every_type_is_taken(serving: Callable[..., IngressServer]) -> None:
    ingress = serving(text="version: 1\ningress: { api_keys: ['${KEY}'] }\n")
    assert ingress.post("/v1/events/anything.goes", {"a": 1}).status == 202
    problem(ingress.post("/v1/events/any%20thing", {"a": 1}), 400, "malformed")
    problem(ingress.post("/v1/events/" + "a" * 201, {"a": 1}), 400, "malformed")


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("idempotency-key", "k" * 256),
        ("idempotency-key", ""),
        ("x-outbox-key", "k" * 501),
        ("idempotency-key", b"\xff"),
    ],
)
def test_a_key_that_cannot_be_stored_is_400_and_names_its_header(
    ingress: IngressServer, header: str, value: Any
) -> None:
    assert problem(ingress.event(**{header: value}), 400, "malformed")["field"] == header


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_another_media_type_is_415(ingress: IngressServer, content_type: str) -> None:
    problem(ingress.event(content_type=content_type), 415, "media-type")


def test_a_media_types_parameters_do_not_matter(ingress: IngressServer) -> None:
    assert ingress.event(content_type="Application/JSON; charset=utf-8").status == 202


def test_other_methods_and_addresses_are_problems_too(ingress: IngressServer) -> None:
    answer = ingress.event(method="PUT")
    problem(answer, 405, "method")
    assert answer.headers["allow"] == "POST"
    problem(ingress.post("/v2/events/a", {}), 404, "not-found")
    problem(ingress.post("/v1/events/usage.limit_reached/", EVENT), 404, "not-found")


def test_a_key_over_its_rate_is_429_and_others_are_not(serving: Callable[..., IngressServer]) -> None:
    ingress = serving(text=CONFIG + "  rate_limit: 2\n")
    answers = [ingress.event() for _ in range(5)]
    refused = [answer for answer in answers if answer.status != 202]
    assert refused
    problem(refused[0], 429, "rate-limit")
    assert int(refused[0].headers["retry-after"]) >= 1
    assert ingress.event(key="second-key").status == 202


def test_lines_are_taken_one_by_one_and_answered_one_by_one(ingress: IngressServer, source: Database) -> None:
    exact = json.dumps(EVENT).replace("95210", "0.10000000000000000000000001")
    body = "\n".join(
        [
            f'{{"payload": {exact}, "idempotency_key": "a", "key": "cus_1"}}',
            json.dumps({"payload": {**EVENT, "metric": "api-cals"}}),
            "{broken",
            "",
            json.dumps({"payload": EVENT, "idempotency_key": "a"}),
            json.dumps({"payload": EVENT, "surprise": 1}),
            json.dumps({"payload": EVENT}),
        ]
    )
    answer = ingress.event(body.encode(), content_type="application/x-ndjson")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    results = answer.lines
    assert [result["status"] for result in results] == [202, 422, 400, 200, 422, 202]
    assert results[1]["field"] == "metric"
    assert results[3] == {"status": 200, "id": results[0]["id"], "duplicate": True}
    assert source.execute("select key, payload ->> 'used' from outbox.event order by seq") == [
        ("cus_1", "0.10000000000000000000000001"),
        (None, "95210"),
    ]


def test_lines_keep_their_order_within_a_key(ingress: IngressServer, source: Database) -> None:
    lines = [
        json.dumps({"payload": {**EVENT, "used": n}, "key": "c", "idempotency_key": f"{n % 90}"})
        for n in range(99)
    ]
    answer = ingress.event("\n".join(lines).encode(), content_type="application/x-ndjson")
    assert [result["status"] for result in answer.lines] == [202] * 90 + [200] * 9
    found = source.execute("select (payload ->> 'used')::int from outbox.event order by seq")
    assert [row[0] for row in found] == list(range(90))


def test_an_idempotency_key_in_an_open_transaction_holds_up_only_itself(
    ingress: IngressServer, source: Database
) -> None:
    with source.connect() as app, app.transaction(force_rollback=True):
        app.execute("select outbox.emit('usage.limit_reached', '{}', 'mine')")
        with ThreadPoolExecutor(8) as pool:
            held = pool.submit(ingress.event, idempotency_key="mine")
            others = [pool.submit(ingress.event, idempotency_key=f"k{n}") for n in range(7)]
            assert [other.result().status for other in others] == [202] * 7
            assert "same idempotency key" in problem(held.result(), 503, "unavailable")["detail"]
    assert ingress.event(idempotency_key="mine").status == 202


def test_the_contracts_are_the_openapi_document(ingress: IngressServer) -> None:
    document = ingress.post("/openapi.json", b"", method="GET").json
    assert document["openapi"] == "3.1.0"
    operation = document["paths"]["/v1/events/usage.limit_reached"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["metric"]["enum"] == ["seats", "api-calls", "storage"]
    assert schema["required"] == list(EVENT)
    assert ingress.post("/openapi.json", b"", method="GET", key=None).status == 401


def test_a_page_of_a_configured_origin_may_send_and_read(
    serving: Callable[..., IngressServer], source: Database
) -> None:
    """What a browser sends and looks at: the preflight, without a key, and the request itself (CORS)."""
    page, other = "https://app.example.com", "https://app.example.com.evil.example"
    server = serving(text=f"{CONFIG}  cors: ['{page}', 'http://localhost:5173']\n")
    asks = {
        "access_control_request_method": "POST",
        "access_control_request_headers": "authorization,content-type,idempotency-key,x-outbox-key",
    }

    def preflight(origin: str, path: str = "/v1/events/usage.limit_reached", **more: str) -> Answer:
        return server.post(path, b"", key=None, method="OPTIONS", origin=origin, **{**asks, **more})

    answer = preflight(page)
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == page
    assert answer.headers["access-control-allow-methods"] == "POST"
    allowed = answer.headers["access-control-allow-headers"].lower().split(", ")
    assert {"authorization", "content-type", "idempotency-key", "x-outbox-key"} <= set(allowed)
    assert "access-control-allow-credentials" not in answer.headers
    assert preflight(page, access_control_request_headers="x-other").status == 400
    for refused in (
        preflight(other),
        preflight("null"),
        preflight(page, "/v1/webhooks/x"),
        preflight(page, "/openapi.json"),
        server.event(origin=other),
    ):
        assert "access-control-allow-origin" not in refused.headers
    for sent, status in (
        (server.event(origin=page, idempotency_key="a"), 202),
        (server.event(origin=page, key="wrong"), 401),
        (server.event({}, origin=page), 422),
    ):
        assert (sent.status, sent.headers["access-control-allow-origin"]) == (status, page)
        assert "origin" in sent.headers["vary"].lower()
    server.reload(CONFIG)
    assert preflight(page).status == 401
    assert "access-control-allow-origin" not in server.event(origin=page).headers
