"""Which messages of sinks a command means: the options that search, and the ledgers in which they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from bridge.cli.options import Moment, source_option
from bridge.cli.sink_choice import named
from bridge.errors import ConfigError
from bridge.problem import suggestion
from bridge.records import dataclass, replace

if TYPE_CHECKING:
    from datetime import datetime

    import psycopg

    from bridge.config.model import Config
    from bridge.dispatch.schedule import LaneSpec
    from bridge.postgres.queued import Search
    from bridge.stream.spec import StreamSpec

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


@dataclass(frozen=True, slots=True)
class Selection:
    """A search, and what the database cannot be asked."""

    search: Search
    recipient: str | None = None

    def narrows(self) -> bool:
        """Does it say more than a place?"""
        only = replace(self.search, pipeline=None, destination=None, state="pending")
        return self.recipient is not None or only != type(only)()


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


@dataclass(frozen=True, slots=True)
class Ledger:
    """A stream's ledger. lanes: the sinks of the configuration that it has."""

    plan: StreamSpec
    connection: psycopg.Connection[Any]
    lanes: dict[tuple[str, str], LaneSpec]

    def found(self, wanted: Selection, limit: int | None = None) -> Iterator[dict[str, Any]]:
        """The messages in the order of their events."""
        from bridge.postgres.queued import search  # noqa: PLC0415

        to = wanted.recipient
        every = search(self.connection, self.plan.stream, wanted.search, limit if to is None else None)
        with closing(every):
            yield from islice((row for row in every if to is None or self._goes_to(row, to)), limit)

    def named(self, wanted: Selection) -> list[tuple[str, str, str]]:
        """(id, pipeline, destination) of the messages, in the order of their events."""
        from bridge.postgres.queued import named as named_rows  # noqa: PLC0415

        if wanted.recipient is None:
            return named_rows(self.connection, self.plan.stream, wanted.search)
        return [(row["id"], row["pipeline"], row["destination"]) for row in self.found(wanted)]

    def recipient(self, row: dict[str, Any]) -> str | None:
        """Who gets it, where its message says so; None also where the destination is gone."""
        from bridge.postgres.claims import delivery_of  # noqa: PLC0415
        from bridge.sinks.model import SendError  # noqa: PLC0415

        lane = self.lanes.get((row["pipeline"], row["destination"]))
        try:
            return None if lane is None else lane.sink.recipient(delivery_of(row))
        except SendError:
            return None

    def _goes_to(self, row: dict[str, Any], recipient: str) -> bool:
        from bridge.postgres.sink_pause import digest  # noqa: PLC0415

        name = self.recipient(row)
        return name is not None and (name == recipient or digest(name).startswith(recipient.lower()))


@contextmanager
def ledgers(config: Config, command: str, *, writes: bool = False) -> Iterator[list[Ledger]]:
    """Every stream's; errors of statements as the command line reports them."""
    from bridge.cli.connect import connect_ledger, target_errors  # noqa: PLC0415  (loads psycopg)
    from bridge.plans import dispatch_plans, stream_plans  # noqa: PLC0415

    lanes = {plan.stream: {lane.name: lane for lane in plan.lanes} for plan in dispatch_plans(config)}
    with ExitStack() as stack:
        stack.enter_context(target_errors(command))
        yield [
            Ledger(
                plan,
                stack.enter_context(connect_ledger(plan, command, writes=writes)),
                lanes.get(plan.stream, {}),
            )
            for plan in stream_plans(config)
        ]


def check_place(found: list[Ledger], wanted: Selection) -> None:
    """Raise ConfigError if a name of the search means nothing: neither the configuration nor a message has it."""
    from bridge.cli.names import check_cause, check_event_type  # noqa: PLC0415
    from bridge.postgres.queued import kinds  # noqa: PLC0415

    search = wanted.search
    kept = [row for one in found for row in kinds(one.connection, one.plan.stream)]
    known = {unit for one in found for unit in one.lanes} | {(row.pipeline, row.destination) for row in kept}
    named = search.pipeline is not None or search.destination is not None
    if named and not any(
        search.pipeline in (None, pipeline) and search.destination in (None, destination)
        for pipeline, destination in known
    ):
        name = "/".join(part for part in (search.pipeline, search.destination) if part)
        names = sorted({destination for _, destination in known} | {"/".join(unit) for unit in known})
        raise ConfigError(f"there is no sink {name}, and no message of one", hint=suggestion(name, names))
    if search.event_type is not None:
        check_event_type([one.plan for one in found], search.event_type, {row.event_type for row in kept})
    if search.cause is not None:
        here = {row.code for row in kept if row.state == search.state}
        check_cause("no such message has the code", search.cause, here, {row.code for row in kept})
