"""What is wrong, or likely to be, in a configuration that may load: each finding with its place and mend.

Offline: nothing is connected to, and a variable that is not set here is only a warning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bridge.config.document import Document, read
from bridge.config.lint_expressions import check_expressions
from bridge.config.lint_messages import check_messages
from bridge.config.lint_structure import check_structure
from bridge.config.load import build
from bridge.config.problem import InvalidConfig, KeyPath, Level, Position, format_path


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing lint has to say. `fix` is the mend, where one is known."""

    level: Level
    position: Position
    path: KeyPath
    message: str
    fix: str = ""

    def text(self, file: str) -> str:
        """`bridge.yaml:12:7: error: pipelines.hits: ...; did you mean ...?`"""
        where = f"{file}:{self.position.line}:{self.position.column}: {self.level}: "
        path = f"{format_path(self.path)}: " if self.path else ""
        return f"{where}{path}{self.message}{f'; {self.fix}' if self.fix else ''}"


def lint(path: Path, environ: Mapping[str, str]) -> list[Finding]:
    """Every finding of the file at `path`, in its order. InvalidConfig when it cannot be opened or read."""
    try:
        document = read(path, environ)
    except InvalidConfig as invalid:
        if invalid.unreadable:
            raise
        return [Finding("error", p.position, p.path, p.message, p.hint) for p in invalid.problems]
    return sorted(_findings(document), key=lambda finding: finding.position)


def _findings(document: Document) -> Iterator[Finding]:
    config = build(document, offline=True)
    for problem in document.problems:
        yield Finding("error", problem.position, problem.path, problem.message, problem.hint)
    for path, message in document.unset:
        yield Finding("warning", document.position(path), path, message)
    if config is None:
        return
    for remark in (*check_structure(config), *check_messages(config), *check_expressions(config)):
        position = document.position(remark.path, key=remark.key)
        yield Finding(remark.level, position, remark.path, remark.message, remark.fix)
