"""`bridge worker`: a part of the daemon, where the configuration has a log."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import rich_click as click

from bridge.cli.options import allow_lint_option, config_option, read_checked, read_to_start, require_log


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
