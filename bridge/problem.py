"""One problem of the file, with its position and a suggestion. Reading, models, names, steps, sinks and lint report in
one form: `file:line:col: path: message`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from bridge.errors import ConfigError

KeyPath = tuple[str | int, ...]
"""The way to a value from the top: ("pipelines", "hits", "steps", 0, "filter")."""


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Line and column in the file, both from 1."""

    line: int
    column: int


TOP = Position(1, 1)
Level = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Remark:
    """Lint's message for a path; the position is added later. key: about the key, not the value. name: of the rule,
    which stays (docs/configuration.md, "Findings"); a finding can be allowed by it."""

    level: Level
    path: KeyPath
    message: str
    fix: str = ""
    key: bool = False
    name: str = "invalid"


@dataclass(frozen=True, slots=True)
class Problem:
    """One error of the file. `hint`: the fix, if one is known. Neither contains a value from a variable. `name`: of
    lint's rule, if one was broken."""

    position: Position
    path: KeyPath
    message: str
    hint: str = ""
    name: str = ""

    def text(self, file: str) -> str:
        """`bridge.yaml:12:7: source.slto: unknown key; did you mean slot?`"""
        where = f"{file}:{self.position.line}:{self.position.column}: "
        path = f"{format_path(self.path)}: " if self.path else ""
        name = f" [{self.name}]" if self.name else ""
        return f"{where}{path}{self.message}{f'; {self.hint}' if self.hint else ''}{name}"


class InvalidConfig(ConfigError):
    """The configuration file has errors. `problems` has each, in the order of the file."""

    reason = "config"

    def __init__(self, file: str, problems: Iterable[Problem], *, unreadable: bool = False) -> None:
        self.unreadable = unreadable  # there is no file to speak of
        self.problems = tuple(sorted(problems, key=lambda problem: problem.position))
        count = len(self.problems)
        lines = [problem.text(file) for problem in self.problems]
        super().__init__(
            "\n  ".join([f"{file} has {count} error{'s' if count > 1 else ''}", *lines]),
        )


def format_path(path: KeyPath) -> str:
    """`pipelines.hits.steps[0].filter`"""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def nearest(word: str, candidates: Iterable[str]) -> str:
    """`did you mean slot?`, or nothing if no candidate is similar."""
    names = sorted(set(candidates))
    by_lower = {name.lower(): name for name in reversed(names)}
    close = get_close_matches(word.lower(), list(by_lower), n=1, cutoff=0.6)
    return f"did you mean {by_lower[close[0]]}?" if close else ""


def suggestion(word: str, candidates: Iterable[str]) -> str:
    """As `nearest`; where no candidate is near, all of them."""
    names = sorted(candidates)
    return nearest(word, names) or (f"available: {', '.join(names)}" if names else "there is none")
