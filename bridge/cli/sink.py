"""`bridge sink`: what an event becomes at a sink, and whether the vendor takes it. Prints values of events."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from bridge.cli.options import config_option, parse_payload, read_config

if TYPE_CHECKING:
    from bridge.config.model import Case, Config
    from bridge.dispatch.schedule import LaneSpec
    from bridge.planning.lookup import Answer, Lookup
    from bridge.protocol.events import Event
    from bridge.repair.sample import Request, Sample
    from bridge.sinks.model import Delivery, SendOutcome
    from bridge.stream.spec import StreamSpec

_F = TypeVar("_F", bound=Callable[..., Any])


@click.group(panel="Check")
def sink() -> None:
    """Look at the messages of sinks, and send one to see whether the vendor takes it."""


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
@click.argument("destination", metavar="[DESTINATION]", required=False)
def preview(
    config_path: Path, destination: str | None, given: str | None, event_type: str | None, *, as_json: bool
) -> None:
    """Show what an event would become, and send nothing. Exit code 1 if it would become a dead letter.

    DESTINATION: its name, or PIPELINE.NAME. Without it: every sink of the event's pipelines.
    """
    from bridge.repair.sample import payloads, shown  # noqa: PLC0415  (loads psycopg)

    told: list[dict[str, Any]] = []
    failed = False
    config = read_config(config_path, offline=given is None)
    for one, lane in _samples(config, destination, given, event_type):
        bodies, why = ([], one.why) if one.delivery is None else payloads(lane.sink, one.delivery)
        failed = failed or bool(why and not why.startswith("no message"))
        told.append(
            {
                "pipeline": one.pipeline,
                "destination": one.destination,
                "connection": one.connection,
                "kind": lane.sink.type,
                "message": None if one.delivery is None else shown(one.delivery.fields),
                "payload": [_read(body) for body in bodies],
                "why": why,
            }
        )
    if as_json:
        click.echo(_dumped(told))
    else:
        for row in told:
            click.echo(
                f"{row['pipeline']}.{row['destination']}  ({row['kind']}, connection {row['connection']})"
            )
            for title, value in (
                ("message", row["message"]),
                *(("payload", body) for body in row["payload"]),
            ):
                if value is not None:
                    click.echo(f"  {title}:\n{_indented(value)}")
            if row["why"]:
                click.echo(f"  {row['why']}")
    sys.exit(1 if failed else 0)


@sink.command("test")
@config_option
@_event_options
@click.argument("destination", metavar="DESTINATION")
def test_(
    config_path: Path, destination: str, given: str | None, event_type: str | None, *, as_json: bool
) -> None:
    """Send one message to DESTINATION now, and tell the vendor's answer. Exit code 1 if it is not sent.

    It is a real message, rendered from the event as `bridge run` would. It does not go through the queue: neither the
    outbox nor the ledger changes. DESTINATION: its name, or PIPELINE.NAME.
    """
    from bridge.errors import BridgeError  # noqa: PLC0415

    [(one, lane)] = _samples(read_config(config_path), destination, given, event_type)
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
            {"status": request.reply.status, "body": _read(request.reply.body)}
            for request in requests
            if request.reply is not None
        ]
        told = {"sent": sent, "verdict": outcome.verdict, "code": outcome.code, "cause": outcome.cause}
        click.echo(
            _dumped({**told, "retry_after": outcome.retry_after, "fallback": elsewhere, "answers": answers})
        )
    else:
        what = "sent" if sent else f"not sent: {outcome.code}: {outcome.cause}"
        click.echo(
            f"{one.pipeline}.{one.destination} ({lane.sink.type}, connection {one.connection}): {what}"
        )
        for request in requests:
            if request.reply is not None:
                click.echo(f"answer: HTTP {request.reply.status}\n{_indented(_read(request.reply.body))}")
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


# -- which event, and which sinks ------------------------------------------------------------------------


def _samples(
    config: Config, destination: str | None, given: str | None, event_type: str | None
) -> list[tuple[Sample, LaneSpec]]:
    from bridge.config.testing import event_of  # noqa: PLC0415
    from bridge.plans import dispatch_plans, stream_plans  # noqa: PLC0415  (loads psycopg)
    from bridge.repair.sample import samples  # noqa: PLC0415

    lanes = {(one.pipeline, one.destination): one for plan in dispatch_plans(config) for one in plan.lanes}
    if not lanes:
        raise click.UsageError("the configuration has no sink")
    chosen = lanes if destination is None else {(unit := _unit(config, lanes, destination)): lanes[unit]}
    pipelines = [pipeline for pipeline, _ in chosen]
    plans = stream_plans(config)
    case = None
    if given is None:
        case = _case(config, pipelines)
        event = event_of(case, event_type or case.type or config.pipelines[case.pipeline].events[0])
    elif (text := _text(given)) is not None:
        event = _made(config, pipelines, text, event_type)
    else:
        event = _from_outbox(config, plans[0], given)
    found: list[tuple[Sample, LaneSpec]] = []
    for plan in plans:
        units = frozenset(chosen) & plan.sinks
        if case is not None:
            units = frozenset(unit for unit in units if unit[0] == case.pipeline)
        elif destination is None:
            units = frozenset(unit for unit in units if _takes(config, unit[0], event.type.decode()))
        with _answers(plan, case) as answer:
            found += [
                (one, lanes[one.pipeline, one.destination]) for one in samples(plan, event, units, answer)
            ]
    if not found:
        raise click.UsageError(f"no pipeline with a sink takes {event.type.decode()}")
    return found


def _takes(config: Config, pipeline: str, event_type: str) -> bool:
    from fnmatch import fnmatchcase  # noqa: PLC0415

    return any(fnmatchcase(event_type, pattern) for pattern in config.pipelines[pipeline].events)


def _unit(config: Config, lanes: dict[tuple[str, str], LaneSpec], destination: str) -> tuple[str, str]:
    from bridge.problem import nearest  # noqa: PLC0415

    found = [unit for unit in lanes if destination in (unit[1], ".".join(unit))]
    if len(found) == 1:
        return found[0]
    if found:
        names = " or ".join(map(".".join, found))
        raise click.UsageError(f"several pipelines have a destination {destination}: write {names}")
    every = [(pipeline, name) for pipeline, one in config.pipelines.items() for name in one.destinations]
    if any(destination in (unit[1], ".".join(unit)) for unit in every):
        raise click.UsageError(f"{destination} is a table: bridge test and bridge explain show its rows")
    hint = nearest(destination, [name for _, name in lanes]) or f"there are {', '.join(map('.'.join, lanes))}"
    raise click.UsageError(f"no sink has the name {destination}; {hint}")


def _case(config: Config, pipelines: list[str]) -> Case:
    case = next((one for one in config.tests if one.pipeline in pipelines), None)
    if case is None:
        raise click.UsageError(
            "give an event: --event; without it the event of the pipeline's first test is taken"
        )
    return case


def _made(config: Config, pipelines: list[str], text: str, event_type: str | None) -> Event:
    """An event of now with this payload."""
    from datetime import UTC, datetime  # noqa: PLC0415

    from bridge.config.model import Case, CaseMeta, Expectation  # noqa: PLC0415
    from bridge.config.testing import event_of  # noqa: PLC0415

    kinds = list(dict.fromkeys(event for name in pipelines for event in config.pipelines[name].events))
    if event_type is None and (len(kinds) > 1 or set("*?[") & set(kinds[0])):
        raise click.UsageError(f"which type has the event? --type; the pipelines take {', '.join(kinds)}")
    meta = CaseMeta(occurred_at=datetime.now(UTC).isoformat())
    case = Case(name="", pipeline=pipelines[0], event=parse_payload(text), meta=meta, expect=Expectation())
    return event_of(case, event_type or kinds[0])


def _text(given: str) -> str | None:
    """The payload's text; None: `given` is an event's id."""
    if given == "-":
        return sys.stdin.read()
    if given.lstrip().startswith(("{", "[")):
        return given
    path = Path(given)
    try:
        return path.read_text() if path.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(
            f"cannot be read: {error.__class__.__name__}", param_hint="--event"
        ) from None


def _from_outbox(config: Config, plan: StreamSpec, event_id: str) -> Event:
    from bridge.cli.connect import connect_source  # noqa: PLC0415
    from bridge.errors import BridgeError  # noqa: PLC0415
    from bridge.postgres.progress import find  # noqa: PLC0415

    with connect_source(config, command="sink", grant="outbox_bridge") as source:
        event = find(source, plan.outbox, event_id)
    if event is None:
        raise BridgeError(
            f"there is no file {event_id}, and the outbox has no event with this id",
            hint='a payload begins with {: --event \'{"customer_id": "cus_1"}\'; bridge tail shows the newest events',
        )
    return event


@contextmanager
def _answers(plan: StreamSpec, case: Case | None) -> Iterator[Callable[[Lookup], Answer]]:
    """The rows of lookups: those of the test, or those of the databases."""
    if case is not None:
        from bridge.config.testing import answer_of  # noqa: PLC0415

        yield answer_of(case)
        return
    from bridge.cli.connect import target_errors  # noqa: PLC0415
    from bridge.postgres.entities import Enricher  # noqa: PLC0415

    enricher = Enricher(plan.dsns, "sink")
    try:
        with target_errors("sink"):
            yield enricher.answer
    finally:
        enricher.close()


# -- what is printed -------------------------------------------------------------------------------------


def _read(body: bytes) -> Any:
    """JSON as a value with exact numbers, other text as text."""
    from bridge.errors import PayloadFailure  # noqa: PLC0415
    from bridge.expressions.document import exact_json  # noqa: PLC0415

    text = body.decode(errors="replace")
    try:
        return exact_json(text)
    except (PayloadFailure, ValueError):
        return text


def _dumped(value: Any) -> str:
    import orjson  # noqa: PLC0415

    from bridge.expressions.document import digits, json_text  # noqa: PLC0415

    try:
        return orjson.dumps(
            value, default=lambda number: orjson.Fragment(digits(number)), option=orjson.OPT_INDENT_2
        ).decode()
    except TypeError:  # of an integer beyond 64 bits
        return json_text(value).decode()


def _indented(value: Any) -> str:
    """Below a title. An answer is a stranger's text: control characters are not for the terminal."""
    text = value if isinstance(value, str) else _dumped(value)
    plain = "".join(one if one.isprintable() or one == "\n" else "\N{REPLACEMENT CHARACTER}" for one in text)
    return "\n".join(f"    {line}" for line in plain.splitlines()[:200])
