"""A running bridge, the demo's events, and what came of them: for the tests of the commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.bridge_process import BridgeProcess
from tests.support.servers import Database
from tests.support.world import World


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
