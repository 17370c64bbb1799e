"""`bridge sink list|retry|discard|restore`: messages one by one, or those that a search finds. `list` and `show`
print no values of events but ids, types and keys."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from bridge.cli.options import Moment, config_option, of_source, read_config, source_option
from bridge.cli.sink_choice import named, operator
from bridge.errors import ConfigError
from bridge.problem import suggestion

if TYPE_CHECKING:
    from datetime import datetime

    import psycopg

    from bridge.config.model import Config
    from bridge.dispatch.schedule import LaneSpec
    from bridge.postgres.queued import Search
    from bridge.postgres.sink_pause import Hold
    from bridge.stream.spec import StreamSpec

_F = TypeVar("_F", bound=Callable[..., Any])
_SHOWN = 20


# -- which messages -------------------------------------------------------------------------------------


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


def changes(command: _F) -> _F:
    """What every command that changes messages takes."""
    for option in (
        click.option("--reason", metavar="TEXT", help="Why; it is kept with each message."),
        click.option("--dry-run", is_flag=True, help="Show what would happen, and change nothing."),
        click.option("--all", "everything", is_flag=True, help="All that wait there."),
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


# -- commands -------------------------------------------------------------------------------------------


@click.command("list")
@config_option
@searches
@click.option(
    "--state",
    type=click.Choice(["pending", "sent", "dead", "discarded"]),
    default="pending",
    show_default=True,
    help="Those in this state.",
)
@click.option(
    "-n", "--limit", default=_SHOWN, show_default=True, type=click.IntRange(1), help="At most so many."
)
def list_sink(config_path: Path, *, as_json: bool, state: str, limit: int, **given: Any) -> None:
    """List messages: what waits, for what, and until when.

    First how many by destination and last answer, then the oldest of them. --json has the answer to each attempt.
    """
    from bridge.cli.waits import Waits  # noqa: PLC0415
    from bridge.dispatch.recipients import label  # noqa: PLC0415
    from bridge.postgres.queued import counts  # noqa: PLC0415

    wanted = selection(given, state)
    config = read_config(config_path)
    groups: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    several = False
    with ledgers(config, "sink list") as every:
        for one in every:
            waits = Waits.of(config, one.connection, one.plan)
            of = {"source": one.plan.source}
            several = several or one.plan.several
            if wanted.recipient is None:
                names = ("pipeline", "destination", "code", "messages", "oldest_seconds")
                found = counts(one.connection, one.plan.stream, wanted.search)
                groups += [{**of, **dict(zip(names, row, strict=True))} for row in found]
            for row in one.found(wanted, limit):
                pending = row["state"] == "pending"
                expires = waits.expires(row) if pending else None
                recipient = one.recipient(row)
                rows.append(
                    {
                        **of,
                        **{name: value for name, value in row.items() if name not in ("body", "now")},
                        "recipient": None if recipient is None else label(recipient),
                        "waits": waits.why(row) if pending else None,
                        "expires_at": expires,
                    }
                )
        if not rows:
            check_place(every, wanted)
    if as_json:
        click.echo(json.dumps({"groups": groups, "messages": rows[:limit]}, default=str, indent=2))
        return
    for line in _listed(groups, rows[:limit], state, several=several):
        click.echo(line)


def _listed(
    groups: list[dict[str, Any]], rows: list[dict[str, Any]], state: str, *, several: bool
) -> Iterator[str]:
    def place(row: dict[str, Any]) -> str:
        return f"{of_source(row['source'] if several else '')}{row['pipeline']}/{row['destination']}"

    if not rows:
        yield "no message waits" if state == "pending" else f"no message is {state}"
    for one in groups:
        after = f"after {one['code']}" if one["code"] else "without an answer yet"
        yield (f"{one['messages']:>6}  {place(one)}  {after}, the oldest for {one['oldest_seconds']:.0f} s")
    if rows and groups:
        yield ""
    for row in rows:
        key = f"  key {row['event_key']}" if row["event_key"] is not None else ""
        yield f"{row['id']}  {place(row)}  {row['event_type']}  event {row['event_id']}{key}"
        attempts = f"{row['attempts']} attempt{'' if row['attempts'] == 1 else 's'}"
        yield f"        {row['waits'] or row['state']}; {attempts}, written {row['created_at']:%Y-%m-%d %H:%M:%S%z}"
        for entry in row["history"] or ():
            yield f"        {history_line(entry)}"


def history_line(entry: dict[str, Any]) -> str:
    """An answer, or what a person did."""
    at = str(entry.get("at", ""))[:19].replace("T", " ")
    if "did" in entry:
        why = f": {entry['reason']}" if entry.get("reason") else ""
        return f"{at}  {entry['did']} by {entry.get('by', '')}{why}"
    return f"{at}  {entry.get('said', '')}"


def _act(
    path: Path,
    command: str,
    done: str,
    given: dict[str, Any],
    act: Callable[[psycopg.Connection[Any], list[str], str, str | None], int],
    *,
    state: str = "pending",
) -> None:
    """Find the messages, do it to them, and say how many."""
    from bridge.postgres.queued import need_history  # noqa: PLC0415

    dry_run, as_json, everything, reason = (
        given.pop(name) for name in ("dry_run", "as_json", "everything", "reason")
    )
    wanted = selection(given, state)
    if not (everything or wanted.narrows()):
        raise click.UsageError(
            "nothing is selected: give --all, or --id, --event, --type, --key, --cause, --recipient, --older"
        )
    by = operator()
    counted: Counter[str] = Counter()
    changed = left = 0
    ids: list[str] = []
    with ledgers(read_config(path), command, writes=True) as every:
        for one in every:
            rows = one.named(wanted)
            if not rows:
                continue
            need_history(one.connection, command)
            names = [row[0] for row in rows]
            done_here = len(names) if dry_run else act(one.connection, names, by, reason)
            ids += names
            changed += done_here
            left += len(names) - done_here
            of = of_source(one.plan.source_label)
            counted.update(f"{of}{pipeline}/{destination}" for _, pipeline, destination in rows)
        if not ids:
            check_place(every, wanted)
    if as_json:
        click.echo(json.dumps({"dry_run": dry_run, "ids": ids, "changed": changed, "left": left}, indent=2))
        return
    for name, count in counted.most_common():
        click.echo(f"{count:>6}  {name}")
    click.echo(f"{changed} {'would be ' if dry_run else ''}{done}")
    if left:
        click.echo(f"{left} left as they are: being sent right now, or settled meanwhile", err=True)


def due_again(config: Config, stream: str, held: Hold) -> None:
    """What a pause of a cause or recipient held was put off: it is due now."""
    from bridge.postgres.queued import Search, hurry  # noqa: PLC0415

    pipeline, destination = held.unit
    wanted = Search(pipeline, destination, cause=held.value if held.kind == "cause" else None)
    with ledgers(config, "sink resume", writes=True) as every:
        [one] = [each for each in every if each.plan.stream == stream]
        ids = [
            row["id"]
            for row in one.found(Selection(wanted))
            if held.takes(row["last_error"], one.recipient(row))
        ]
        hurry(one.connection, ids, operator(), f"{held.kind} {held.label} is resumed")


@click.command("retry")
@config_option
@searches
@changes
def retry_sink(config_path: Path, **given: Any) -> None:
    """Send messages that wait now, whatever they wait for.

    A destination that is left alone is tried when that ends, within a minute. For dead letters: `bridge dead retry`.
    """
    from bridge.postgres.queued import hurry  # noqa: PLC0415

    _act(config_path, "sink retry", "due now", given, hurry)


@click.command("discard")
@config_option
@searches
@changes
def discard_sink(config_path: Path, **given: Any) -> None:
    """Do not send messages that wait, also of a destination that is gone. `bridge sink restore` undoes it."""
    from bridge.postgres.queued import discard  # noqa: PLC0415

    _act(config_path, "sink discard", "discarded", given, discard)


@click.command("restore")
@config_option
@searches
@changes
def restore_sink(config_path: Path, **given: Any) -> None:
    """Undo `bridge sink discard`: the messages wait again, with a new max_age. They are kept for 7 days."""
    from bridge.postgres.queued import restore  # noqa: PLC0415

    _act(config_path, "sink restore", "waiting again", given, restore, state="discarded")
