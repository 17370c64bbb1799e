"""`bridge run`: the daemon."""

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
    streams_option,
)


@click.command(panel="Run and watch")
@config_option
@allow_lint_option
@log_level_option
@allow_storm_option
@streams_option
def run(
    config_path: Path,
    allow_lint: tuple[str, ...],
    log_level: str,
    allow_storm: bool,
    streams: tuple[str, ...],
) -> None:
    """Run the bridge until SIGTERM. SIGHUP reads the configuration again.

    What `bridge lint` calls an error stops the start (exit code 2) and refuses a reload. Warnings are logged.
    """
    from bridge.daemon import run_daemon  # noqa: PLC0415  `bridge --help` must not import everything
    from bridge.observe.logs import configure  # noqa: PLC0415

    configure(log_level)
    config = read_to_start(config_path, allow_lint)
    run_daemon(config, partial(read_checked, config_path, allow_lint), guarded=not allow_storm, only=streams)
