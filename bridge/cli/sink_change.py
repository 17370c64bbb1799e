"""`bridge sink retry|discard|restore`: messages one by one, or those that a search finds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from bridge.cli.options import config_option, of_source, read_config
from bridge.cli.sink_choice import operator
from bridge.cli.sink_search import Ledger, Selection, check_place, ledgers, searches, selection

if TYPE_CHECKING:
    import psycopg

    from bridge.config.model import Config
    from bridge.postgres.sink_pause import Hold

_F = TypeVar("_F", bound=Callable[..., Any])


def changes(command: _F) -> _F:
    """What every command that changes messages takes."""
    for option in (
        click.option("--reason", metavar="TEXT", help="Why; it is kept with each message."),
        click.option("--dry-run", is_flag=True, help="Show what would happen, and change nothing."),
        click.option("--all", "everything", is_flag=True, help="All that wait there."),
    ):
        command = option(command)
    return command


def _states(found: list[Ledger], wanted: Selection) -> dict[str, str]:
    """The states of the messages that are asked for by their ids, whatever else is asked for."""
    from bridge.postgres.queued import states  # noqa: PLC0415

    ids = wanted.search.ids
    return {each: state for one in found for each, state in states(one.connection, one.plan.stream, ids)}


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
    from bridge.cli.names import check_messages  # noqa: PLC0415
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
            check_messages(wanted.search.ids, _states(every, wanted), state)
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

    A destination or recipient that is left alone is tried at once, with one of them; if it arrives, the others follow.
    Pauses, throttles and quiet hours stay. For dead letters: `bridge dead retry`.
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
