"""`bridge prune`: delete events that every stream has applied and that are older than the retention."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from bridge.cli.options import config_option, read_config, source_option


@click.command(panel="Repair")
@config_option
@source_option
@click.option("--dry-run", is_flag=True, help="Count, and change nothing.")
def prune(config_path: Path, dry_run: bool) -> None:
    """Delete delivered events older than source.retention. `bridge run` does this once a minute."""
    from bridge.config.several import each_source  # noqa: PLC0415
    from bridge.operate.connect import connect_source, need_own_outbox, refuse_newer_ledgers  # noqa: PLC0415  (loads psycopg)
    from bridge.postgres.outbox import fold  # noqa: PLC0415
    from bridge.repair.prune import prune as prune_outbox  # noqa: PLC0415

    config = read_config(config_path)
    refuse_newer_ledgers(config, "prune")
    for one in each_source(config):
        need_own_outbox(one, command="prune")
        with connect_source(one, command="prune", grant="outbox_bridge", writes=True) as connection:
            pruned = prune_outbox(connection, one.source.retention, dry_run=dry_run)
            if not dry_run:
                fold(connection)
        would = "would be " if dry_run else ""
        of = f"source {one.source_name}: " if config.sources else ""
        click.echo(f"{of}{pruned.deleted} events {would}deleted")
        click.echo(f"{of}{pruned.emptied} events with idempotency keys {would}emptied: they stay 35 days")
        if pruned.stopped:
            click.echo(f"{of}stopped, because {pruned.stopped}")
