"""Which messages of sinks a command means: the options that search."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from bridge.cli.options import Moment, source_option
from bridge.operate.queue import Selection
from bridge.operate.sinks import named

if TYPE_CHECKING:
    from datetime import datetime


_F = TypeVar("_F", bound=Callable[..., Any])


def searches(command: _F) -> _F:
    """The selection: DESTINATION, ids and what they must have."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="For programs."),
        click.option(
            "--older", type=Moment(), metavar="TIME", help="Only those written before: 2h, or a time."
        ),
        click.option(
            "--recipient",
            metavar="R",
            help="Only those to this recipient: its whole address, or the 8 characters that `bridge status` shows.",
        ),
        click.option("--cause", metavar="CODE", help="Only those whose last answer has this code: http_503."),
        click.option("--key", metavar="KEY", help="Only those of events with this ordering key."),
        click.option("--type", "event_type", metavar="TYPE", help="Only those of events of this type."),
        click.option("--event", metavar="EVENT_ID", help="Only those of this event."),
        click.option(
            "--id", "ids", multiple=True, metavar="ID", help="A message's id, or its first 8 characters."
        ),
        click.option("--pipeline", metavar="P", help="Only those of this pipeline."),
        source_option,
        click.argument("destination", metavar="[[PIPELINE/]DESTINATION]", required=False),
    ):
        command = option(command)
    return command


def selection(given: dict[str, Any], state: Any = "pending") -> Selection:
    """From the options of `searches`."""
    from datetime import UTC  # noqa: PLC0415
    from datetime import datetime as moment  # noqa: PLC0415

    from bridge.postgres.queued import Search  # noqa: PLC0415  (loads psycopg)

    for each in given["ids"]:
        if len(each) < 8 or set(each.lower()) - set("0123456789abcdef-"):
            raise click.BadParameter(
                f"{each!r} is not an id or the first 8 or more characters of one", param_hint="--id"
            )
    pipeline, destination = given["pipeline"], given["destination"]
    if destination is not None:
        pipeline, destination = named(destination, pipeline)
    before: datetime | None = given["older"]
    return Selection(
        Search(
            pipeline=pipeline,
            destination=destination,
            ids=tuple(each.lower() for each in given["ids"]),
            event=given["event"],
            event_type=given["event_type"],
            key=given["key"],
            cause=given["cause"],
            older=None if before is None else (moment.now(UTC) - before).total_seconds(),
            state=state,
        ),
        given["recipient"],
    )
