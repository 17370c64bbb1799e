"""`bridge test`: run the configuration's own tests, offline."""

from __future__ import annotations

import sys
from pathlib import Path

import rich_click as click

from bridge.cli.options import config_option, read_config
from bridge.config.testing import run_cases


@click.command()
@config_option
@click.option("-k", "--only", "only", default="", help="Run only tests whose name contains this text.")
def test(config_path: Path, only: str) -> None:
    """Run the configuration's `tests:` without connecting to anything.

    Each test sends one event through its pipeline. Prints one line per unmet expectation. Exit code 1 if a test
    fails or there is none to run.
    """
    trials = [trial for trial in run_cases(read_config(config_path, offline=True)) if only in trial.name]
    for trial in trials:
        click.echo(f"{'FAIL' if trial.differences else 'ok  '}  {trial.name}")
        for difference in trial.differences:
            click.echo(f"        {difference}")
    failed = sum(bool(trial.differences) for trial in trials)
    if not trials:
        click.echo(f"{config_path} has no such test; add one under tests:", err=True)
    else:
        click.echo(f"{len(trials) - failed} passed, {failed} failed", err=True)
    sys.exit(1 if failed or not trials else 0)
