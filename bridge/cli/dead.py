"""`bridge dead`: list, show, retry and discard dead letters."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from bridge.cli.options import config_option, of_source, read_config, source_option
from bridge.cli.sink_choice import operator

if TYPE_CHECKING:
    import psycopg

    from bridge.postgres.dead_letters import Choice
    from bridge.repair.dead import RetryOutcome
    from bridge.stream.spec import StreamSpec

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


@contextmanager
def _ledgers(
    path: Path, command: str, *, writes: bool = False
) -> Iterator[list[tuple[StreamSpec, psycopg.Connection]]]:
    """Each stream with a connection to its target; errors as the command line reports them."""
    from contextlib import ExitStack  # noqa: PLC0415

    from bridge.cli.connect import connect_ledger, target_errors  # noqa: PLC0415  (loads psycopg)
    from bridge.plans import stream_plans  # noqa: PLC0415

    with ExitStack() as stack:
        stack.enter_context(target_errors(command))
        plans = stream_plans(read_config(path))
        yield [(plan, stack.enter_context(connect_ledger(plan, command, writes=writes))) for plan in plans]


def _check_words(ledgers: list[tuple[StreamSpec, psycopg.Connection]], choice: Choice) -> None:
    """Nothing matches: raise an error if a word of the selection is a name that means nothing, or nearly is one that
    would match."""
    from bridge.cli.names import check_cause, check_name, check_pipeline  # noqa: PLC0415
    from bridge.errors import BridgeError  # noqa: PLC0415
    from bridge.postgres.dead_letters import known  # noqa: PLC0415  (loads psycopg)

    kept = [row for plan, connection in ledgers for row in known(connection, plan.stream)]
    plans = [plan for plan, _ in ledgers]
    check_pipeline(plans, choice.pipeline, {row.pipeline for row in kept})
    if choice.destination is not None:
        units = {(one.name, name) for plan in plans for one in plan.pipelines for name in one.destinations}
        units |= {(row.pipeline, row.destination) for row in kept}
        names = {name for pipeline, name in units if choice.pipeline in (None, pipeline)}
        where = "" if choice.pipeline is None else f" in pipeline {choice.pipeline}"
        check_name("destination", choice.destination, names, where)
    if choice.cause is not None:
        here = {row.code for row in kept if row.state == choice.state}
        state = "open" if choice.state == "open" else "discarded"
        check_cause(f"no {state} dead letter has the code", choice.cause, here, {row.code for row in kept})
    for each in choice.ids:
        if not any(one.startswith(each) for row in kept for one in row.ids):
            raise BridgeError(f"there is no dead letter {each}", hint="bridge dead list")


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

    from bridge.postgres.dead_letters import Choice, groups  # noqa: PLC0415  (loads psycopg)

    with _ledgers(config_path, "dead list") as ledgers:
        choice = Choice((), pipeline, destination, cause)
        found = [
            (plan, group) for plan, connection in ledgers for group in groups(connection, plan.stream, choice)
        ]
        if not found:
            _check_words(ledgers, choice)
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
    from bridge.errors import BridgeError  # noqa: PLC0415
    from bridge.postgres.dead_letters import show as show_letter  # noqa: PLC0415  (loads psycopg)
    from bridge.postgres.stored import opened  # noqa: PLC0415

    with _ledgers(config_path, "dead show") as ledgers:
        found = next(
            (
                {"source": plan.source, **row}
                for plan, connection in ledgers
                if (row := show_letter(connection, [plan.stream], letter_id.lower())) is not None
            ),
            None,
        )
    if found is None:
        raise BridgeError(f"there is no dead letter {letter_id}", hint="bridge dead list")
    raw = found.pop("raw")
    if raw is not None:
        found["payload"] = bytes(raw).decode(errors="backslashreplace")
    if found["message"] is not None and (inner := opened(json.loads(found["message"]))) is not None:
        found["message"] = inner.decode()
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
    from bridge.postgres.dead_letters import choose  # noqa: PLC0415
    from bridge.repair.dead import DeadLetterRetry  # noqa: PLC0415  (loads psycopg)
    from bridge.repair.messages import settled  # noqa: PLC0415

    choice = _choice(ids, pipeline, destination, cause, everything=everything)
    outcomes: list[RetryOutcome] = []
    sources: dict[str, str] = {}  # of each dead letter
    with _ledgers(config_path, "dead retry", writes=True) as ledgers:
        for plan, connection in ledgers:
            chosen = choose(connection, plan.stream, choice)
            sources |= dict.fromkeys(chosen, plan.source)
            if chosen:
                with DeadLetterRetry(plan, force=force, dry_run=dry_run, as_sent=as_sent) as retrying:
                    these = list(retrying.retry(chosen))
                outcomes += these if dry_run else settled(connection, plan.stream, these, wait)
        if not outcomes:
            _check_words(ledgers, choice)
    _tell(outcomes, sources, dry_run=dry_run, as_json=as_json)
    sys.exit(1 if any(each.result in ("failed", "refused") for each in outcomes) else 0)


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
    from bridge.postgres import dead_letters  # noqa: PLC0415  (loads psycopg)

    _settle(config_path, "dead discard", "discarded", given, dead_letters.discard)


@dead.command()
@config_option
@_chosen
@_REASON
def restore(config_path: Path, **given: Any) -> None:
    """Undo `bridge dead discard`: the dead letters are open again. `bridge dead retry` applies them."""
    from bridge.postgres import dead_letters  # noqa: PLC0415  (loads psycopg)

    _settle(config_path, "dead restore", "restored", given, dead_letters.restore, state="discarded")


def _settle(
    path: Path,
    command: str,
    done: str,
    given: dict[str, Any],
    act: Callable[[psycopg.Connection, list[str], str], int],
    *,
    state: str = "open",
) -> None:
    """Do it to the chosen dead letters, and say to how many. given: the options of _chosen, and the reason."""
    from bridge.postgres import dead_letters  # noqa: PLC0415  (loads psycopg)

    dry_run, as_json, reason = (given.pop(name) for name in ("dry_run", "as_json", "reason"))
    choice = _choice(**given, state=state)
    note = f"{done} by {operator()}{f': {reason}' if reason else ''}"
    chosen: list[str] = []
    changed = 0
    with _ledgers(path, command, writes=True) as ledgers:
        for plan, connection in ledgers:
            these = dead_letters.choose(connection, plan.stream, choice)
            chosen += these
            if these and not dry_run:
                changed += act(connection, these, note)
        if not chosen:
            _check_words(ledgers, choice)
    if as_json:
        click.echo(json.dumps({"dry_run": dry_run, "ids": chosen, done: changed}, indent=2))
    elif dry_run:
        click.echo(f"{len(chosen)} would be {done}")
    else:
        click.echo(f"{changed} {done}")
