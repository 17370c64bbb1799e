"""`bridge explain`: the history of one event. This command and `dead show` print values of events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rich_click as click

from bridge.cli.options import config_option, read_config, source_option


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
    from functools import partial  # noqa: PLC0415

    from bridge.cli.running import status_of  # noqa: PLC0415
    from bridge.operate.event_history import event_history  # noqa: PLC0415  (loads psycopg)

    config = read_config(config_path)
    told = event_history(config, event_id, partial(status_of, config))
    if as_json:
        click.echo(json.dumps(told, indent=2, default=str))
        return
    for line in _lines(told):
        click.echo(line)


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
