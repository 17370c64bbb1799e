"""`bridge worker`: a part of the daemon, where the configuration has a log."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import rich_click as click

from bridge.cli.options import (
    allow_lint_option,
    allow_storm_option,
    config_option,
    log_level_option,
    read_checked,
    read_to_start,
    require_log,
    streams_option,
)


@click.command(panel="Run and watch")
@config_option
@allow_lint_option
@log_level_option
@allow_storm_option
@streams_option
def worker(
    config_path: Path,
    allow_lint: tuple[str, ...],
    log_level: str,
    allow_storm: bool,
    streams: tuple[str, ...],
) -> None:
    """Apply partitions of the events in the log of `scale.log`, until SIGTERM.

    The workers that run this file divide the partitions fairly; when one dies the others take over its own. `bridge
    relay` fills the log.
    """
    from bridge.daemon import Part, run_daemon  # noqa: PLC0415  `bridge --help` must not import everything
    from bridge.observe.logs import configure  # noqa: PLC0415

    configure(log_level)
    config = require_log(read_to_start(config_path, allow_lint))
    run_daemon(
        config,
        partial(read_checked, config_path, allow_lint),
        guarded=not allow_storm,
        only=streams,
        parts=Part.WORKER,
    )
