"""The one validator: what is wrong, or likely to be, in a configuration, each finding with its place, fix and name.

`bridge lint` prints the findings. `run`, `doctor` and a reload ask the same: an error stops them (checked()), a warning
is told. Offline: nothing is connected to; what is known of the servers stands in a snapshot beside the file
(snapshot.py). What leads where is judged in lint_structure.py; expressions, in lint_expressions.py and lint_values.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bridge.config import snapshot
from bridge.config.document import Document, read
from bridge.config.lint_expressions import check_expressions
from bridge.config.lint_structure import check_structure
from bridge.config.load import build, config_of
from bridge.config.model import Config
from bridge.config.snapshot import ALTERED_SINCE, UNKNOWN, Facts
from bridge.problem import (
    TOP,
    InvalidConfig,
    KeyPath,
    Level,
    Position,
    Problem,
    Remark,
    format_path,
    nearest,
)

ALWAYS = frozenset({"invalid", "syntax"})
"""Nothing could run with these, so nothing allows them."""


@dataclass(frozen=True, slots=True)
class LintFinding:
    """One finding of lint. `fix`: the fix, if one is known. name: of the rule, to allow it by."""

    level: Level
    position: Position
    path: KeyPath
    message: str
    fix: str = ""
    name: str = "invalid"

    def text(self, file: str) -> str:
        """`bridge.yaml:12:7: error: pipelines.hits: ...; did you mean ...? [unknown-name]`"""
        where = f"{file}:{self.position.line}:{self.position.column}: {self.level}: "
        path = f"{format_path(self.path)}: " if self.path else ""
        return f"{where}{path}{self.message}{f'; {self.fix}' if self.fix else ''} [{self.name}]"


def lint(path: Path, environ: Mapping[str, str], allow: Collection[str] = ()) -> list[LintFinding]:
    """Every finding of the file at `path` that nothing allows, in the file's order. allow: names, beside the file's
    own comments. Raises InvalidConfig if it cannot be opened or read."""
    try:
        document = read(path, environ)
    except InvalidConfig as invalid:
        if invalid.unreadable:
            raise
        return [LintFinding("error", p.position, p.path, p.message, p.hint) for p in invalid.problems]
    try:
        facts = snapshot.read(snapshot.snapshot_of(path))
    except InvalidConfig as invalid:
        return [LintFinding("error", p.position, p.path, p.message, p.hint) for p in invalid.problems]
    return _judged(document, build(document, offline=True), allow, facts)


def checked(
    path: Path, environ: Mapping[str, str], allow: Collection[str] = ()
) -> tuple[Config, list[LintFinding]]:
    """The configuration to run, and its warnings. Raises InvalidConfig with every error."""
    document = read(path, environ)
    config, findings = examined(document, allow, snapshot.read(snapshot.snapshot_of(path)))
    errors = [one for one in findings if one.level == "error"]
    if errors:
        problems = [Problem(one.position, one.path, one.message, one.fix, one.name) for one in errors]
        raise InvalidConfig(str(path), problems)
    return config, findings


def examined(document: Document, allow: Collection[str], known: Facts) -> tuple[Config, list[LintFinding]]:
    """The configuration, and its findings, errors too. document: as it was read, not built yet. known: of the servers.
    Raises InvalidConfig where it is no configuration."""
    config = config_of(document)
    return config, _judged(document, config, allow, known)


def _judged(
    document: Document, config: Config | None, allow: Collection[str], facts: Facts
) -> list[LintFinding]:
    findings = [
        replace(one, message=document.masked(one.path, one.message), fix=document.masked(one.path, one.fix))
        for one in _findings(document, config, facts)
    ]
    kept = list(_not_allowed(document, findings, allow)) if config is not None else findings
    return sorted(kept, key=lambda finding: finding.position)


def _findings(document: Document, config: Config | None, facts: Facts) -> Iterator[LintFinding]:
    for problem in document.problems:
        yield LintFinding("error", problem.position, problem.path, problem.message, problem.hint)
    for path, message in document.unset:
        yield LintFinding("warning", document.position(path), path, message, name="unset-variable")
    if config is None:
        return
    for remark in (*check_structure(config), *_of_expressions(config, facts)):
        yield placed(document, remark)


def _of_expressions(config: Config, facts: Facts) -> Iterator[Remark]:
    """What only a snapshot says may be out of date, and its fix says so."""
    alone = set(check_expressions(config, UNKNOWN)) if facts.written else set()
    for remark in check_expressions(config, facts):
        if facts.written and remark not in alone and remark.name != "old-snapshot":
            yield replace(remark, fix=f"{remark.fix}; " * bool(remark.fix) + ALTERED_SINCE)
        else:
            yield remark


def placed(document: Document, remark: Remark) -> LintFinding:
    """The finding at its place in the file."""
    position = document.position(remark.path, key=remark.key)
    return LintFinding(remark.level, position, remark.path, remark.message, remark.fix, remark.name)


def _not_allowed(
    document: Document, findings: Sequence[LintFinding], allow: Collection[str]
) -> Iterator[LintFinding]:
    """The findings that nothing allows, and the allowances that no finding has."""
    in_file = {(one.line, one.name) for one in document.allows}
    used: set[tuple[int, str]] = set()
    for finding in findings:
        here = (finding.position.line, finding.name)
        used |= {here, (0, finding.name)}
        if finding.name in ALWAYS or (here not in in_file and finding.name not in allow):
            yield finding
    for one in document.allows:
        if not one.name:
            fix = "name it: # lint: allow NAME and the reason"
            yield LintFinding("warning", one.position, (), "allows nothing", fix, "unused-allow")
        elif (one.line, one.name) not in used or one.name in ALWAYS:
            message = f"allows {one.name}, which is no finding of line {one.line}"
            there = {name for line, name in used if line == one.line}
            yield LintFinding("warning", one.position, (), *_unused(one.name, message, there))
        elif not one.reason:
            fix = "write why behind the name"
            yield LintFinding("warning", one.position, (), "says no reason", fix, "allow-without-reason")
    for name in dict.fromkeys(allow):
        if (0, name) not in used or name in ALWAYS:
            message = f"--allow-lint {name}: no finding has this name"
            there = {found for line, found in used if line == 0}
            yield LintFinding("warning", TOP, (), *_unused(name, message, there))


def _unused(name: str, message: str, there: Collection[str]) -> tuple[str, str, str]:
    """Message, fix and name of the finding that an allowance has no finding."""
    if name in ALWAYS:
        return (
            f"{name} cannot be allowed: nothing could run with it",
            "correct what it is about",
            "unused-allow",
        )
    return message, nearest(name, there) or "remove it", "unused-allow"
