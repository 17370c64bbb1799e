"""`bridge replay`: send past events to one destination again."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path

import rich_click as click

from bridge.cli.operator import operator
from bridge.cli.options import Moment, config_option, read_config, source_option


@click.command(panel="Repair")
@config_option
@source_option
@click.option(
    "--destination", required=True, help="PIPELINE/NAME, or NAME if only one destination has that name."
)
@click.option(
    "--since", type=Moment(), required=True, help="Events since this time (or a duration ago: 24h)."
)
@click.option("--until", type=Moment(), help="Events before this time.")
@click.option("--dry-run", is_flag=True, help="Read, plan and count, but write nothing.")
@click.option("--deliver", is_flag=True, help="For a sink: send every event once more.")
@click.option("--force", is_flag=True, help="Replay even if older events may overwrite newer ones.")
@click.option(
    "--name",
    default="",
    help="The name of this replay: a sink gets an event once per name. [default: its times]",
)
def replay(
    *,
    config_path: Path,
    destination: str,
    since: datetime,
    until: datetime | None,
    dry_run: bool,
    deliver: bool,
    force: bool,
    name: str,
) -> None:
    """Write one destination again from the outbox: applied events, in their order, with the current mapping.

    You can kill it and run it again: existing rows are not duplicated. A table that neither has a key nor holds
    `$meta.id` is written in one transaction, only if it is empty, and the stream waits meanwhile.
    """
    from bridge.operate.replays import ReplayOrder, lines, run_replay  # noqa: PLC0415

    asked = ReplayOrder(destination, since, until, name, dry_run, deliver, force)
    unit, done = run_replay(read_config(config_path), asked, operator())
    for line in lines(unit, done, dry_run=dry_run):
        click.echo(line)
    if done.failed:
        click.echo(f"{done.failed} cannot be written; their dead letters, if any, do not change:", err=True)
        for failure in done.failures:
            click.echo(f"  {failure}", err=True)
        sys.exit(1)
