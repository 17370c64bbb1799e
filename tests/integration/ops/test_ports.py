"""A port that another program has is waited for, and the bridge works meanwhile. A second bridge of one machine stands
by. How each of them ends, and what systemd does then by deploy/systemd's unit."""

from __future__ import annotations

import configparser
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.ops.conftest import emit, rows, usage
from tests.support.bridge_process import REPOSITORY, BridgeProcess
from tests.support.debian import at_hand
from tests.support.servers import Database, free_port
from tests.support.world import IMPATIENT, Document, World, until


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


UNIT = REPOSITORY / "deploy" / "systemd" / "outbox-bridge.service"


def restarts(code: int) -> bool:
    """Whether systemd starts the unit again after this end (negative: the signal): systemd.service(5), Restart=."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(UNIT)
    service = unit["Service"]
    assert service["Restart"] == "on-failure"
    name = signal.Signals(-code).name if code < 0 else str(code)
    if name in service["RestartPreventExitStatus"].split():
        return False
    if name in service["RestartForceExitStatus"].split():
        return True
    return name not in ("0", "SIGHUP", "SIGINT", "SIGTERM", "SIGPIPE")


def with_ingress(world: World) -> int:
    """The port of an ingress that the configuration has from now on."""
    port = free_port()

    def more(document: Document) -> None:
        document["ingress"] = {"listen": f"127.0.0.1:{port}", "api_keys": ["key"]}

    world.configure(more)
    return port


def problems(world: World, code: int) -> set[tuple[str, str]]:
    """(where, reason) of what `bridge status` says, whose exit code is this."""
    return {(one["where"], one["reason"]) for one in world.json("status", code=code)["problems"]}


@pytest.mark.parametrize("key", ["admin.listen", "ingress.listen"])
def test_each_port_alone_is_waited_for_however_long_it_takes(
    key: str, world: World, source: Database, target: Database
) -> None:
    port = with_ingress(world)
    bridge = world.bridge()
    mine = bridge.port if key == "admin.listen" else port
    with socket.create_server(("127.0.0.1", mine), reuse_port=False):
        bridge.start()
        bridge.wait_log('"phase":"streaming"')
        emit(source, usage())
        until(lambda: rows(target) == 1, "the stream works")
        until(lambda: problems(world, 1) == {(key, "port_in_use")}, "status names the one that is held")
        if key == "ingress.listen":
            assert bridge.get("/livez")[0] == 200
            assert "port_in_use" in bridge.wait_readyz(lambda status, _: status == 503)
        else:
            until(lambda: _listens(port), "the ingress does not wait for the other port")
        code = bridge.terminate()  # while it waits
        assert (code, restarts(code)) == (0, False)
        assert problems(world, 1) == {("bridge", "not_running")}
        bridge.start()
        bridge.wait_log('"phase":"streaming"', since=len(bridge.lines))
        bridge.signal(signal.SIGHUP)  # a reload neither gives it up nor waits for it
        bridge.wait_log('"reloaded"')
        assert bridge.running
    bridge.wait_ready()
    until(lambda: _listens(port) and _listens(bridge.port), "both ports are listened on")
    assert problems(world, 0) == set()
    bridge.wait_log('"the port is free"')
    assert bridge.terminate() == 0


def test_a_port_is_taken_back_after_a_crash_and_another_ends_the_start(world: World) -> None:
    """What is no other program's port is an error of the configuration: nobody frees it."""
    bridge = world.bridge().start().wait_ready()
    bridge.signal(signal.SIGKILL)
    code = bridge.wait()
    assert (code, restarts(code)) == (-signal.SIGKILL, True)
    bridge.start().wait_ready()
    assert bridge.terminate() == 0
    world.configure(
        lambda document: document.update(ingress={"listen": "192.0.2.1:8378", "api_keys": ["key"]})
    )
    code = bridge.start().wait()
    assert (code, restarts(code)) == (2, False)
    assert "choose another address in `ingress.listen`: one that this machine has" in bridge.log_tail()


def test_each_of_two_bridges_is_told_and_ends_as_a_unit_needs_it(
    world: World, source: Database, target: Database
) -> None:
    port = with_ingress(world)
    first, second = world.bridge(options=IMPATIENT), world.bridge(options=IMPATIENT)
    second.port, second.admin = first.port, first.admin
    second.environment = {**second.environment, "BRIDGE_ADMIN": first.admin}
    first.start().wait_ready()
    second.start()
    second.wait_log('"phase":"standby"')

    def told(by: BridgeProcess, *others: BridgeProcess) -> Callable[[], bool]:
        def look() -> bool:
            state = world.json("status")
            return (state["pid"], state["others"]) == (by.pid, [one.pid for one in others])

        return look

    until(told(first, second), "the one that works, and the other")
    assert f"others with this file stand by: pid {second.pid}" in world.command("status")
    # -- the one that stands by is stopped, and started again: nobody else is concerned
    code = second.terminate()
    assert (code, restarts(code)) == (0, False)
    until(told(first), "alone")
    since = len(second.lines)
    second.start()
    second.wait_log('"phase":"standby"', since=since)
    # -- the one that works is stopped: the other has stream and ports
    code = first.terminate()
    assert (code, restarts(code)) == (0, False)
    emit(source, usage())
    until(lambda: rows(target) == 1, "the second one applies")
    second.wait_ready()
    until(lambda: _listens(port), "its ingress listens")
    until(told(second), "alone")
    # -- one that was frozen has lost its stream when it wakes, and stands by
    since = len(first.lines)
    first.start()
    first.wait_log('"phase":"standby"', since=since)
    since = len(first.lines)
    second.pause()
    first.wait_log('"phase":"streaming"', since=since)
    since = len(second.lines)
    second.resume()
    second.wait_log('"phase":"standby"', since=since)
    state = world.json("status", code=1)
    assert (state["pid"], state["others"]) == (first.pid, [second.pid])
    assert problems(world, 1) == {("admin.listen", "port_in_use"), ("ingress.listen", "port_in_use")}
    assert second.terminate() == 0  # it had the ports all the time
    first.wait_ready()
    assert first.terminate() == 0
    assert restarts(1), "one that is fenced (tests/faults/test_bridge_dies.py) comes back and stands by"


def test_status_does_not_take_the_bridge_of_another_configuration_for_this(
    world: World, source: Database, tmp_path: Path
) -> None:
    """Both have the default port, and only one runs: as on a machine with staging and prod."""
    staging = tmp_path / "staging.yaml"
    staging.write_text(world.text.replace("source:\n", "source:\n  slot: staging\n", 1))
    bridge = world.bridge().start().wait_ready()
    assert world.json("status")["ready"]
    prod, world.config = world.config, staging
    assert problems(world, 1) == {("bridge", "not_running")}
    said = world.command("status", code=1)
    assert f"another bridge answers on {bridge.admin}, with another source or slot" in said
    world.config = prod
    assert bridge.terminate() == 0
