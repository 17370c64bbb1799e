"""What `bridge doctor` says of a nats connection and its destinations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bridge.bus.settings import BusSettings
from tests.integration.bus.conftest import Log, publishing
from tests.support.nats import permissions
from tests.support.servers import free_port
from tests.support.world import World


def found(world: World, code: int = 0) -> dict[str, dict[str, Any]]:
    """The checks of the connection, by name."""
    checks = world.json("doctor", code=code)["checks"]
    return {one["check"]: one for one in checks if one["where"] == "bus"}


def test_a_sound_connection_is_told_with_its_stream(world: World, log: Log) -> None:
    log.stream(max_age=3600)
    publishing(world, log.node.url)
    world.applied_some()
    checks = found(world)
    assert {one["level"] for one in checks.values()} == {"ok"}
    assert "nats-server 2." in checks["reach"]["message"]
    assert "without a login, without TLS" in checks["reach"]["message"]
    assert "stream USAGE, 1 replicas, max_age 3600 s" in checks["stream"]["message"]


@pytest.mark.slow
def test_an_unreachable_server_is_exit_3(world: World) -> None:
    publishing(world, f"nats://127.0.0.1:{free_port()}")
    checks = found(world, code=3)
    assert "nothing listens there" in checks["reach"]["message"]
    assert "nats-server -c FILE" in checks["reach"]["fix"]


def test_a_missing_stream_is_told_with_the_command(world: World, log: Log) -> None:
    publishing(world, log.node.url, {"subject": "usage.{{ event.metric }}"})
    check = found(world, code=1)["nats_stream"]
    assert "no JetStream stream takes usage.>" in check["message"]
    assert check["fix"] == 'nats stream add USAGE --subjects "usage.>" --storage file --replicas 1 --defaults'


@pytest.mark.slow
def test_jetstream_that_is_off_is_told(world: World, log_with: Callable[..., Log]) -> None:
    log = log_with(jetstream=False)
    publishing(world, log.node.url)
    assert "JetStream is not enabled" in found(world, code=1)["bus_refused"]["message"]


def test_a_subject_that_the_user_may_not_publish_is_told(world: World, log_with: Callable[..., Log]) -> None:
    allowed = permissions(
        "relay", "secret", ["orders.>", "$JS.API.>", "$SYS.REQ.USER.INFO"], ["_INBOX.outbox_bridge.>"]
    )
    log = log_with(
        authorization=allowed,
        settings=lambda node: BusSettings("test", (node.url,), user="relay", password="secret"),
    )
    log.stream()
    publishing(world, log.node.url, user="relay", password="secret")
    checks = found(world, code=1)
    assert "user relay may not publish to usage.reached" in checks["bus_refused"]["message"]
    assert checks["stream"]["level"] == "ok"
    assert "as user relay" in checks["reach"]["message"]


@pytest.mark.slow
def test_a_wrong_password_is_told_without_it(world: World, log_with: Callable[..., Log]) -> None:
    log = log_with(
        authorization='user: relay, password: "right"',
        settings=lambda node: BusSettings("test", (node.url,), user="relay", password="right"),
    )
    publishing(world, log.node.url, user="relay", password="wrong-one")
    said = world.run("doctor")
    assert said.returncode == 3
    assert "does not take the password of user relay" in said.stdout
    assert "wrong-one" not in said.stdout + said.stderr


def test_streams_that_lose_messages_are_warned_of(world: World, log: Log) -> None:
    log.stream(retention="interest", duplicate_window=1)
    publishing(world, log.node.url)
    checks = found(world)
    assert checks["nats_interest"]["level"] == "warn"
    assert checks["nats_window"]["fix"] == "nats stream edit USAGE --dupe-window 2m"
