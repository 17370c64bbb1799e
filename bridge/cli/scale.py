"""`bridge scale`: a log between one reader and many."""

from __future__ import annotations

import rich_click as click

from bridge.cli.repartition import repartition


@click.group(panel="Repair")
def scale() -> None:
    """What runs over a log, and into how many partitions."""


scale.add_command(repartition)
