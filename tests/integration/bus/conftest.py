"""A NATS server, and a bridge that publishes to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bridge.bus.connection import Bus
from bridge.bus.settings import BusSettings
from bridge.errors import Retry
from tests.support.nats import NatsNode, NatsOptions
from tests.support.world import World, until

TYPE = "usage.limit_reached"


@dataclass(frozen=True, slots=True)
class Stored:
    """A message of a stream."""

    seq: int
    subject: str
    headers: Mapping[str, str]
    data: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def identity(self) -> str:
        return self.headers["Nats-Msg-Id"]


class Log:
    """A node, and a connection of the test's own to it."""

    def __init__(self, node: NatsNode, settings: BusSettings | None = None) -> None:
        self.node = node
        self.bus = Bus(settings or BusSettings("test", (node.url,)), "test")
        self.bus.connect()

    def stream(self, name: str = "USAGE", subjects: tuple[str, ...] = ("usage.>",), **limits: Any) -> None:
        """A cluster that has just elected its leader may leave a request without an answer."""

        def made() -> bool:
            try:
                self.bus.call(
                    lambda js: js.add_stream(name=name, subjects=list(subjects), **limits),
                    doing="make a stream",
                    timeout=5,
                )
            except Retry:
                return False
            return True

        until(made, f"stream {name} is made", 60)

    def count(self, name: str = "USAGE") -> int:
        return int(self.bus.call(lambda js: js.stream_info(name), doing="count").state.messages)

    def messages(self, name: str = "USAGE") -> list[Stored]:
        """All that a stream has, in its order."""

        async def read(js: Any) -> list[Stored]:
            info = await js.stream_info(name)
            found = []
            for seq in range(max(1, info.state.first_seq), info.state.last_seq + 1):
                message = await js.get_msg(name, seq)
                found.append(Stored(seq, message.subject, message.headers or {}, message.data or b""))
            return found

        return self.bus.call(read, doing="read", timeout=60)

    def close(self) -> None:
        self.bus.close()


@pytest.fixture
def log_with(tmp_path: Path) -> Iterator[Callable[..., Log]]:
    """Makes a server with these options and a connection to it."""
    made: list[Log] = []
    nodes: list[NatsNode] = []

    def make(**options: Any) -> Log:
        settings = options.pop("settings", None)
        node = NatsNode(tmp_path / "nats", NatsOptions(**options), name=f"n{len(nodes)}")
        nodes.append(node)
        node.start()
        made.append(Log(node, settings(node) if settings else None))
        return made[-1]

    yield make
    for log in made:
        log.close()
    for node in nodes:
        node.thaw_and_kill()


@pytest.fixture
def log(log_with: Callable[..., Log]) -> Log:
    return log_with()


def publishing(
    world: World,
    url: str,
    destination: Mapping[str, Any] | None = None,
    *,
    table: bool = True,
    **connection: Any,
) -> None:
    """Add a nats destination to the world's pipeline; table: beside its table."""

    def change(document: dict[str, Any]) -> None:
        document["connections"]["bus"] = {"type": "nats", "servers": url, **connection}
        document.pop("tests", None)
        (pipeline,) = [one for one in document["pipelines"].values() if TYPE in one["event"]]
        pipeline.pop("branches", None)
        kept = {name: one for name, one in pipeline["destinations"].items() if table and "table" in one}
        pipeline["destinations"] = {
            **kept,
            "log": {"connection": "bus", "subject": "usage.reached", **(destination or {})},
        }

    world.configure(change)
