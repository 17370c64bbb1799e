"""`bridge doctor`: one line per check, and the fix of each finding."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from bridge.cli.options import allow_lint_option, config_option, read_config, source_option

if TYPE_CHECKING:
    from bridge.doctor.check import Check

_COLORS = {"ok": "green", "warn": "yellow", "error": "red"}
_RUN_WHERE = {"command": "run", "config": "in bridge.yaml", "advice": "fix", "": "fix"}


@click.command(panel="Check")
@config_option
@source_option
@allow_lint_option
@click.option(
    "--network", is_flag=True, help="Also test the network path: addresses, ports, TLS, round trips."
)
@click.option(
    "--snapshot",
    "write_snapshot",
    is_flag=True,
    help="Write what the servers say of the columns beside the file, for `bridge lint`.",
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def doctor(
    config_path: Path, allow_lint: tuple[str, ...], network: bool, write_snapshot: bool, as_json: bool
) -> None:
    """Check every precondition on every server, and print the fix of each finding.

    Changes nothing. What `bridge lint` finds is told too, and what it cannot know: fields that a lookup's SQL does not
    select, values that a column cannot hold. Exit code 0 without errors (there may be warnings), 1 with errors, 2 for
    the configuration, 3 if a server cannot be reached.
    """
    from bridge.config import snapshot  # noqa: PLC0415  (pydantic: `--help` needs none)
    from bridge.doctor.examine import examine  # noqa: PLC0415  (loads psycopg)
    from bridge.doctor.findings import FileLint, ask  # noqa: PLC0415

    config = read_config(config_path)
    file = FileLint(config.original, os.environ, allow_lint)
    used = Path(config.original.file)  # another one, if it is the running bridge's
    checks: list[Check] = []

    def told(found: Iterable[Check]) -> None:
        for check in found:
            checks.append(check)
            if not as_json:
                _show(check)

    told(_unusable(config_path))
    told(file.first())
    told(examine(config, network=network))
    facts, complete = ask(config, checks)
    if write_snapshot and complete:
        snapshot.write(facts, path := snapshot.snapshot_of(used))
        click.echo(f"{path}: written, to be committed with {used.name}", err=True)
    elif write_snapshot:
        told([_no_snapshot()])
    told(file.joined(facts, checks))
    counts = {level: sum(one.level == level for one in checks) for level in ("error", "warn", "ok")}
    if as_json:
        rows = [one.as_dict() for one in checks]
        click.echo(json.dumps({"ok": not counts["error"], "counts": counts, "checks": rows}, indent=2))
    else:
        click.echo(f"\n{counts['error']} errors, {counts['warn']} warnings, {counts['ok']} ok")
    if any(one.unreachable for one in checks):
        sys.exit(3)
    sys.exit(1 if counts["error"] else 0)


def _unusable(path: Path) -> list[Check]:
    """What is wrong with the file itself, while the running bridge's configuration is checked instead."""
    from bridge.config.load import load  # noqa: PLC0415  (pydantic: `--help` needs none)
    from bridge.doctor.findings import of_problem  # noqa: PLC0415
    from bridge.problem import InvalidConfig  # noqa: PLC0415

    try:
        load(path, os.environ, offline=True)
    except InvalidConfig as invalid:
        if not invalid.unreadable:  # perhaps only for this user, or in this directory
            return [of_problem(path, problem) for problem in invalid.problems]
    return []


def _no_snapshot() -> Check:
    from bridge.doctor.check import Check  # noqa: PLC0415

    message = "no snapshot is written: not every lookup and table could be asked"
    return Check("error", "bridge", "snapshot", message, "correct what is wrong above, then again", "advice")


def _show(check: Check) -> None:
    level = click.style(f"{check.level:<5}", fg=_COLORS[check.level])
    click.echo(f"{level}  {check.where}: {check.check}: {check.message}")
    if check.fix:
        how = f"run at {check.where}" if check.kind == "sql" else _RUN_WHERE[check.kind]
        first, *more = check.fix.splitlines()
        click.echo(f"         {how}: {first}")
        for line in more:
            click.echo(f"         {' ' * len(how)}  {line}")
