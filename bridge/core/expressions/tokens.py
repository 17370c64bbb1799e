"""Cut an expression into tokens. A `$path` with its segments is one of them.

Apart from the grammar, because whoever asks only for the paths in a text needs no more than this.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from bridge.core.expressions.path import Path
from bridge.errors import ConfigError

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_TOKENS = re.compile(
    rf"""\s*(?:
      (?P<path>\$\$?{_NAME}(?:\.(?:{_NAME}|\d+)(?![A-Za-z0-9_]|\s*\()|\[(?:-?\d+|'[^'\\]*'|"[^"\\]*")\])*)
    | (?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    | (?P<number>(?:0[xXbBoO][0-9a-fA-F_]+|\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?))
    | (?P<name>{_NAME})
    | (?P<operator>==|!=|<=|>=|//|\*\*|[-+*/%~<>()\[\]{{}},.:|=])
    | (?P<end>\Z)
    )""",
    re.VERBOSE | re.DOTALL,
)
_SEGMENT = re.compile(rf"""\.({_NAME}|\d+)|\[(-?\d+|'[^']*'|"[^"]*")\]""")


class ExpressionSyntaxError(ConfigError):
    """An expression cannot be read. `offset` is where, in characters from its start."""

    reason = "expression"

    def __init__(self, message: str, offset: int, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.offset = offset


class Token(NamedTuple):
    kind: str  # path, string, number, name, operator, end
    text: str
    start: int
    end: int


def path_of(text: str) -> Path:
    """`$event.a[0]['b c']` to ("event", "a", "0", "b c")."""
    root = re.split(r"[.\[]", text[1:], maxsplit=1)[0]
    segments = [name or index.strip("'\"") for name, index in _SEGMENT.findall(text[1 + len(root) :])]
    return (root, *segments)


def tokens_of(source: str) -> list[Token]:
    """All tokens, the last of kind `end`; raises ExpressionSyntaxError at what is none."""
    tokens: list[Token] = []
    position = 0
    while True:
        match = _TOKENS.match(source, position)
        if match is None or match.lastgroup is None:
            rest = len(source[position:]) - len(source[position:].lstrip())
            raise ExpressionSyntaxError(
                f"unexpected {source[position + rest]!r} in expression {source!r}", position + rest
            )
        kind = match.lastgroup
        token = Token(kind, match.group(kind), match.start(kind), match.end(kind))
        if token.text.startswith("$$"):
            raise ExpressionSyntaxError(
                f"'$$' is a literal dollar, which an expression has no use for: {source!r}", token.start
            )
        tokens.append(token)
        if kind == "end":
            return tokens
        position = match.end()
