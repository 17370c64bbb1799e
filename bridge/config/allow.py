"""Findings of lint that a person has allowed: by a comment in the file, `# lint: allow NAME reason`, on the line of the
finding or above it, or by `--allow-lint NAME`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import yaml

from bridge.problem import Position

_COMMENT = re.compile(r"(?:^|(?<=\s))#\s*lint:\s*allow\b[ \t]*(?P<name>[\w-]*)[ \t:,-]*(?P<reason>.*)")


# fmt: off
RULES = frozenset(
    {
        "unknown-name", "later-name", "unknown-meta", "unknown-field", "field-of-value", "lookup-column",
        "entity-field", "unlike-values", "no-number", "never-equal", "zero-divisor", "unknown-column",
        "column-type", "column-words", "unknown-event", "unreachable-branch", "table-without-schema",
        "upsert-without-key", "unmapped-key", "empty-message", "invalid-message", "undefined-property",
        "no-digest", "waits-too-long", "untyped-test", "may-be-absent", "field-of-some",
        "may-divide-by-zero", "float64", "dollar-in-text", "missing-dollar", "no-template",
        "unknown-redaction", "nullable-key", "log-without-slot",
        "unordered-upsert", "idle-key", "weak-tls", "same-database", "unset-variable",
        "unused-connection", "unused-source", "unused-event", "unused-entity", "unkept-entity", "unused-webhook",
        "unreached-destination", "old-snapshot", "unused-allow", "allow-without-reason", "invalid",
        "syntax",
    }
)
# fmt: on
"""Every name that a finding can have (docs/lint.md)."""


@dataclass(frozen=True, slots=True)
class Allow:
    """A comment. line: of the value that it is about."""

    name: str
    reason: str
    position: Position
    line: int


def allows_of(text: str, scanner: type) -> list[Allow]:
    """The comments of a YAML text that can be parsed. scanner: of its tokens; a `#` inside a value is no comment."""
    lines = text.splitlines()
    found = [(number, match) for number, line in enumerate(lines) for match in _COMMENT.finditer(line)]
    if not found:
        return []
    values = list(_values(text, scanner))
    allows = []
    for number, match in found:
        place = (number, match.start())
        if any(begin <= place < end for begin, end in values):
            continue
        about = number
        while lines[about].lstrip().startswith("#") and about + 1 < len(lines):
            about += 1
        position = Position(number + 1, match.start() + 1)
        allows.append(Allow(match["name"], match["reason"].strip(), position, about + 1))
    return allows


def _values(text: str, scanner: type) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """(line, column) of the begin and the end of each value and key. A block's first line may have a comment."""
    reading = scanner(text)
    while reading.check_token():
        token = reading.get_token()
        if isinstance(token, yaml.ScalarToken):
            begin, end = token.start_mark, token.end_mark
            first = (begin.line + 1, 0) if token.style in ("|", ">") else (begin.line, begin.column)
            yield first, (end.line, end.column)
