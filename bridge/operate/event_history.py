"""The history of one event: its pipelines with the values that each condition saw, the row or message that it would
become now, and what the ledgers say became of it. It holds values of the event.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psycopg

    from bridge.config.model import Config
    from bridge.operate.waits import Waits
    from bridge.planning.plan import Owner
    from bridge.protocol.events import Event
    from bridge.stream.spec import StreamSpec

Status = Callable[[], Mapping[str, Any] | None]
"""Asks the running bridge; None: none runs. May raise BridgeError."""


def event_history(config: Config, event_id: str, status: Status) -> dict[str, Any]:
    """`event`, `streams`, and `unmatched` where no pipeline takes its type. Raises BridgeError if no outbox has it."""
    from bridge.config.several import each_source  # noqa: PLC0415
    from bridge.errors import BridgeError  # noqa: PLC0415
    from bridge.operate.connect import connect_source, target_errors  # noqa: PLC0415  (loads psycopg)
    from bridge.plans import outbox_of, stream_plans, types_taken  # noqa: PLC0415
    from bridge.postgres.progress import find  # noqa: PLC0415

    for one in each_source(config):
        with connect_source(one, command="explain", grant="outbox_bridge") as source:
            event = find(source, outbox_of(one), event_id)
        if event is not None:
            plans = stream_plans(one)
            break
    if event is None:
        raise BridgeError(
            f"the outbox has no event {event_id}: it was never committed, or it was pruned",
            hint="bridge tail shows the newest events; a dead letter keeps its event: bridge dead list",
        )
    with target_errors("explain"):
        streams = [_traced(config, plan, event, status) for plan in plans]
    kind = event.type.decode()
    taken = types_taken(config)
    told: dict[str, Any] = {"event": _event(event), "streams": streams}
    if not taken.takes(kind):
        told["unmatched"] = {
            "said": taken.said(kind),
            "near": taken.near(kind),
            "ignored": taken.ignores(kind),
        }
    return told


def _event(event: Event) -> dict[str, Any]:
    from bridge.expressions.filters import moment_text  # noqa: PLC0415

    fields = {name: None if value is None else value.decode() for name, value in event._asdict().items()}
    if fields["occurred_at"] is not None:
        fields["occurred_at"] = moment_text(fields["occurred_at"])
    return {name: value for name, value in fields.items() if value is not None}


def _traced(config: Config, plan: StreamSpec, event: Event, status: Status) -> dict[str, Any]:
    """What one stream does with the event, and what its ledger says."""
    from bridge.operate.connect import connect_ledger  # noqa: PLC0415
    from bridge.operate.waits import Waits  # noqa: PLC0415
    from bridge.planning.contract import Contract  # noqa: PLC0415
    from bridge.planning.pipeline import Pipeline, trace  # noqa: PLC0415
    from bridge.postgres.progress import Applied, messages_of  # noqa: PLC0415
    from bridge.protocol.chain import partition_of  # noqa: PLC0415

    kind = event.type.decode()
    contract = plan.contracts.get(kind)
    traces = []
    with connect_ledger(plan, "explain") as target:
        how = Applied(target, plan.rows).how(event)
        columns = planned_now(plan, event)
        waits = Waits.of(config, target, plan, status)
        for spec in plan.pipelines:
            pipeline = Pipeline(spec, {}, ())
            if not pipeline.takes(kind):
                continue
            walked = _answered(plan, trace(pipeline, Contract(contract) if contract else None, event))
            units = {
                name: _unit(target, waits, plan.owner, event, (spec.name, name))
                for name in _owned(plan, spec.name)
            }
            traces.append(
                {
                    "pipeline": spec.name,
                    "steps": [
                        {"what": one.what, "saw": one.saw, "result": one.result} for one in walked.seen
                    ],
                    "branch": walked.branch,
                    "ended": walked.ended,
                    "to": walked.to,
                    "destinations": {
                        name: {"columns": columns.get((spec.name, name)), **unit}
                        for name, unit in units.items()
                    },
                }
            )
        told = {unit["id"] for one in traces for unit in one["destinations"].values()}
        partition = partition_of(event.key, event.id, plan.partitions) if plan.partitions else None
        others = [_told(row, waits) for row in messages_of(target, plan.stream, event, told)]
        stray = None if traces else _unit(target, waits, plan.owner, event, ("", ""))["dead_letter"]
    return {
        "stream": plan.stream,
        "partition": partition,
        "partitions": plan.partitions or None,
        "frame": _framed(config, plan, partition, event) if partition is not None else None,
        "applied": how,
        "pipelines": traces,
        "dead_letter": stray,
        "other_messages": others,
    }


def _framed(config: Config, plan: StreamSpec, partition: int, event: Event) -> dict[str, Any]:
    """The frame of the log that carries the event, if it is still there: applied frames are forgotten."""
    from bridge.errors import BridgeError  # noqa: PLC0415
    from bridge.plans import relay_plans  # noqa: PLC0415
    from bridge.stream.frame_search import find_frame  # noqa: PLC0415  loads nats-py, an extra

    relay = next((one for one in relay_plans(config) if one.source == plan.source), None)
    if relay is None:
        return {"why": "this source is not read by a relay (source.capture: poll)"}
    try:
        found = find_frame(relay, partition, event.id)
    except BridgeError as error:
        return {"why": f"the log cannot be asked: {error.args[0]}"}
    if found is None:
        return {
            "subject": f"{relay.relay}.frames.{partition}",
            "why": "not in the log (applied frames are forgotten)",
        }
    return found


def _owned(plan: StreamSpec, pipeline: str) -> list[str]:
    """The destinations of a pipeline that this stream writes."""
    from bridge.planning.spec import TableSpec  # noqa: PLC0415

    spec = next(one for one in plan.pipelines if one.name == pipeline)
    entities = [name for of, name in sorted(plan.entities) if of == pipeline]
    return entities + [
        name
        for name, destination in spec.destinations.items()
        if (pipeline, name) in plan.messages
        or (isinstance(destination, TableSpec) and destination.connection == plan.connection)
    ]


def planned_now(plan: StreamSpec, event: Event) -> dict[tuple[str, str], Any]:
    """Unit to the columns or the message that would be written now."""
    from bridge.planning.plan import arrange  # noqa: PLC0415
    from bridge.stream.target_tables import plan_target  # noqa: PLC0415

    planned = _answered(plan, plan_target(plan, reads=True).plan([event]))
    found: dict[tuple[str, str], Any] = {}
    for write in arrange(planned.writes):
        texts = [column[0] for column in write.columns]
        values = [None if text is None else text.decode() for text in texts]
        found[write.unit] = dict(zip(write.names, values, strict=True))
    for delivery in planned.deliveries:
        found[delivery.pipeline, delivery.destination] = json.loads(delivery.body)
    for publication in planned.publications:
        found[publication.pipeline, publication.destination] = publication.shown()
    return found


def _answered(plan: StreamSpec, work: Generator[Any, Any, Any]) -> Any:
    """Run a plan or a trace, and answer its lookups."""
    from bridge.planning.planner import answered  # noqa: PLC0415
    from bridge.postgres.entities import Enricher  # noqa: PLC0415

    enricher = Enricher(plan.dsns, "explain")
    try:
        return answered(work, enricher.answer)
    finally:
        enricher.close()


def _unit(
    target: psycopg.Connection, waits: Waits, owner: Owner, event: Event, unit: tuple[str, str]
) -> dict[str, Any]:
    from bridge.postgres.progress import deliveries, letters  # noqa: PLC0415

    name = str(owner.unit_id(event.id.decode(), *unit))
    delivery = deliveries(target, [name]).get(name)
    return {
        "id": name,
        "dead_letter": letters(target, [name]).get(name),
        "delivery": None if delivery is None else _told(delivery, waits),
    }


def _told(row: Mapping[str, Any], waits: Waits) -> dict[str, Any]:
    """A delivery, with what it waits for. Its body is not told: the message is rendered above."""
    kept = {name: value for name, value in row.items() if name not in ("body", "now")}
    return {**kept, "waits": waits.why(row) if row["state"] == "pending" else None}
