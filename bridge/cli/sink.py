"""`bridge sink`: pause and resume a destination that is no table, look at its messages, and send one now. `preview` and
`test` print values of events."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from bridge.cli.operator import operator
from bridge.cli.options import config_option, of_source, read_config, read_one, source_option
from bridge.cli.sink_change import discard_sink, restore_sink, retry_sink
from bridge.cli.sink_list import list_sink
from bridge.cli.sink_move import move_sink
from bridge.operate.sinks import Part, chosen, named

if TYPE_CHECKING:
    from bridge.config.model import Config
    from bridge.dispatch.schedule import DispatchSpec, LaneSpec
    from bridge.repair.sample import Request
    from bridge.sinks.model import Delivery, SendOutcome

_F = TypeVar("_F", bound=Callable[..., Any])


@click.group(panel="Run and watch")
def sink() -> None:
    """Look after destinations that are no tables, and their messages."""


for _command in (list_sink, retry_sink, discard_sink, restore_sink, move_sink):
    sink.add_command(_command)


def _destination(command: _F) -> _F:
    """The destination, and the pipeline where several have one of this name."""
    for option in (
        click.option("--pipeline", metavar="P", help="Only that of this pipeline."),
        source_option,
        click.argument("destination"),
    ):
        command = option(command)
    return command


def _parts(command: _F) -> _F:
    """All of a destination's messages, or a part of them; of one destination, or of all."""
    for option in (
        click.option("--all", "everything", is_flag=True, help="Every sink of the configuration."),
        click.option(
            "--recipient", metavar="R", help="Only the messages to this recipient: its whole address."
        ),
        click.option("--cause", metavar="CODE", help="Only the messages whose last answer has this code."),
        click.option("--pipeline", metavar="P", help="Only that of this pipeline."),
        source_option,
        click.argument("destination", metavar="[[PIPELINE/]DESTINATION]", required=False),
    ):
        command = option(command)
    return command


def _places(config: Config, given: dict[str, Any]) -> list[tuple[DispatchSpec, LaneSpec]]:
    destination, pipeline = given["destination"], given["pipeline"]
    if destination is None and not given["everything"]:
        raise click.UsageError("which sink? DESTINATION, or --all")
    if destination is not None:
        pipeline, destination = named(destination, pipeline)
    return chosen(config, destination, pipeline)


@sink.command("pause")
@_parts
@click.option("--reason", metavar="TEXT", help="Why; status, list, explain and the log show it.")
@config_option
def pause_sink(config_path: Path, *, reason: str | None, **given: Any) -> None:
    """Send nothing to DESTINATION until `bridge sink resume`.

    Messages wait; they still become dead letters at max_age. Tables are not affected. It outlasts a restart. With
    --cause or --recipient only those messages wait, and the others go on.
    """
    from bridge.operate.sinks import pause_lane  # noqa: PLC0415

    for plan, lane in _places(read_config(config_path), given):
        parts = pause_lane(plan, lane, _part(given), operator(reason))
        what = "".join(f", {part.kind} {part.label}" for part in parts)
        only = f" --source {plan.source_label}" if plan.source_label else ""
        back = f"{'/'.join(lane.name)}{''.join(f' {part.option}' for part in parts)}{only}"
        click.echo(
            f"{of_source(plan.source_label)}{lane.pipeline} -> {lane.destination}{what}: paused."
            f" bridge sink resume {back} sends what waits"
        )


def _part(given: dict[str, Any]) -> Part:
    return Part(given["cause"], given["recipient"], given["everything"])


@sink.command("resume")
@_parts
@config_option
def resume_sink(config_path: Path, **given: Any) -> None:
    """Send to DESTINATION again, first what waits. --cause and --recipient end such a pause."""
    from bridge.operate.sinks import resume_lane  # noqa: PLC0415

    config = read_config(config_path)
    for plan, lane in _places(config, given):
        done = resume_lane(config, plan, lane, _part(given), operator())
        click.echo(
            f"{of_source(plan.source_label)}{lane.pipeline} -> {lane.destination}:"
            f" {'resumed' if done.was else 'was not paused'}"
        )
        for one in done.stays:
            click.echo(
                f"  {one.kind} {one.label} stays paused by {one.said}:"
                f" bridge sink resume {'/'.join(lane.name)} {one.option}"
            )


def _event_options(command: _F) -> _F:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="For programs."),
        click.option(
            "--type", "event_type", metavar="TYPE", help="The event's type, if the pipeline takes several."
        ),
        click.option(
            "--event",
            "given",
            metavar="EVENT",
            help="A payload (JSON, a file, or - for standard input), or the id of an event in the outbox. Without it: "
            "the event of the pipeline's first test.",
        ),
    ):
        command = option(command)
    return command


@sink.command()
@config_option
@_event_options
@click.option("--pipeline", metavar="P", help="Only that of this pipeline.")
@source_option
@click.argument("destination", metavar="[DESTINATION]", required=False)
def preview(
    config_path: Path,
    destination: str | None,
    pipeline: str | None,
    given: str | None,
    event_type: str | None,
    *,
    as_json: bool,
) -> None:
    """Show what an event would become, and send nothing. Exit code 1 if it would become a dead letter.

    Without DESTINATION: every sink of the event's pipelines.
    """
    from bridge.cli.sink_samples import dumped, indented, readable, samples_of  # noqa: PLC0415
    from bridge.repair.sample import payloads, shown  # noqa: PLC0415  (loads psycopg)

    told: list[dict[str, Any]] = []
    failed = False
    config = read_config(config_path, offline=given is None)
    for plan, one, lane in samples_of(config, _lanes(config, destination, pipeline), given, event_type):
        bodies, why = ([], one.why) if one.delivery is None else payloads(lane.sink, one.delivery)
        failed = failed or bool(why and not why.startswith("no message"))
        told.append(
            {
                "source": plan.source,
                "pipeline": one.pipeline,
                "destination": one.destination,
                "connection": one.connection,
                "kind": lane.sink.type,
                "message": None if one.delivery is None else shown(one.delivery.fields),
                "payload": [readable(body) for body in bodies],
                "why": why,
            }
        )
    if as_json:
        click.echo(dumped(told))
    else:
        several = len({row["source"] for row in told}) > 1
        for row in told:
            click.echo(
                f"{of_source(row['source'] if several else '')}{row['pipeline']}.{row['destination']}"
                f"  ({row['kind']}, connection {row['connection']})"
            )
            for title, value in (
                ("message", row["message"]),
                *(("payload", body) for body in row["payload"]),
            ):
                if value is not None:
                    click.echo(f"  {title}:\n{indented(value)}")
            if row["why"]:
                click.echo(f"  {row['why']}")
    sys.exit(1 if failed else 0)


@sink.command("test")
@config_option
@_event_options
@_destination
def test_(
    config_path: Path,
    destination: str,
    pipeline: str | None,
    given: str | None,
    event_type: str | None,
    *,
    as_json: bool,
) -> None:
    """Send one message to DESTINATION now, and tell the vendor's answer. Exit code 1 if it is not sent.

    It is a real message, rendered from the event as `bridge run` would. It does not go through the queue: neither the
    outbox nor the ledger changes.
    """
    from bridge.cli.sink_samples import dumped, indented, readable, samples_of  # noqa: PLC0415
    from bridge.errors import BridgeError  # noqa: PLC0415

    config = read_one(config_path)
    lanes = _lanes(config, destination, pipeline)
    if len(lanes) > 1:
        names = ", ".join(name for name, _ in lanes)
        raise click.UsageError(f"several pipelines have a sink {destination}: --pipeline, one of {names}")
    [(_, one, lane)] = samples_of(config, lanes, given, event_type)
    if one.delivery is None:
        raise BridgeError(
            f"{one.pipeline}.{one.destination} gets nothing of this event: {one.why}",
            hint="bridge sink preview shows what an event becomes; another event: --event",
        )
    outcome, requests = _send(one.delivery, lane)
    sent = outcome.verdict == "sent"
    elsewhere = outcome.gone and lane.sink.to_fallback(one.delivery.fields) is not None
    if as_json:
        answers = [
            {"status": request.reply.status, "body": readable(request.reply.body)}
            for request in requests
            if request.reply is not None
        ]
        told = {"sent": sent, "verdict": outcome.verdict, "code": outcome.code, "cause": outcome.cause}
        click.echo(
            dumped({**told, "retry_after": outcome.retry_after, "fallback": elsewhere, "answers": answers})
        )
    else:
        what = "sent" if sent else f"not sent: {outcome.code}: {outcome.cause}"
        click.echo(
            f"{one.pipeline}.{one.destination} ({lane.sink.type}, connection {one.connection}): {what}"
        )
        for request in requests:
            if request.reply is not None:
                click.echo(f"answer: HTTP {request.reply.status}\n{indented(readable(request.reply.body))}")
        if elsewhere:
            click.echo("bridge run would send it to the fallback")
        elif outcome.verdict == "retry":
            click.echo("bridge run would try again, until max_age")
    sys.exit(0 if sent else 1)


def _send(delivery: Delivery, lane: LaneSpec) -> tuple[SendOutcome, list[Request]]:
    import asyncio  # noqa: PLC0415

    from bridge.repair.sample import send_once  # noqa: PLC0415
    from bridge.sinks.http import HttpClient  # noqa: PLC0415

    async def sending() -> tuple[SendOutcome, list[Request]]:
        http = HttpClient()
        try:
            return await send_once(lane.sink, delivery, http, lane.timeout)
        finally:
            await http.close()

    return asyncio.run(sending())


def _lanes(config: Config, destination: str | None, pipeline: str | None) -> dict[tuple[str, str], LaneSpec]:
    return {lane.name: lane for _, lane in chosen(config, destination, pipeline)}
