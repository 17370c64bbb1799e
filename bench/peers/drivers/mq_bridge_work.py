"""mq-bridge: a route from its endpoint in Rust to one in Python, which gets batches of up to 2,000 changes as JSON: the
statement takes them as they are."""

from __future__ import annotations

import os
from typing import Any

import mq_bridge
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
mq_bridge.Route.from_config(
    {
        "input": {
            "postgres_cdc": {
                "url": os.environ["SOURCE_URL"],
                "publication": os.environ["PUBLICATION"],
                "slot_name": os.environ["SLOT"],
                "create_slot": False,
                # each acknowledgement durable: its documentation's remedy against repeats after a kill
                "checkpoint_store": f"file://{os.environ['STATE']}/checkpoint.json",
            }
        },
        "output": {"upsert": {}},
        "batch_size": 2000,
    },
    "work",
).run()
