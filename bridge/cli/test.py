"""`bridge test`: run the configuration's own tests, offline."""

from __future__ import annotations

import sys
from pathlib import Path

import rich_click as click

from bridge.cli.options import config_option, read_config
from bridge.config.testing import run_cases
from bridge.errors import ConfigError
from bridge.problem import suggestion


@click.command(panel="Check")
@config_option
@click.option("-k", "--only", "only", default="", help="Run only tests whose name contains this text.")
def test(config_path: Path, only: str) -> None:
    """Run the configuration's `tests:` without connecting to anything.

    Each test sends one event through its pipeline. Prints one line per unmet expectation. Exit code 1 if a test
    fails or there is none to run, 2 if no test's name has the text.
    """
    cases = list(run_cases(read_config(config_path, offline=True)))
    results = [result for result in cases if only in result.name]
    for result in results:
        click.echo(f"{'FAIL' if result.differences else 'ok  '}  {result.name}")
        for difference in result.differences:
            click.echo(f"        {difference}")
    failed = sum(bool(result.differences) for result in results)
    if not results and only and cases:
        raise ConfigError(
            f"no test has {only} in its name", hint=suggestion(only, [one.name for one in cases])
        )
    if not results:
        click.echo(f"{config_path} has no such test; add one under tests:", err=True)
    else:
        click.echo(f"{len(results) - failed} passed, {failed} failed", err=True)
    sys.exit(1 if failed or not results else 0)
