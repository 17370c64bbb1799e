"""`bridge schema log`: with exactly what it prints, relay and worker work; a worker cannot write the log."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bridge.bus.connection import Bus
from bridge.bus.settings import BusSettings
from bridge.errors import BridgeError
from tests.support.nats import NatsNode
from tests.support.over_log import over_log, part
from tests.support.world import World, until

pytestmark = [pytest.mark.timeout(180), pytest.mark.security(21)]


def printed(world: World) -> dict[str, str]:
    """User -> its permissions, as printed."""
    told = world.command("schema", "log")
    return {
        name: text.strip()
        for name, text in re.findall(r"^# (\w+)\n(permissions: \{.*?^\})", told, re.M | re.S)
    }


def test_relay_and_worker_need_no_more_than_is_printed(world: World, tmp_path: Path) -> None:
    node = NatsNode(tmp_path)
    over_log(world, node, user="${NATS_USER:-worker}", password="secret")
    permissions = printed(world)
    users = ", ".join(f"{{ user: {name}, password: secret, {text} }}" for name, text in permissions.items())
    node.options.authorization = f"users: [ {users} ]"
    with node, world.producer() as producer:
        relay = part(world, "relay", NATS_USER="relay")
        worker = part(world, "worker", NATS_USER="worker")
        producer.transaction(20)
        for process in (relay, worker):
            process.wait_ready(deadline=60)
        world.caught_up()
        until(
            lambda: world.target.value("select bool_and(mode = 'stream') from bridge.checkpoint") is True,
            "all stream",
        )
        bus = Bus(BusSettings("bus", (node.url,), user="relay", password="secret"), "test")
        bus.connect()
        bus.call(lambda js: js.purge_stream("outbox_bridge_bus"), doing="purge it")  # the relay may
        bus.close()
        producer.transaction(20)
        world.caught_up(deadline=60)
        assert "Permissions Violation" not in node.log, json.dumps(permissions)
        world.law()
        bus = Bus(BusSettings("bus", (node.url,), user="worker", password="secret"), "test")
        bus.connect()
        with pytest.raises(BridgeError, match=r"may not publish to outbox_bridge_bus\.frames\.1"):
            bus.call(
                lambda js: js.publish("outbox_bridge_bus.frames.1", b"x"),
                doing="publish",
                subject="outbox_bridge_bus.frames.1",
            )
        bus.close()


def test_without_a_log_there_are_no_permissions_to_print(world: World) -> None:
    assert "scale" in world.run("schema", "log").stderr
