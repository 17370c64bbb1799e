"""`bridge relay`: a part of the daemon, where the configuration has a log."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import rich_click as click

from bridge.cli.options import (
    allow_lint_option,
    config_option,
    log_level_option,
    read_checked,
    read_to_start,
    require_log,
)


@click.command(panel="Run and watch")
@config_option
@allow_lint_option
@log_level_option
def relay(
    config_path: Path,
    allow_lint: tuple[str, ...],
    log_level: str,
) -> None:
    """Read each source's slot once, and put its events into the log of `scale.log`, until SIGTERM.

    `bridge worker`, on as many machines as are needed, applies them. A second relay stands by for the first.
    """
    from bridge.daemon import Part, run_daemon  # noqa: PLC0415  `bridge --help` must not import everything
    from bridge.observe.logs import configure  # noqa: PLC0415

    configure(log_level)
    config = require_log(read_to_start(config_path, allow_lint))
    run_daemon(config, partial(read_checked, config_path, allow_lint), parts=Part.RELAY)
