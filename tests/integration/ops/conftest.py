"""A running bridge, the demo's events, and what came of them: for the tests of the commands."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support.bridge_process import BridgeProcess
from tests.support.servers import Database
from tests.support.world import World


@contextmanager
def speaking(answer: Callable[[socket.socket], None], host: str = "127.0.0.1") -> Iterator[int]:
    """A port whose every connection is given to `answer`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:

        def serve() -> None:
            while True:
                try:
                    link, _ = server.accept()
                except OSError:
                    return
                with link:
                    answer(link)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join(10)


@pytest.fixture
def bridge(world: World) -> Callable[[], BridgeProcess]:
    """Starts `bridge run` with the configuration as it is now; ready when this returns."""
    return lambda: world.bridge().start().wait_ready()


def emit(source: Database, *payloads: dict[str, Any], key: str | None = None) -> list[str]:
    """Events of the demo's type, a transaction each; their ids."""
    return [
        source.value(
            "select outbox.emit('usage.limit_reached', %s::jsonb, key => %s)::text",
            [json.dumps(payload), key],
        )
        for payload in payloads
    ]


def usage(**changes: Any) -> dict[str, Any]:
    """A payload that meets the contract."""
    return {"customer_id": "cus_1", "metric": "seats", "limit": 10, "used": 9, "plan": "pro", **changes}


def letters(target: Database, state: str = "open") -> int:
    return int(target.value("select count(*) from bridge.dead_letter where state = %s", [state]))


def rows(target: Database) -> int:
    return int(target.value("select count(*) from events.usage_limits"))
