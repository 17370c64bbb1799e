"""What planning costs: microseconds an event, no database. `python -m bench.planner [events]`."""

from __future__ import annotations

import sys
from time import perf_counter

import orjson

from bridge.planning.plan import Column, TableShape, arrange
from bridge.planning.planner import Planner, answered
from bridge.planning.spec import (
    BranchSpec,
    ContractSpec,
    EnrichSpec,
    FieldSpec,
    FilterSpec,
    PipelineSpec,
    SetSpec,
    TableSpec,
)
from bridge.protocol.events import Event

CONTRACT = ContractSpec(
    "usage.limit_reached",
    (
        FieldSpec("customer_id"),
        FieldSpec("metric", enum=("seats", "api-calls", "storage")),
        FieldSpec("limit", "number"),
        FieldSpec("used", "number"),
        FieldSpec("plan"),
    ),
)
COLUMNS = {
    "event_id": "$meta.id",
    "occurred_at": "$meta.occurred_at",
    "customer_id": "$event.customer_id",
    "metric": "$event.metric",
    "used": "$event.used",
    "limit_value": "$event.limit",
    "plan": "$event.plan",
    "mrr": "$customer.mrr",
    "csm": "$customer.csm",
    "payload": "$event",
}
KINDS = {"payload": ("jsonb", "json"), "used": ("numeric", "other"), "limit_value": ("numeric", "other")}
SHAPE = TableShape(
    "events",
    "usage_limits",
    {name: Column(name, *KINDS.get(name, ("text", "text"))) for name in COLUMNS},  # type: ignore[arg-type]
)
ENRICH = EnrichSpec("customer", "$event.customer_id", "source", "select ...")
TABLE = TableSpec("events", "warehouse", "events", "usage_limits", "upsert", ("event_id",), None, COLUMNS)


def events(count: int) -> list[Event]:
    """Payloads of about 350 bytes as jsonb prints them."""
    made = []
    for n in range(count):
        payload = {
            "customer_id": f"cus_{n % 500}",
            "metric": "api-calls",
            "limit": 100000,
            "used": 95210 + n,
            "plan": "pro",
            "note": "x" * 180,
            "tags": ["a", "b", "c"],
            "region": "eu-central-1",
        }
        text = orjson.dumps(payload).replace(b'":', b'": ').replace(b',"', b', "')
        made.append(
            Event(
                b"0190f1c2-0000-7000-8000-%012d" % n,
                b"%d" % n,
                b"%d" % (700 + n),
                b"usage.limit_reached",
                None,
                text,
                None,
                None,
                b"2026-11-23 05:00:00.123456+00",
            )
        )
    return made


def run(planner: Planner, batch: list[Event], rows: dict[str, dict[str, object]]) -> float:
    """Seconds for one batch, planned and arranged."""
    began = perf_counter()
    arrange(answered(planner.plan(batch), lambda _lookup: rows).writes)
    return perf_counter() - began


def main() -> None:
    """Print the median of several runs for two pipelines."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    batch = events(count)
    rows: dict[str, dict[str, object]] = {
        f"cus_{n}": {"customer_id": f"cus_{n}", "mrr": 1490 + n, "csm": "ada"} for n in range(500)
    }
    filtered = (
        ENRICH,
        FilterSpec("$event.used > 0"),
        SetSpec({"ratio": "$event.used / $event.limit"}),
    )
    branches = (
        BranchSpec("blocked", "$event.used >= $event.limit", ("events",)),
        BranchSpec("nudge", "$event.metric in ['api-calls', 'storage'] and $ratio >= 0.9", ("events",)),
        BranchSpec("rest", None, ()),
    )
    for name, steps, ways in (
        ("contract of 5 fields, enrichment, 10 columns", (ENRICH,), None),
        ("and a filter, a ratio, two branches", filtered, branches),
    ):
        spec = PipelineSpec("usage", ("usage.*",), steps, ways, {"events": TABLE})
        planner = Planner([spec], {CONTRACT.event: CONTRACT}, {("usage", "events"): SHAPE})
        took = sorted(run(planner, batch, rows) for _ in range(31))
        print(f"{took[15] / count * 1e6:6.2f} us/event (best {took[0] / count * 1e6:.2f})  {name}")


if __name__ == "__main__":
    main()
