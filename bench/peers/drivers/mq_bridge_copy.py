"""mq-bridge: a route of its own endpoints, all in Rust: a plain copy of the outbox's rows."""

from __future__ import annotations

import os

import mq_bridge

mq_bridge.Route.from_config(
    {
        "input": {
            "postgres_cdc": {
                "url": os.environ["SOURCE_URL"],
                "publication": os.environ["PUBLICATION"],
                "slot_name": os.environ["SLOT"],
                "create_slot": False,
                "checkpoint_store": f"file://{os.environ['STATE']}/checkpoint.json",
            }
        },
        "output": {
            "sqlx": {
                "url": os.environ["TARGET_URL"],
                "table": "outbox.event",
                "columns": "auto",
                "key": "id",
            }
        },
        "batch_size": 2000,
    },
    "copy",
).run()
