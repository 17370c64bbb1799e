"""`bridge replay`: send past events to one destination again."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path

import rich_click as click

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
    import psycopg  # noqa: PLC0415  `bridge --help` must not import everything

    from bridge.errors import BridgeError, CannotConnect  # noqa: PLC0415
    from bridge.operate.connect import connect_ledger  # noqa: PLC0415
    from bridge.plans import stream_plans  # noqa: PLC0415
    from bridge.postgres.safe_error import safe_message  # noqa: PLC0415
    from bridge.repair.history import Order, find  # noqa: PLC0415
    from bridge.repair.replay import replay as again  # noqa: PLC0415

    plan, pipeline, spec = find(stream_plans(read_config(config_path)), destination)
    with connect_ledger(plan, "replay", writes=True):
        pass  # a ledger of a newer release is refused
    times = f"{since.isoformat()}/{until.isoformat() if until else ''}"
    order = Order(pipeline, spec, since, until, name=name or times, dry_run=dry_run)
    try:
        done = again(plan, order, force=force, deliver=deliver)
    except psycopg.Error as error:
        said = f"the replay ended early: {safe_message(error)}"
        if error.sqlstate is None:
            raise CannotConnect(
                said, hint="run it again; where that goes on, bridge doctor looks at each connection"
            ) from None
        raise BridgeError(f"{said} (SQLSTATE {error.sqlstate})", hint="run it again") from None
    would = "would be " if dry_run else ""
    click.echo(f"{done.read} events read, {done.written} {would}written to {'/'.join(order.unit)}")
    if done.elsewhere:
        click.echo(f"{done.elsewhere} do not go here, because of a filter or branch")
    if done.emptied:
        click.echo(f"{done.emptied} were emptied by prune and skipped")
    for note in done.notes:
        click.echo(f"note: {note}")
    if done.failed:
        click.echo(f"{done.failed} cannot be written; their dead letters, if any, do not change:", err=True)
        for failure in done.failures:
            click.echo(f"  {failure}", err=True)
        sys.exit(1)
