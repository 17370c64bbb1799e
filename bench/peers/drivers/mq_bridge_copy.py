"""mq-bridge: a route of its own endpoints, all in Rust: a plain copy of the outbox's rows."""

from __future__ import annotations

import os

from mq_bridge_route import run

run(
    "copy",
    {"sqlx": {"url": os.environ["TARGET_URL"], "table": "outbox.event", "columns": "auto", "key": "id"}},
)
