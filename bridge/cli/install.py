"""`bridge install`: bring the source's schema up to date. Only the customer changes the target."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from bridge.cli.options import config_option, read_config, source_option
from bridge.config.connection import PostgresConnection


@click.command(panel="Set up")
@config_option
@source_option
@click.option(
    "--notify", is_flag=True, help="Also create a trigger that wakes a polling bridge (capture: poll)."
)
def install(config_path: Path, notify: bool) -> None:
    """Create or upgrade the outbox in the source database, and print what is left for you to run.

    Never touches a target: `bridge schema target` prints the SQL that it needs.
    """
    from bridge.config.several import each_source  # noqa: PLC0415
    from bridge.operate.connect import connect_source  # noqa: PLC0415  (loads psycopg)
    from bridge.postgres.schema import install_source  # noqa: PLC0415

    config = read_config(config_path)
    for one in each_source(config):
        with connect_source(one, command="install") as connection:
            where = f"database {connection.info.dbname} on {connection.info.host or 'the local socket'}"
            installation = install_source(connection, one.source.slot, one.source.table, notify=notify)
        click.echo(f"{'source' if not config.sources else f'source {one.source_name}'}: {where}")
        for sentence in installation.done:
            click.echo(f"  {sentence}")
        click.echo(f"  the outbox is at version {installation.version}")
        for remaining in installation.remaining:
            click.echo(f"\nleft for an administrator of the source: {remaining.reason}\n")
            click.echo(remaining.sql.rstrip())
    click.echo("\nnext:")
    click.echo("  grant outbox_producer to <your application's role>;   -- in the source")
    for name, target in config.connections.items():
        if isinstance(target, PostgresConnection):
            click.echo(f"  bridge schema target | psql ...   -- as the owner of connection {name}'s database")
    click.echo("  bridge doctor   -- checks the rest")
