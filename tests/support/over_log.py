"""A world whose events go over a log: one nats-server, and `scale.log` in its bridge.yaml."""

from __future__ import annotations

from typing import Any

from tests.support.bridge_process import BridgeProcess
from tests.support.nats import NatsNode
from tests.support.world import World


def over_log(world: World, node: NatsNode, partitions: int = 3, **connection: Any) -> None:
    """The world's configuration, over this log. connection: more keys of the connection `bus`."""

    def change(document: dict[str, Any]) -> None:
        document["scale"] = {"log": "bus", "partitions": partitions, "log_size": "64MiB"}
        document["connections"]["bus"] = {"type": "nats", "servers": [node.url], **connection}

    world.configure(change)


def without_log(world: World) -> None:
    """As it was."""

    def change(document: dict[str, Any]) -> None:
        document.pop("scale", None)
        document["connections"].pop("bus", None)

    world.configure(change)


def part(world: World, verb: str, **options: Any) -> BridgeProcess:
    """`bridge relay` or `bridge worker`, started."""
    made = world.bridge(**options)
    made.verb = verb
    return made.start()
