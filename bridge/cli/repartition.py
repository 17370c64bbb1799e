"""`bridge scale repartition`: divide the streams into as many partitions as the file says."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from bridge.cli.options import config_option, read_config

if TYPE_CHECKING:
    from bridge.config.model import Config


@click.command()
@config_option
@click.option("--dry-run", is_flag=True, help="Say what would be done.")
def repartition(config_path: Path, *, dry_run: bool) -> None:
    """Divide the streams into as many partitions as bridge.yaml says.

    After `scale.partitions` was changed, or `scale.log` was added or taken out. Workers and relays may run meanwhile:
    they stand by for some seconds. Then give them the file: SIGHUP, or a restart. Nothing is lost and nothing is
    applied twice; what is interrupted goes on as it was, and is finished by running this again.
    """
    config = read_config(config_path)
    from bridge.config.several import each_source  # noqa: PLC0415  (loads psycopg)

    for one in each_source(config):
        _of_source(one, dry_run=dry_run)


def _of_source(config: Config, *, dry_run: bool) -> None:
    from bridge.operate.connect import connect_ledger, connect_source, target_errors  # noqa: PLC0415
    from bridge.plans import relay_plans, stream_plans  # noqa: PLC0415
    from bridge.postgres.partitions import moving  # noqa: PLC0415
    from bridge.repair.repartition import Repartition, division  # noqa: PLC0415

    wanted = config.scale.partitions if config.scale is not None and config.scale.log is not None else 0
    with (
        connect_source(config, command="repartition", grant="outbox_bridge", writes=True) as source,
        ExitStack() as stack,
        target_errors("scale repartition"),
    ):
        if not dry_run:
            stack.enter_context(moving(source, config.source.slot))
        made = Repartition(source, click.echo)
        for plan in stream_plans(config):
            with connect_ledger(plan, "repartition", writes=True, whose=False) as target:
                what = division(target, plan, wanted)
                if what is None:
                    click.echo(f"{plan.stream}: has not begun")
                elif dry_run:
                    click.echo(f"{plan.stream}: {_said(what.now)} -> {_said(what.wanted)}")
                else:
                    made.divide(target, plan, what)
        if dry_run:
            return
        for relay in relay_plans(config):
            made.relay(relay.relay, wanted)
        if not wanted:
            made.end_relays(config.source.slot)
    click.echo("done")


def _said(count: int) -> str:
    return f"{count} partitions" if count else "a slot of its own"
