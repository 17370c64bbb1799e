"""Servers that go away, answers that are lost, and clients that mean harm or know no better."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import pytest
from starlette.routing import Route

from bridge.ingress import body
from bridge.ingress.app import PUBLIC_PATHS
from tests.integration.ingress.serving import CONFIG, EVENT, INSTANCE, KEY, IngressServer, request
from tests.support.proxy import FaultProxy
from tests.support.servers import Database, RestartableServer
from tests.support.world import until

HEAD = f"POST /v1/events/usage.limit_reached HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
TYPED = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
PATH = "/v1/events/usage.limit_reached"


def sent(server: IngressServer, data: bytes) -> bytes:
    """What comes back for these bytes, until the server closes."""
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=20)) as client:
        client.sendall(data)
        received = b""
        while chunk := client.recv(65536):
            received += chunk
        return received


@pytest.mark.fault(77)
def test_nothing_is_accepted_while_the_database_is_down_then_everything_is(
    source_cluster: RestartableServer, source: Database, serving: Callable[..., IngressServer]
) -> None:
    server = serving()
    assert server.event(idempotency_key="before").status == 202
    source_cluster.stop("immediate")
    answer = server.event(idempotency_key="during")
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json["type"].endswith(":unavailable")
    until(lambda: not server.healthy, "it knows that its database is gone")
    assert server.troubles[-1].reason == "ingress_cannot_write"
    began = time.monotonic()
    assert server.event(idempotency_key="during").status == 503
    assert time.monotonic() - began < 1  # at once: it is known
    source_cluster.start()
    until(lambda: server.event(idempotency_key="during").status in (200, 202), "it takes events again")
    assert server.healthy
    assert source.value("select count(*) from outbox.event") == 2


@pytest.mark.fault(75)
def test_a_lost_answer_to_the_commit_never_gives_a_second_event_to_a_key(
    serving: Callable[..., IngressServer], source: Database, proxy_to: Callable[[str], FaultProxy]
) -> None:
    proxy = proxy_to(source.bridge_dsn)
    server = serving(dsn=proxy.dsn)
    assert server.event().status == 202
    lost = proxy.lose_commit_answer(b"insert into outbox.event")
    answer = server.event(idempotency_key="k")
    assert lost.happened
    assert (answer.status, answer.json["duplicate"]) == (200, True)
    lost = proxy.lose_commit_answer(b"insert into outbox.event")
    answer = server.event()
    assert lost.happened
    assert answer.status == 503
    assert "it is unknown whether the event is stored" in answer.json["detail"]


@pytest.mark.fault(75)
def test_when_a_bisected_batch_loses_its_connection_all_are_decided(
    serving: Callable[..., IngressServer], source: Database, proxy_to: Callable[[str], FaultProxy]
) -> None:
    """Together they are refused; the first half commits and its answer is lost; the second half is still to come."""
    proxy = proxy_to(source.bridge_dsn)
    server = serving(dsn=proxy.dsn)
    assert server.event().status == 202
    lost = proxy.lose_commit_answer(b"insert into outbox.event")
    lines = [
        json.dumps({"payload": EVENT, "idempotency_key": f"k{n}"}).replace("95210", used)
        for n, used in enumerate(["1", "2", "1e200000", "4"])
    ]
    answer = server.event("\n".join(lines).encode(), content_type="application/x-ndjson")
    assert lost.happened
    assert [result["status"] for result in answer.lines] == [200, 200, 422, 202]
    assert source.value("select count(*) from outbox.event where idempotency_key like 'k_'") == 3


@pytest.mark.fault(77)
def test_a_server_that_falls_silent_is_503_in_bounded_time(
    serving: Callable[..., IngressServer],
    source: Database,
    proxy_to: Callable[[str], FaultProxy],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bridge.ingress.writer.WAIT_SECONDS", 0.3)
    monkeypatch.setattr("bridge.ingress.writer.STATEMENT_SECONDS", 1.0)
    proxy = proxy_to(source.bridge_dsn)
    server = serving(dsn=proxy.dsn)
    assert server.event().status == 202
    proxy.blackhole()
    began = time.monotonic()
    assert server.event(idempotency_key="k").status == 503
    assert time.monotonic() - began < 3
    proxy.clear()
    until(lambda: server.event(idempotency_key="k").status in (200, 202), "it takes events again")
    assert source.value("select count(*) from outbox.event where idempotency_key = 'k'") == 1


def test_a_role_without_the_grant_is_told_the_grant(
    serving: Callable[..., IngressServer], source: Database
) -> None:
    source.execute("drop role if exists newcomer; create role newcomer login")
    server = serving(dsn=source.server.dsn(source.name, user="newcomer"))
    until(lambda: server.troubles, "a trouble is told")
    assert server.event().status == 503
    source.typed(str(server.troubles[0].hint))
    until(lambda: server.event().status != 503, "it takes events")
    source.execute("revoke outbox_bridge from newcomer")
    source.execute("revoke insert (payload) on outbox.event from outbox_bridge")
    itself = serving()
    until(lambda: itself.troubles, "a trouble is told")
    assert itself.troubles[0].hint == "bridge install", "a role is no member of itself"


def test_the_queue_is_bounded(
    serving: Callable[..., IngressServer], source: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.ingress.writer.QUEUE_ITEMS", 3)
    server = serving()
    assert server.event().status == 202
    with ThreadPoolExecutor(12) as pool, source.connect() as app, app.transaction():
        app.execute("lock table outbox.event in share mode")
        answers = list(pool.map(lambda n: server.event(idempotency_key=str(n)).status, range(12)))
    assert answers.count(503) >= 8


@pytest.mark.security(12)
@pytest.mark.fault(76)
def test_a_declared_length_over_the_limit_is_413_before_the_body_is_read(ingress: IngressServer) -> None:
    head = HEAD + "content-type: application/json\r\ncontent-length: 1048577\r\n\r\n"
    answer = sent(ingress, head.encode())  # not one byte of the body
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()
    assert b"ingress.max_payload" in answer


@pytest.mark.security(12)
@pytest.mark.fault(76)
def test_a_body_that_grows_past_the_limit_is_413(ingress: IngressServer) -> None:
    chunk = b"%x\r\n%b\r\n" % (65536, b"[" * 65536)
    with closing(socket.create_connection(("127.0.0.1", ingress.port), timeout=20)) as client:
        client.sendall(
            (HEAD + "content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n").encode()
        )
        for _ in range(17):  # one more than 1 MiB has, and no end
            client.sendall(chunk)
        assert client.recv(65536).startswith(b"HTTP/1.1 413 ")
    assert ingress.event().status == 202


@pytest.mark.parametrize("name", ["idempotency-key", "x-outbox-key"])
def test_a_key_that_is_sent_twice_is_400(ingress: IngressServer, source: Database, name: str) -> None:
    head = HEAD + f"content-type: application/json\r\nconnection: close\r\n{name}: a\r\n{name}: b\r\n"
    body = json.dumps(EVENT)
    answer = sent(ingress, f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert f'"field":"{name}"'.encode() in answer
    assert source.value("select count(*) from outbox.event") == 0


@pytest.mark.fault(76)
def test_compressed_bodies_are_not_taken(ingress: IngressServer) -> None:
    bomb = gzip.compress(b"0" * 50_000_000)
    assert len(bomb) < 1 << 20
    answer = request(ingress.port, "POST", PATH, bomb, {**TYPED, "content-encoding": "gzip"})
    assert (answer.status, answer.json["type"]) == (415, "urn:problem-type:outbox-bridge:media-type")
    assert ingress.event(bomb).status == 400  # nor when it does not say so


@pytest.mark.security(12)
@pytest.mark.fault(76)
def test_a_body_that_drips_is_408_and_its_connection_is_closed(
    ingress: IngressServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body, "READ_SECONDS", 0.2)
    head = HEAD + "content-type: application/json\r\ncontent-length: 100\r\n\r\n{"
    assert sent(ingress, head.encode()).startswith(b"HTTP/1.1 408 ")


@pytest.mark.security(12)
@pytest.mark.fault(76)
def test_a_header_that_drips_is_cut_off(ingress: IngressServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.observe.server.HEADER_SECONDS", 0.2)
    assert sent(ingress, HEAD.encode()) == b""


HOOK = b"POST /v1/webhooks/x HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n"


@pytest.mark.security(12)
@pytest.mark.fault(76)
@pytest.mark.parametrize("sends", [b"", HOOK, HOOK + b"\r\n", HOOK + b"\r\n{}       "], ids=len)
def test_whoever_shows_no_key_gives_up_the_place(
    serving: Callable[..., IngressServer], sends: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silent, in the middle of a header, in the middle of a body, and with an answer."""
    monkeypatch.setattr("bridge.observe.server.SLOW_SECONDS", 0.0)
    webhook = "\n  webhooks: { x: { scheme: bearer, secrets: [s], type: a } }"
    server = serving(connections=5, text=CONFIG + webhook)
    assert server.event().status == 202
    with ExitStack() as stack:
        for _ in range(70):
            idle = closing(socket.create_connection(("127.0.0.1", server.port), timeout=20))
            client = stack.enter_context(idle)
            with contextlib.suppress(ConnectionError):  # it may have given up its place by now
                client.sendall(sends)
                if sends.endswith(b" "):
                    assert client.recv(65536).startswith(b"HTTP/1.1 401 ")
        assert server.event().status == 202


@pytest.mark.security(12)
@pytest.mark.fault(76)
def test_when_all_places_are_in_use_the_next_is_told(serving: Callable[..., IngressServer]) -> None:
    server = serving(connections=4)
    head = HEAD + "content-type: application/json\r\ncontent-length: 2\r\n\r\n{"
    with ExitStack() as stack:
        busy = [
            stack.enter_context(closing(socket.create_connection(("127.0.0.1", server.port), timeout=20)))
            for _ in range(3)
        ]
        for client in busy:
            client.sendall(head.encode())
        until(lambda: answers(server) == 503, "the three are being read")
        answer = server.event()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json["type"] == "urn:problem-type:outbox-bridge:unavailable"
        for client in busy:
            client.sendall(b"}")
            assert client.recv(65536).startswith(b"HTTP/1.1 422 ")  # {} breaks the contract
    until(lambda: answers(server) == 202, "it takes events again")


def answers(server: IngressServer) -> int:
    try:
        return server.event().status
    except OSError:
        return 0


@pytest.mark.parametrize("megabytes", [3, 30])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_a_refusal_is_heard_however_much_the_client_sends(
    ingress: IngressServer, megabytes: int, chunked: bool
) -> None:
    """The client sends all of its body before it reads: an answer that it could not read would be a reset."""
    body = b"x" * (megabytes << 20)
    sent_body = (body[at : at + 65536] for at in range(0, len(body), 65536)) if chunked else body
    assert request(ingress.port, "POST", PATH, sent_body, TYPED).status == 413
    for headers, status in (
        ({**TYPED, "authorization": "Bearer wrong"}, 401),
        ({**TYPED, "content-encoding": "gzip"}, 413 if not chunked else 415),
        ({**TYPED, "content-type": "text/plain"}, 413 if not chunked else 415),
    ):
        again = (body[at : at + 65536] for at in range(0, len(body), 65536)) if chunked else body
        answer = request(ingress.port, "POST", PATH, again, headers)
        assert (answer.status, answer.json["status"]) == (status, status)
    assert ingress.event().status == 202


def test_a_request_with_two_lengths_ends_its_connection(ingress: IngressServer, source: Database) -> None:
    """RFC 9112, 6.1 and 6.3: what one reader takes for a second request may be the first one's body for another."""
    typed = HEAD + "content-type: application/json\r\n"
    chunks = "2\r\n{}\r\n0\r\n\r\n"
    second = f"{typed}content-length: 2\r\n\r\n{{}}"
    for first in (
        f"{typed}transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n{chunks}",
        f"{typed}content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n{chunks}",
        f"{typed}transfer-encoding: chunked\r\n\r\n{chunks}".replace("HTTP/1.1", "HTTP/1.0"),
    ):
        answer = sent(ingress, (first + second).encode())
        assert answer.count(b"HTTP/1.1 ") == 1
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"urn:problem-type:outbox-bridge:malformed" in answer
    assert source.value("select count(*) from outbox.event") == 0


@pytest.mark.fault(73)
@pytest.mark.parametrize(
    ("data", "status"),
    [
        ("no HTTP at all\r\n\r\n", 400),
        ("GET /\x01 HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (HEAD + "content-length: -1\r\n\r\n", 400),
        (HEAD + "content-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
        (HEAD + "content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (HEAD + "x: " + "a" * 17_000, 431),
        (HEAD + "transfer-encoding: gzip, chunked\r\n\r\n", 501),
    ],
)
def test_what_is_no_http_is_told_so_as_a_problem(ingress: IngressServer, data: str, status: int) -> None:
    head, _, text = sent(ingress, data.encode()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"content-type: application/problem+json" in head.lower()
    assert f"outbox-bridge-instance: {INSTANCE}".encode() in head.lower()
    problem = json.loads(text)
    assert (problem["type"], problem["status"]) == ("urn:problem-type:outbox-bridge:malformed", status)
    assert ingress.event().status == 202


def test_a_client_that_leaves_in_its_body_harms_nobody(ingress: IngressServer, source: Database) -> None:
    for _ in range(5):
        with closing(socket.create_connection(("127.0.0.1", ingress.port))) as client:
            client.sendall((HEAD + "content-type: application/json\r\ncontent-length: 100\r\n\r\n{").encode())
    until(lambda: sum(ingress.counts.values()) == 5, "five answers are counted")
    assert ingress.event().status == 202
    assert source.value("select count(*) from outbox.event") == 1


@pytest.mark.security(13)
def test_every_route_needs_authentication_unless_it_is_listed(ingress: IngressServer) -> None:
    routes = [route for route in ingress.ingress.app.routes if isinstance(route, Route)]
    assert len(routes) == len(ingress.ingress.app.routes) == 3
    assert frozenset() == PUBLIC_PATHS
    for route in routes:
        path = route.path.replace("{type}", "usage.limit_reached").replace("{name}", "x")
        for method in (route.methods or set()) | {"PUT", "DELETE", "OPTIONS"}:
            if path.startswith("/v1/webhooks/") and method not in (route.methods or set()):
                continue
            answer = ingress.post(path, EVENT, key=None, method=method)
            assert answer.status == 401, (method, path)
    assert ingress.post("/nowhere", b"", key=None, method="GET").status == 401


def test_every_answer_says_which_bridge_gave_it(serving: Callable[..., IngressServer]) -> None:
    ingress, full = serving(), serving(connections=1)  # a request is one too many for the second
    answers = [
        ingress.event(),
        ingress.event(key=None),
        ingress.post("/nowhere", b"", method="GET"),
        full.event(),
    ]
    assert [answer.status for answer in answers] == [202, 401, 404, 503]
    assert {answer.headers["outbox-bridge-instance"] for answer in answers} == {INSTANCE}


def test_many_requests_share_a_commit(ingress: IngressServer, source: Database) -> None:
    with ThreadPoolExecutor(24) as pool:
        assert {answer.status for answer in pool.map(lambda _: ingress.event(), range(240))} == {202}
    transactions = source.value("select count(distinct xid) from outbox.event")
    assert transactions == ingress.ingress.writers["source"].commits < 240


def test_no_value_of_a_request_is_logged(ingress: IngressServer, capfd: pytest.CaptureFixture[str]) -> None:
    canary = "canary-7f3a"
    ingress.event({**EVENT, "metric": canary, canary: 1})
    ingress.event(json.dumps({**EVENT, "plan": canary}).encode().replace(b"95210", b"1e200000"))
    ingress.event(key=canary)
    ingress.event(f'{{"{canary}'.encode())
    answers_ = [ingress.event({**EVENT, "metric": canary}), ingress.event(f'{{"a": {canary}}}'.encode())]
    assert all(canary not in answer.body.decode() for answer in answers_)
    assert canary not in "".join(capfd.readouterr())
