"""`bridge explain`: the history of one event. This command and `dead show` print values of events."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from bridge.cli.options import config_option, read_config, source_option

if TYPE_CHECKING:
    import psycopg

    from bridge.cli.waits import Waits
    from bridge.config.model import Config
    from bridge.planning.plan import Owner
    from bridge.protocol.events import Event
    from bridge.stream.spec import StreamSpec


@click.command(panel="Run and watch")
@config_option
@source_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.argument("event_id", metavar="EVENT_ID")
def explain(config_path: Path, event_id: str, as_json: bool) -> None:
    """Show the history of one event, with the values that each condition saw.

    Pipelines and enrichment are the current ones. Whether the event was applied, its dead letters and its deliveries
    come from the ledger.
    """
    from bridge.cli.connect import connect_source, target_errors  # noqa: PLC0415  (loads psycopg)
    from bridge.config.several import each_source  # noqa: PLC0415
    from bridge.errors import BridgeError  # noqa: PLC0415
    from bridge.plans import outbox_of, stream_plans, types_taken  # noqa: PLC0415
    from bridge.postgres.progress import find  # noqa: PLC0415

    config = read_config(config_path)
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
        streams = [_traced(config, plan, event) for plan in plans]
    kind = event.type.decode()
    taken = types_taken(config)
    told: dict[str, Any] = {"event": _event(event), "streams": streams}
    if not taken.takes(kind):
        told["unmatched"] = {
            "said": taken.said(kind),
            "near": taken.near(kind),
            "ignored": taken.ignores(kind),
        }
    if as_json:
        click.echo(json.dumps(told, indent=2, default=str))
        return
    for line in _lines(told):
        click.echo(line)


def _event(event: Event) -> dict[str, Any]:
    from bridge.expressions.filters import moment_text  # noqa: PLC0415

    fields = {name: None if value is None else value.decode() for name, value in event._asdict().items()}
    if fields["occurred_at"] is not None:
        fields["occurred_at"] = moment_text(fields["occurred_at"])
    return {name: value for name, value in fields.items() if value is not None}


def _traced(config: Config, plan: StreamSpec, event: Event) -> dict[str, Any]:
    """What one stream does with the event, and what its ledger says."""
    from bridge.cli.connect import connect_ledger  # noqa: PLC0415
    from bridge.cli.waits import Waits  # noqa: PLC0415
    from bridge.planning.contract import Contract  # noqa: PLC0415
    from bridge.planning.pipeline import Pipeline, trace  # noqa: PLC0415
    from bridge.postgres.progress import Applied, messages_of  # noqa: PLC0415
    from bridge.protocol.chain import partition_of  # noqa: PLC0415

    kind = event.type.decode()
    contract = plan.contracts.get(kind)
    traces = []
    with connect_ledger(plan, "explain") as target:
        how = Applied(target, plan.rows).how(event)
        columns = _planned(plan, event)
        waits = Waits.of(config, target, plan)
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
        others = [_told(row, waits) for row in messages_of(target, plan.stream, event, told)]
        stray = None if traces else _unit(target, waits, plan.owner, event, ("", ""))["dead_letter"]
        partition = partition_of(event.key, event.id, plan.partitions) if plan.partitions else None
        frame = _framed(config, plan, partition, event) if partition is not None else None
    return {
        "stream": plan.stream,
        "partition": partition,
        "partitions": plan.partitions or None,
        "frame": frame,
        "applied": how,
        "pipelines": traces,
        "dead_letter": stray,
        "other_messages": others,
    }


def _framed(config: Config, plan: StreamSpec, partition: int, event: Event) -> dict[str, Any]:
    """The frame of the log that carries the event, if it is still there: applied frames are forgotten."""
    from bridge.errors import BridgeError  # noqa: PLC0415
    from bridge.plans import relay_plans  # noqa: PLC0415
    from bridge.stream.frame_search import find_frame  # noqa: PLC0415  loads nats-py

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
        if (pipeline, name) in plan.sinks
        or (isinstance(destination, TableSpec) and destination.connection == plan.connection)
    ]


def _planned(plan: StreamSpec, event: Event) -> dict[tuple[str, str], Any]:
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


_APPLIED = {
    "floor": "its transaction is applied (visible in the floor)",
    "listed": "its transaction is applied (listed)",
    "": "its transaction is not applied yet",
    "unknown": "unknown whether it is applied: the outbox has no xid",
}


def _lines(told: dict[str, Any]) -> list[str]:
    from bridge.planning.taken import UNMATCHED_FIX  # noqa: PLC0415

    lines = [f"{name:>16}  {value}" for name, value in told["event"].items()]
    for stream in told["streams"]:
        lines.append(f"\nstream {stream['stream']}: {_APPLIED[stream['applied']]}")
        if stream["partition"] is not None:
            lines.append(f"  partition {stream['stream']}.{stream['partition']}of{stream['partitions']}")
            lines.append(f"  {_frame_line(stream['frame'])}")
        if "unmatched" in told:
            lines.append(f"  {told['unmatched']['said']}")
            lines += [] if told["unmatched"]["ignored"] else [f"    fix: {UNMATCHED_FIX}"]
        if letter := stream["dead_letter"]:
            lines.append(f"  dead letter, {letter['state']}: {letter['code']}: {letter['cause']}")
        for pipeline in stream["pipelines"]:
            lines += _pipeline_lines(pipeline)
        for one in stream["other_messages"]:
            lines.append(f"  message {one['id']} of {one['pipeline']}/{one['destination']}")
            lines += [f"      {line}" for line in delivery_lines(one)]
    return lines


def _frame_line(frame: dict[str, Any]) -> str:
    if "why" in frame:
        return f"frame: {frame['why']}"
    return (
        f"frame {frame['subject']}, sequence {frame['sequence']}: {frame['rows']} events of incarnation "
        f"{frame['incarnation']}, from {frame['prev']} to {frame['end'] or 'the next part'}"
    )


def _pipeline_lines(pipeline: dict[str, Any]) -> list[str]:
    lines = [f"  pipeline {pipeline['pipeline']}"]
    for step in pipeline["steps"]:
        lines.append(f"    {step['what']}")
        lines += [f"        {name} is {_shown(value)}" for name, value in step["saw"].items()]
        if step["result"] is not None:
            lines.append(f"      -> {_shown(step['result'])}")
    lines.append(f"    {pipeline['ended'] or 'goes to ' + ', '.join(pipeline['to'])}")
    for name, unit in pipeline["destinations"].items():
        if unit["columns"] is None and unit["dead_letter"] is None and unit["delivery"] is None:
            continue
        lines.append(f"    destination {name} (unit {unit['id']})")
        lines += [f"        {column} = {_shown(value)}" for column, value in (unit["columns"] or {}).items()]
        if letter := unit["dead_letter"]:
            lines.append(f"      dead letter, {letter['state']}: {letter['code']}: {letter['cause']}")
        if delivery := unit["delivery"]:
            lines += [f"      {line}" for line in delivery_lines(delivery)]
    return lines


def delivery_lines(delivery: Mapping[str, Any]) -> list[str]:
    """The state of a delivery, what it waits for, and the answers to its last attempts."""
    from bridge.cli.sink_list import history_line  # noqa: PLC0415

    attempts = delivery["attempts"]
    words = f"delivery {delivery['state']} after {attempts} attempt{'' if attempts == 1 else 's'}"
    if delivery["waits"]:
        words += f", waits: {delivery['waits']}"
    elif delivery["last_error"]:
        words += f", last error: {delivery['last_error']}"
    return [words, *(f"  {history_line(entry)}" for entry in delivery["history"] or ())]


def _shown(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)
