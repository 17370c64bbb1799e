"""A port that another program has is waited for, and the bridge works meanwhile."""

from __future__ import annotations

import re
import signal
import socket

from tests.integration.ops.conftest import emit, rows, usage
from tests.support.debian import at_hand
from tests.support.servers import Database, free_port
from tests.support.world import Document, World, until


def test_ports_that_are_taken_are_waited_for_and_told_once(
    world: World, source: Database, target: Database
) -> None:
    port = free_port()

    def more(document: Document) -> None:
        document["ingress"] = {"listen": f"127.0.0.1:{port}", "api_keys": ["key"]}

    world.configure(more)
    bridge = world.bridge()
    with (
        socket.create_server(("127.0.0.1", bridge.port), reuse_port=False),
        socket.create_server(("127.0.0.1", port), reuse_port=False),
    ):
        bridge.start()
        bridge.wait_log('"phase":"streaming"')
        emit(source, usage())
        until(lambda: rows(target) == 1, "the stream works")
        state = world.json("status", code=1)  # by the socket: the port is another program's
        assert {(one["where"], one["reason"]) for one in state["problems"]} == {
            ("admin.listen", "port_in_use"),
            ("ingress.listen", "port_in_use"),
        }
        busy = re.findall(r"ss -ltnp 'sport = :\d+'", state["problems"][0]["hint"])
        at_hand(world, "ss", "iproute2")
        assert str(bridge.port) in world.typed(busy[0])
    bridge.wait_ready()
    until(lambda: _listens(port), "the ingress listens")
    assert sum("waiting for a port" in line for line in bridge.lines) == 2
    assert bridge.terminate() == 0


def _listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def test_a_second_bridge_stands_by_and_takes_over_port_and_stream(
    world: World, source: Database, target: Database
) -> None:
    first, second = world.bridge(), world.bridge()
    second.port, second.admin = first.port, first.admin
    second.environment = {**second.environment, "BRIDGE_ADMIN": first.admin}
    first.start().wait_ready()
    second.start()
    second.wait_log('"phase":"standby"')
    assert second.running
    state = world.json("status")
    assert (state["pid"], len(state["others"])) == (first.pid, 1)
    first.signal(signal.SIGKILL)
    emit(source, usage())
    until(lambda: rows(target) == 1, "the second one applies")
    second.wait_ready()
    assert second.terminate() == 0
