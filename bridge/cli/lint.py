"""`bridge lint`: check the configuration offline."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import rich_click as click

from bridge.cli.options import allow_lint_option, config_option
from bridge.config.lint import lint as findings_of


@click.command(panel="Check")
@config_option
@allow_lint_option
@click.option("--strict", is_flag=True, help="Exit 1 for warnings too.")
def lint(config_path: Path, allow_lint: tuple[str, ...], strict: bool) -> None:
    """Check the configuration without connecting to anything.

    Prints findings as file:line:col: level: path: message; fix [name]. `bridge run` starts with none of the errors.
    A finding is allowed by its name: here, or in the file by a comment, `# lint: allow NAME reason`. Exit code 1 with
    errors (or, with --strict, warnings), 2 if the file does not exist.
    """
    findings = findings_of(config_path, os.environ, allow_lint)
    for finding in findings:
        click.echo(finding.text(str(config_path)))
    errors = sum(finding.level == "error" for finding in findings)
    warnings = len(findings) - errors
    if findings:
        click.echo(f"{_count(errors, 'error')}, {_count(warnings, 'warning')}", err=True)
    else:
        click.echo(f"{config_path}: no findings", err=True)
    sys.exit(1 if errors or (strict and warnings) else 0)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
