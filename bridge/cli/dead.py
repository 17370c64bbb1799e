"""`bridge dead`: list, show, retry and discard dead letters."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import rich_click as click

from bridge.cli.operator import operator
from bridge.cli.options import config_option, of_source, read_config, source_option

if TYPE_CHECKING:
    from bridge.postgres.dead_letters import Choice
    from bridge.repair.dead import RetryOutcome

_F = TypeVar("_F", bound=Callable[..., Any])


@click.group(panel="Repair")
def dead() -> None:
    """List, show, retry and discard events that could not be applied."""


def _chosen(command: _F) -> _F:
    """The selection of dead letters: ids, --pipeline, --cause, --all."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="For programs."),
        click.option("--dry-run", is_flag=True, help="Show what would happen, and change nothing."),
        click.option("--all", "everything", is_flag=True, help="All open dead letters."),
        click.option(
            "--cause", metavar="CODE", help="Only those with this code, as `bridge dead list` shows it."
        ),
        click.option("--destination", metavar="D", help="Only those of this destination."),
        click.option("--pipeline", metavar="P", help="Only those of this pipeline."),
        source_option,
        click.argument("ids", nargs=-1, metavar="[ID]..."),
    ):
        command = option(command)
    return command


_REASON = click.option("--reason", metavar="TEXT", help="Why; it is kept with each dead letter.")


def _choice(
    ids: tuple[str, ...],
    pipeline: str | None,
    destination: str | None,
    cause: str | None,
    *,
    everything: bool,
    state: str = "open",
) -> Choice:
    from bridge.postgres.dead_letters import Choice  # noqa: PLC0415  (loads psycopg)

    for each in ids:
        if len(each) < 8 or set(each.lower()) - set("0123456789abcdef-"):
            raise click.BadParameter(
                f"{each!r} is not an id or the first 8 or more characters of one: see `bridge dead list`",
                param_hint="ID",
            )
    if not (ids or pipeline or destination or cause or everything):
        raise click.UsageError(
            "nothing is selected: give IDs, --pipeline P, --destination D, --cause CODE or --all"
        )
    return Choice(tuple(each.lower() for each in ids), pipeline, destination, cause, state)


@dead.command("list")
@config_option
@source_option
@click.option("--pipeline", metavar="P", help="Only those of this pipeline.")
@click.option("--destination", metavar="D", help="Only those of this destination.")
@click.option("--cause", metavar="CODE", help="Only those with this code.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_(
    config_path: Path, *, pipeline: str | None, destination: str | None, cause: str | None, as_json: bool
) -> None:
    """List open dead letters, grouped by cause."""
    from dataclasses import asdict  # noqa: PLC0415

    from bridge.operate.letters import grouped  # noqa: PLC0415
    from bridge.postgres.dead_letters import Choice  # noqa: PLC0415  (loads psycopg)

    found = grouped(read_config(config_path), Choice((), pipeline, destination, cause))
    if as_json:
        rows = [{"source": plan.source, **asdict(group)} for plan, group in found]
        click.echo(json.dumps(rows, default=str, indent=2))
        return
    if not found:
        click.echo(
            "no open dead letter matches" if pipeline or destination or cause else "no open dead letters"
        )
    for plan, group in found:
        where = f"{group.pipeline} -> {group.destination}" if group.pipeline else "no pipeline"
        parked = f", {group.parked} are retried automatically" if group.parked else ""
        click.echo(
            f"{group.letters:>6}  {of_source(plan.source_label)}{where}  {group.code}: {group.cause}{parked}"
        )
        click.echo(
            f"        {group.oldest:%Y-%m-%d %H:%M} to {group.newest:%Y-%m-%d %H:%M}, such as {group.ids[0]}"
        )
    if found:
        click.echo(
            "\nbridge dead show ID; after you fixed the cause: bridge dead retry --cause CODE --dry-run"
        )


@dead.command()
@config_option
@source_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.argument("letter_id", metavar="ID")
def show(config_path: Path, letter_id: str, as_json: bool) -> None:
    """Show one dead letter with its event, including values. ID: complete, or its first characters."""
    from bridge.operate.letters import shown  # noqa: PLC0415  (loads psycopg)

    found = shown(read_config(config_path), letter_id)
    if as_json:
        click.echo(json.dumps(found, default=str, indent=2))
        return
    for name, value in found.items():
        if value is not None:
            click.echo(f"{name.replace('_', ' '):>16}  {value}")


@dead.command()
@config_option
@_chosen
@click.option("--force", is_flag=True, help="Also where a later event of the same key was applied.")
@click.option("--as-sent", is_flag=True, help="Send refused messages as they were, not rendered anew.")
@click.option(
    "--wait",
    type=click.FloatRange(0, 3600),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Wait so long for the second result of messages.",
)
def retry(
    config_path: Path,
    ids: tuple[str, ...],
    pipeline: str | None,
    destination: str | None,
    cause: str | None,
    *,
    everything: bool,
    dry_run: bool,
    as_json: bool,
    force: bool,
    as_sent: bool,
    wait: float,
) -> None:
    """Apply dead letters again, each exactly once. Exit code 1 if one stays open, or is open again.

    A message that a receiver refused is rendered anew, by today's configuration, and sent by `bridge run`. With
    --dry-run the changes are rolled back.
    """
    from bridge.operate import letters  # noqa: PLC0415  (loads psycopg)

    choice = _choice(ids, pipeline, destination, cause, everything=everything)
    told = letters.retry(
        read_config(config_path),
        choice,
        operator(),
        dry_run=dry_run,
        force=force,
        as_sent=as_sent,
        wait=wait,
    )
    _tell(told.outcomes, told.sources, dry_run=dry_run, as_json=as_json)
    sys.exit(1 if any(each.result in ("failed", "refused") for each in told.outcomes) else 0)


def _tell(outcomes: list[RetryOutcome], sources: dict[str, str], *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        rows = [
            {"source": sources[one.id], "id": one.id, "result": one.result, "code": one.code, "why": one.why}
            for one in outcomes
        ]
        click.echo(json.dumps({"dry_run": dry_run, "letters": rows}, indent=2))
        return
    counts = Counter((one.result, one.code, one.why) for one in outcomes)
    would = " (dry run: rolled back)" if dry_run else ""
    for (result, code, why), count in counts.most_common():
        first = next(one.id for one in outcomes if (one.result, one.code, one.why) == (result, code, why))
        because = f"  {code}: {why}" if code else f"  {why}" if why else ""
        click.echo(f"{count:>6}  {result}{would}{because}{f', such as {first}' if because else ''}")
    if not outcomes:
        click.echo("no open dead letter matches")
    if any(one.result == "refused" for one in outcomes):
        click.echo("\nto apply them anyway, overwriting later events: --force", err=True)


@dead.command()
@config_option
@_chosen
@_REASON
def discard(config_path: Path, **given: Any) -> None:
    """Mark dead letters as not needed: they are not retried. `bridge dead restore` undoes it."""
    _settle(config_path, "discard", "discarded", given)


@dead.command()
@config_option
@_chosen
@_REASON
def restore(config_path: Path, **given: Any) -> None:
    """Undo `bridge dead discard`: the dead letters are open again. `bridge dead retry` applies them."""
    _settle(config_path, "restore", "restored", given, state="discarded")


def _settle(
    path: Path,
    word: Literal["discard", "restore"],
    done: str,
    given: dict[str, Any],
    *,
    state: str = "open",
) -> None:
    """Do it to the chosen dead letters, and say to how many. given: the options of _chosen, and the reason."""
    from bridge.operate import letters  # noqa: PLC0415

    dry_run, as_json, reason = (given.pop(name) for name in ("dry_run", "as_json", "reason"))
    choice = _choice(**given, state=state)
    chosen, changed = letters.settle(read_config(path), word, choice, operator(reason), dry_run=dry_run)
    if as_json:
        click.echo(json.dumps({"dry_run": dry_run, "ids": chosen, done: changed}, indent=2))
    elif dry_run:
        click.echo(f"{len(chosen)} would be {done}")
    else:
        click.echo(f"{changed} {done}")
