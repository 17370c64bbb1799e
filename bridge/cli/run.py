"""`bridge run`: the daemon."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import rich_click as click

from bridge.cli.options import allow_lint_option, config_option, read_checked, read_to_start


@click.command(panel="Run and watch")
@config_option
@allow_lint_option
@click.option(
    "--log-level",
    default="info",
    envvar="BRIDGE_LOG_LEVEL",
    show_default=True,
    help="debug, info, warning or error; environment variable BRIDGE_LOG_LEVEL.",
)
@click.option(
    "--allow-storm",
    is_flag=True,
    help="Keep writing dead letters even when most events of a destination fail.",
)
@click.option(
    "--stream",
    "streams",
    multiple=True,
    metavar="NAME",
    help="Run only this stream of the file. Repeatable.",
)
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
