"""`bridge run`: the daemon."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from bridge.cli.options import config_option, read_own_config


@click.command(panel="Run and watch")
@config_option
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
def run(config_path: Path, log_level: str, allow_storm: bool) -> None:
    """Run the bridge until SIGTERM. SIGHUP reads the configuration again."""
    from bridge.daemon import run_daemon  # noqa: PLC0415  `bridge --help` must not import everything
    from bridge.observe.logs import configure  # noqa: PLC0415

    configure(log_level)
    run_daemon(config_path, read_own_config, guarded=not allow_storm)
