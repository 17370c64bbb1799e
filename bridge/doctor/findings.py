"""The findings of lint as checks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from bridge.config.lint import LintFinding
from bridge.doctor.check import Check, ok
from bridge.problem import format_path


def of_file(file: Path, findings: Sequence[LintFinding]) -> Iterator[Check]:
    """What is wrong with the file, which `bridge run` refuses as well, or that nothing is."""
    if not findings:
        yield ok("bridge", "lint", f"{file}: no findings")
    for finding in findings:
        yield of(file, finding)


def of(file: Path, finding: LintFinding) -> Check:
    """One finding, at its place in the file."""
    path = f"{format_path(finding.path)}: " if finding.path else ""
    at = finding.position
    message = f"{file}:{at.line}:{at.column}: {path}{finding.message}"
    fix = finding.fix or "correct it there"
    return Check(
        "error" if finding.level == "error" else "warn", "bridge", finding.name, message, fix, "config"
    )
