"""What an event costs the bridge's own process: decode, plan, encode; no server. `python -m bench.hot_path`.

Apart from the drains because it is steady on a busy machine: it counts this process's CPU time only, over
the messages that a walsender would send for the benchmark's backlog.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from itertools import chain
from pathlib import Path
from struct import pack
from time import process_time
from typing import Any

from bridge.config.load import load
from bridge.config.specs import contract_specs, pipeline_specs
from bridge.expressions.server_text import Date
from bridge.planning.plan import Column, TableShape
from bridge.planning.planner import Planner, answered
from bridge.protocol.events import Batch, Event
from bridge.serving import quiet_collector
from bridge.stream.decode import Decoder
from bridge.stream.planned import PlannedBatch, encode

_KINDS = {
    "event_id": ("uuid", "other"),
    "limit": ("numeric", "other"),
    "used": ("numeric", "other"),
    "mrr": ("numeric", "other"),
    "renewal": ("date", "other"),
    "payload": ("jsonb", "json"),
}
_TYPES = {"id": 2950, "seq": 20, "xid": 5069, "payload": 3802, "headers": 3802, "occurred_at": 1184}
_COLUMNS = {name: name for name in Event._fields}


def messages(events: int, rows: int, *, note: int = 150) -> Iterator[bytes]:
    """CopyData messages of transactions of `rows` events, protocol version 1, text. note: bytes of a value."""
    yield _data(
        b"R" + pack("!I", 16400) + b"outbox\0event\0d" + pack("!H", len(_COLUMNS))
        + b"".join(b"\0" + name.encode() + b"\0" + pack("!Ii", _TYPES.get(name, 25), -1) for name in Event._fields)
    )  # fmt: skip
    for first in range(0, events, rows):
        lsn = 1 << 33 | first * 512
        yield _data(b"B" + pack("!QQI", lsn, 8 * 10**14 + first, 700 + first))
        for n in range(first, min(events, first + rows)):
            yield _data(
                b"I" + pack("!I", 16400) + b"N" + pack("!H", len(_COLUMNS)) + _row(n, 700 + first, note)
            )
        yield _data(b"C" + pack("!BQQQ", 0, lsn, lsn + 48, 8 * 10**14 + first))


def _data(message: bytes) -> bytes:
    return b"w" + bytes(24) + message


def _row(n: int, xid: int, note: int) -> bytes:
    metric = (b"seats", b"api-calls", b"storage")[n % 3]
    payload = (
        b'{"note": "%b", "plan": "pro", "tags": ["billing", "limit"], "used": %d, "limit": 100000, '
        b'"metric": "%b", "region": "eu-central-1", "workspace": "ws_%d", "customer_id": "cus_%d"}'
    ) % (b"n" * note, 90000 + n % 20000, metric, n % 9973, 1 + n % 500)
    values = (
        b"0190f1c2-0000-7000-8000-%012d" % n,
        b"%d" % (n + 1),
        b"%d" % xid,
        b"usage.limit_reached",
        None,
        payload,
        None,
        None,
        b"2026-11-23 05:00:00.123456+00",
    )
    return b"".join(b"n" if value is None else b"t" + pack("!I", len(value)) + value for value in values)


def planner() -> Planner:
    """Of the demo's bridge.yaml."""
    environment = {"SOURCE_DSN": "service=a", "WAREHOUSE_DSN": "service=b"}
    config = load(Path("bridge/demo/bridge.yaml"), environment)
    pipelines = pipeline_specs(config)
    (spec,) = (table for pipeline in pipelines for table in pipeline.destinations.values())
    columns = {name: Column(name, *_KINDS.get(name, ("text", "text"))) for name in spec.columns}  # type: ignore
    shape = TableShape("events", "usage_limits", columns)
    return Planner(pipelines, contract_specs(config), {(pipelines[0].name, "events"): shape})


def customers() -> dict[str, dict[str, Any]]:
    """What the lookup finds."""
    found = {"mrr": Decimal("1490.50"), "csm": "ada", "renewal": Date("2027-01-01")}
    return {f"cus_{n}": {"customer_id": f"cus_{n}", **found} for n in range(1, 501)}


def decode(parts: list[list[bytes]]) -> Iterator[Batch]:
    """All batches, through the decoder as the replication stream feeds it: what has come is taken after each part."""
    decoder = Decoder("outbox", "event", _COLUMNS)
    decoder.at_most(2000)  # as after the first batch
    for data in parts:
        for at in range(0, len(data), 100):
            decoder.feed(data[at : at + 100])
            while decoder.ready:
                yield decoder.ready.popleft()
        if (last := decoder.take()) is not None:
            yield last


def prepare(plans: Planner, batch: Batch, customers: dict[str, dict[str, Any]]) -> PlannedBatch:
    """A batch's statements, every lookup answered from `customers`."""
    return encode("stream", batch, answered(plans.plan(batch.events), lambda _lookup: customers))


def timed(work: Callable[[], Any], events: int, rounds: int = 9) -> float:
    """Microseconds of CPU an event, the least of some rounds."""
    least = float("inf")
    for _ in range(rounds):
        gc.collect()
        began = process_time()
        work()
        least = min(least, process_time() - began)
    return least / events * 1e6


def main() -> None:
    """Print both kinds of backlog."""
    events = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    known = customers()
    quiet_collector()
    plans = planner()
    for rows in (1, 1000):
        data = list(chain(messages(events, rows)))
        batches = list(decode([data]))
        decoding = timed(lambda data=data: list(decode([data])), events)  # type: ignore[misc]
        preparing = timed(lambda some=batches: [prepare(plans, b, known) for b in some], events)  # type: ignore
        print(f"{rows:5} rows a transaction: decode {decoding:.2f}, plan and encode {preparing:.2f} us/event")


if __name__ == "__main__":
    main()
