"""The ingress of `bridge run`: its events reach the table, and what happens to it leaves the stream alone."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.integration.ingress.serving import EVENT, Answer, request
from tests.support.bridge_process import DEFAULT_CONFIG, BridgeProcess
from tests.support.servers import Database, free_port
from tests.support.truth import settle

INGRESS = """
ingress:
  listen: 127.0.0.1:{port}
  api_keys: ["${{file:api.key}}"]
  max_connections: 50
"""
ARRIVED = "from events.usage_limits where customer_id = 'cus_1'"


class Bridge:
    """`bridge run` with an ingress, and its key in a file."""

    def __init__(self, process: BridgeProcess, port: int, key_file: Path) -> None:
        self.process, self.port, self.key_file = process, port, key_file

    def event(self, n: int, *, key: str = "first-key", **headers: str) -> Answer:
        sent = {"authorization": f"Bearer {key}", "content-type": "application/json", **headers}
        body = json.dumps({**EVENT, "used": n}).encode()
        return request(self.port, "POST", "/v1/events/usage.limit_reached", body, sent)

    def metric(self, name: str) -> dict[str, float]:
        """Samples of outbox_bridge_<name> by their labels as written."""
        lines = self.process.get("/metrics")[1].splitlines()
        found = (line.removeprefix(f"outbox_bridge_{name}").rsplit(" ", 1) for line in lines if name in line)
        return {labels: float(value) for labels, value in found if labels.startswith("{")}


@pytest.fixture
def bridge(
    source: Database, target: Database, tmp_path: Path, bridge_process: Callable[..., BridgeProcess]
) -> Iterator[Bridge]:
    port = free_port()
    key_file = tmp_path / "api.key"
    key_file.write_text("first-key\n")
    config = tmp_path / "bridge.yaml"
    config.write_text(DEFAULT_CONFIG.read_text() + INGRESS.format(port=port))
    process = bridge_process(source=source.bridge_dsn, target=target.bridge_dsn, config=config)
    process.start().wait_ready()
    yield Bridge(process, port, key_file)
    assert process.terminate() == 0, process.log_tail()


def test_what_comes_in_reaches_the_table_and_is_counted(
    bridge: Bridge, source: Database, target: Database
) -> None:
    answers = [bridge.event(n, **{"idempotency-key": f"k{n % 5}"}) for n in range(10)]
    assert [answer.status for answer in answers] == [202] * 5 + [200] * 5
    settle(source.dsn, target.dsn)
    arrived = target.execute(f"select event_id::text, used {ARRIVED} order by used")
    assert arrived == [(answer.json["id"], n) for n, answer in enumerate(answers[:5])]
    counted = bridge.metric("ingress_requests_total")
    assert counted == {'{code="202",endpoint="events"}': 5, '{code="200",endpoint="events"}': 5}


def test_sighup_rotates_the_keys_without_a_restart(bridge: Bridge) -> None:
    assert bridge.event(1).status == 202
    bridge.key_file.write_text("second-key\n")
    seen = len(bridge.process.lines)
    bridge.process.signal(signal.SIGHUP)
    bridge.process.wait_log("reloaded", since=seen)
    assert bridge.event(2).status == 401
    assert bridge.event(3, key="second-key").status == 202


@pytest.mark.fault(76)
def test_idle_dripping_and_refused_connections_leave_the_stream_alone(
    bridge: Bridge, source: Database, target: Database
) -> None:
    began = time.monotonic()
    with ExitStack() as stack:
        idle = [
            stack.enter_context(closing(socket.create_connection(("127.0.0.1", bridge.port), timeout=10)))
            for _ in range(1000)
        ]
        for number, connection in enumerate(idle[:40]):
            drip = b"POST /v1/events/x HTTP/1.1\r\nhost: x\r\n"
            connection.sendall(drip if number % 2 else drip + b"content-length: 9\r\n\r\n{")
        for n in range(20):
            source.execute(
                "select outbox.emit('usage.limit_reached', %s)", [json.dumps({**EVENT, "used": n})]
            )
        settle(source.dsn, target.dsn)
        assert target.value(f"select count(*) {ARRIVED}") == 20
        assert bridge.process.get("/readyz")[0] == 200
        statuses = {connection.recv(1)[:1] for connection in idle[-50:]}
        assert statuses == {b""}  # over the cap: closed unread
    assert time.monotonic() - began < 20
    until = time.monotonic() + 20
    while bridge_answers(bridge) != 202:
        assert time.monotonic() < until, "the ingress does not come back"


def bridge_answers(bridge: Bridge) -> int:
    try:
        return bridge.event(99).status
    except OSError:
        return 0
