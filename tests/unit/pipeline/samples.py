"""The demo's pipeline and its events, for tests of planning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from bridge.planning.plan import Column, ColumnKind, Lookup, Planned, TableShape, Write
from bridge.planning.planner import Planner, answered
from bridge.planning.spec import (
    BranchSpec,
    ContractSpec,
    DestinationSpec,
    EnrichSpec,
    FieldSpec,
    PipelineSpec,
    SinkSpec,
    StepSpec,
    TableSpec,
)
from bridge.planning.steps import Answer
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
CUSTOMER = EnrichSpec("customer", "$event.customer_id", "source", "select 1")
BRANCHES = (
    BranchSpec("blocked", "$event.used >= $event.limit", ("events", "nudge")),
    BranchSpec(
        "nudge",
        "$event.metric in ['api-calls', 'storage'] and $event.used / $event.limit >= 0.9",
        ("events",),
    ),
    BranchSpec("rest", None, ()),
)
COLUMNS = {
    "event_id": "$meta.id",
    "customer_id": "$event.customer_id",
    "used": "$event.used",
    "mrr": "$customer.mrr",
    "csm": "$customer.csm",
    "payload": "$event",
}
EVENTS = TableSpec("events", "warehouse", "events", "usage_limits", "upsert", ("event_id",), None, COLUMNS)
NUDGE = SinkSpec("nudge", "csm", "slack", {"text": "{{ customer.csm }}: {{ event.customer_id }}"})

USAGE: dict[str, Any] = {
    "customer_id": "cus_1",
    "metric": "api-calls",
    "limit": 100000,
    "used": 95210,
    "plan": "pro",
}


def shape(**kinds: ColumnKind | Column) -> TableShape:
    """A table whose columns are named by keyword."""
    sql: dict[str, str] = {
        "json": "jsonb",
        "array": "text[]",
        "bytea": "bytea",
        "other": "numeric",
        "text": "text",
    }
    return TableShape(
        "events",
        "usage_limits",
        {
            name: kind if isinstance(kind, Column) else Column(name, sql[kind], kind)
            for name, kind in kinds.items()
        },
    )


SHAPE = shape(
    event_id="text", customer_id="text", used="other", mrr="other", csm="text", payload="json", plan="text"
)


def event(payload: Any, number: int = 1, **fields: Any) -> Event:
    """An outbox row; a payload of bytes is taken as it is."""
    text = payload if isinstance(payload, bytes) else orjson.dumps(payload)
    row = Event(
        b"00000000-0000-7000-8000-%012d" % number,
        b"%d" % number,
        b"%d" % (700 + number),
        b"usage.limit_reached",
        None,
        text,
        None,
        None,
        b"2026-11-23 05:00:00+00",
    )
    return row._replace(**fields)


def pipeline(
    *steps: StepSpec,
    branches: tuple[BranchSpec, ...] | None = None,
    name: str = "usage",
    events: tuple[str, ...] = ("usage.*",),
    destinations: Sequence[DestinationSpec] = (EVENTS,),
) -> PipelineSpec:
    """A pipeline with the usual destination."""
    return PipelineSpec(name, events, steps, branches, {d.name: d for d in destinations})


def planner(
    *pipelines: PipelineSpec, contract: bool = True, table: TableShape = SHAPE, **more: Any
) -> Planner:
    """A planner that owns every destination."""
    tables = {
        (p.name, d.name): table
        for p in pipelines
        for d in p.destinations.values()
        if isinstance(d, TableSpec)
    }
    more.setdefault(
        "sinks",
        [(p.name, d.name) for p in pipelines for d in p.destinations.values() if isinstance(d, SinkSpec)],
    )
    return Planner(pipelines, {CONTRACT.event: CONTRACT} if contract else {}, tables, **more)


def plan(
    who: Planner, events: Sequence[Event], rows: Mapping[Any, Mapping[str, Any]] | None = None
) -> tuple[Planned, list[Lookup]]:
    """Run the planner, answering every lookup from `rows`; gives the plan and the lookups it asked for."""
    lookups: list[Lookup] = []

    def answer(lookup: Lookup) -> Answer:
        lookups.append(lookup)
        return {key: rows[key] for key in lookup.keys if rows and key in rows}

    return answered(who.plan(events), answer), lookups


def records(write: Write) -> list[dict[str, bytes | None]]:
    """A write's rows as name -> text."""
    return [dict(zip(write.names, row, strict=True)) for row in zip(*write.columns, strict=True)]
