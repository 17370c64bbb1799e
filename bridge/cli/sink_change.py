"""`bridge sink retry|discard|restore`: messages one by one, or those that a search finds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import rich_click as click

from bridge.cli.operator import operator
from bridge.cli.options import config_option, of_source, read_config
from bridge.cli.sink_search import searches, selection
from bridge.operate.queue import Act, change

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


def _act(
    path: Path,
    command: str,
    done: str,
    given: dict[str, Any],
    act: Act,
    *,
    state: str = "pending",
) -> None:
    """Find the messages, do it to them, and say how many."""
    dry_run, as_json, everything, reason = (
        given.pop(name) for name in ("dry_run", "as_json", "everything", "reason")
    )
    wanted = selection(given, state)
    if not (everything or wanted.narrows()):
        raise click.UsageError(
            "nothing is selected: give --all, or --id, --event, --type, --key, --cause, --recipient, --older"
        )
    told = change(read_config(path), command, wanted, act, operator(reason), dry_run=dry_run)
    if as_json:
        said = {"dry_run": dry_run, "ids": told.ids, "changed": told.changed, "left": told.left}
        click.echo(json.dumps(said, indent=2))
        return
    counted = Counter(f"{of_source(source)}{pipeline}/{name}" for source, pipeline, name in told.places)
    for name, count in counted.most_common():
        click.echo(f"{count:>6}  {name}")
    click.echo(f"{told.changed} {'would be ' if dry_run else ''}{done}")
    if told.left:
        click.echo(f"{told.left} left as they are: being sent right now, or settled meanwhile", err=True)


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
