"""mq-bridge's input, the same for each of its routes: the outbox, through a replication slot."""

from __future__ import annotations

import os
from typing import Any

import mq_bridge


def run(name: str, output: dict[str, Any]) -> None:
    """Carry batches of up to 2,000 changes to this output until the process ends."""
    source = {
        "url": os.environ["SOURCE_URL"],
        "publication": os.environ["PUBLICATION"],
        "slot_name": os.environ["SLOT"],
        "create_slot": False,
        # each acknowledgement durable: its documentation's remedy against repeats after a kill
        "checkpoint_store": f"file://{os.environ['STATE']}/checkpoint.json",
    }
    route = {"input": {"postgres_cdc": source}, "output": output, "batch_size": 2000}
    mq_bridge.Route.from_config(route, name).run()
