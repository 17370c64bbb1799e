"""`bridge replay`: history again, to one destination."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path

import rich_click as click

from bridge.cli.options import Moment, config_option, read_config


@click.command()
@config_option
@click.option("--destination", required=True, help="PIPELINE/NAME, or NAME where only one is called so.")
@click.option(
    "--since", type=Moment(), required=True, help="Events from this time on (or a duration ago: 24h)."
)
@click.option("--until", type=Moment(), help="Events before this time.")
@click.option("--dry-run", is_flag=True, help="Read and plan, count, and write nothing.")
@click.option("--deliver", is_flag=True, help="For a sink: send every event once more.")
@click.option("--force", is_flag=True, help="Also where older events may overwrite newer ones.")
@click.option(
    "--name", default="", help="Of this replay: a sink gets an event once a name. [default: the times]"
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
    """Fill one destination from the outbox again: applied events, in their order, as the mapping is now.

    It may be killed and run again: rows that are there are not doubled. A table that neither has a key nor holds
    `$meta.id` is filled in one transaction, only when empty, and the stream waits meanwhile.
    """
    import psycopg  # noqa: PLC0415  `bridge --help` must not import everything

    from bridge.errors import BridgeError, CannotConnect  # noqa: PLC0415
    from bridge.plans import stream_plans  # noqa: PLC0415
    from bridge.postgres.safe_error import safe_message  # noqa: PLC0415
    from bridge.repair.history import Order, find  # noqa: PLC0415
    from bridge.repair.replay import replay as again  # noqa: PLC0415

    plan, pipeline, spec = find(stream_plans(read_config(config_path)), destination)
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
        click.echo(f"{done.elsewhere} go elsewhere by filter or branch")
    if done.emptied:
        click.echo(f"{done.emptied} were emptied by prune and left out")
    for note in done.notes:
        click.echo(f"note: {note}")
    if done.failed:
        click.echo(
            f"{done.failed} cannot be written; their dead letters, if any, stay as they are:", err=True
        )
        for failure in done.failures:
            click.echo(f"  {failure}", err=True)
        sys.exit(1)
