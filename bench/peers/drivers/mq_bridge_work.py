"""mq-bridge: a route from its endpoint in Rust to one in Python, which gets batches of up to 2,000 changes as JSON: the
statement takes them as they are."""

from __future__ import annotations

from typing import Any

import mq_bridge
from mq_bridge_route import run
from target import STATEMENT, connect


class Upsert:
    """An output; the batch is acknowledged to the source when this returns."""

    def __init__(self) -> None:
        self._target = connect()

    def send_batch(self, messages: list[Any]) -> None:
        """One statement, committed."""
        batch = b"[" + b",".join(message.payload for message in messages) + b"]"
        self._target.execute(STATEMENT, [batch.decode()], prepare=True)


mq_bridge.register_endpoint("upsert", lambda _route, _config: Upsert())
run("work", {"upsert": {}})
