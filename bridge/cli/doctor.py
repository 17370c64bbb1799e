"""`bridge doctor`: one line per check, and the fix of each finding."""

from __future__ import annotations

import json
import os
import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from bridge.cli.options import allow_lint_option, config_option

if TYPE_CHECKING:
    from bridge.doctor.check import Check

_COLORS = {"ok": "green", "warn": "yellow", "error": "red"}
_RUN_WHERE = {"command": "run", "config": "in bridge.yaml", "advice": "fix", "": "fix"}


@click.command(panel="Check")
@config_option
@allow_lint_option
@click.option(
    "--network", is_flag=True, help="Also test the network path: addresses, ports, TLS, round trips."
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def doctor(config_path: Path, allow_lint: tuple[str, ...], network: bool, as_json: bool) -> None:
    """Check every precondition on every server, and print the fix of each finding.

    Changes nothing. Exit code 0 without errors (there may be warnings), 1 with errors, 2 for the configuration, 3 if
    a server cannot be reached.
    """
    from bridge.config.lint import examined  # noqa: PLC0415  (pydantic: `--help` needs none)
    from bridge.doctor.examine import examine  # noqa: PLC0415  (loads psycopg)
    from bridge.doctor.findings import of_file  # noqa: PLC0415

    config, findings = examined(config_path, os.environ, allow_lint)
    checks: list[Check] = []
    for check in chain(of_file(config_path, findings), examine(config, network=network)):
        checks.append(check)
        if not as_json:
            _show(check)
    counts = {level: sum(one.level == level for one in checks) for level in ("error", "warn", "ok")}
    if as_json:
        rows = [one.as_dict() for one in checks]
        click.echo(json.dumps({"ok": not counts["error"], "counts": counts, "checks": rows}, indent=2))
    else:
        click.echo(f"\n{counts['error']} errors, {counts['warn']} warnings, {counts['ok']} ok")
    if any(one.unreachable for one in checks):
        sys.exit(3)
    sys.exit(1 if counts["error"] else 0)


def _show(check: Check) -> None:
    level = click.style(f"{check.level:<5}", fg=_COLORS[check.level])
    click.echo(f"{level}  {check.where}: {check.check}: {check.message}")
    if check.fix:
        how = f"run at {check.where}" if check.kind == "sql" else _RUN_WHERE[check.kind]
        first, *more = check.fix.splitlines()
        click.echo(f"         {how}: {first}")
        for line in more:
            click.echo(f"         {' ' * len(how)}  {line}")
