"""mq-bridge: its consumer in Rust gives batches of up to 2,000 changes as JSON, which the statement takes as they are;
committed to mq-bridge after the target's commit."""

from __future__ import annotations

import os

import mq_bridge
from target import STATEMENT, connect

target = connect()
consumer = mq_bridge.Consumer.from_config(
    {
        "postgres_cdc": {
            "url": os.environ["SOURCE_URL"],
            "publication": os.environ["PUBLICATION"],
            "slot_name": os.environ["SLOT"],
            "create_slot": False,
            # each acknowledgement durable, as its documentation advises against repeats after a kill
            "checkpoint_store": f"file://{os.environ['STATE']}/checkpoint.json",
        }
    }
)
while True:
    if messages := consumer.poll(max=2000):
        batch = b"[" + b",".join(message.payload for message in messages) + b"]"
        target.execute(STATEMENT, [batch.decode()], prepare=True)
        consumer.commit()
