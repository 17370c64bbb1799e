"""`bridge scale`: a log between one reader and many."""

from __future__ import annotations

import rich_click as click

from bridge.cli.repartition import repartition
from bridge.cli.scale_plan import plan
from bridge.cli.scale_status import status


@click.group(panel="Repair")
def scale() -> None:
    """What runs over a log, and into how many partitions."""


for command in (plan, status, repartition):
    scale.add_command(command)
