"""`bridge prove`: compare source and target by counts and hashes."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path

import rich_click as click

from bridge.cli.options import Moment, config_option, read_config, source_option


@click.command(panel="Check")
@config_option
@source_option
@click.option("--since", type=Moment(), help="Only events since this time (or a duration ago, such as 24h).")
@click.option("--until", type=Moment(), help="Only events before this time.")
@click.option("--pipeline", help="Only what this pipeline writes.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def prove(
    config_path: Path,
    since: datetime | None,
    until: datetime | None,
    pipeline: str | None,
    as_json: bool,
) -> None:
    """Compare source and target: which events were lost, duplicated, or differ.

    It only reads, and the bridge may run. Exit code 0: no difference. 1: differences, or the comparison was not
    possible. 3: a server cannot be reached.
    """
    from bridge.operate.names import check_pipeline  # noqa: PLC0415  `bridge --help` must not import everything
    from bridge.plans import stream_plans  # noqa: PLC0415
    from bridge.prove.run import prove as compare  # noqa: PLC0415

    config = read_config(config_path)
    plans = stream_plans(config)
    check_pipeline(plans, pipeline)
    report = compare(
        plans,
        since=since,
        until=until,
        pipeline=pipeline,
    )
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.as_text())
    sys.exit(1 if report.differences else 0)
