"""Tokens of an expression, and the closures it is made of: each takes a context and gives a value or MISSING.

A `$path` with its segments is one token. A refusal names its operands as they stand in the source, never their
values.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bridge.errors import ConfigError
from bridge.expressions.operators import (
    MISSING,
    PLAIN_NUMBERS,
    NoAnswer,
    Path,
    Reader,
    comparable,
    contains,
    same,
)

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
    """An expression cannot be parsed. `offset`: the position, in characters from its start."""

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
    """All tokens, the last of kind `end`. Raises ExpressionSyntaxError."""
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
                f"'$$' is a literal dollar, which is not allowed in an expression: {source!r}", token.start
            )
        tokens.append(token)
        if kind == "end":
            return tokens
        position = match.end()


_ORDERS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class Constant:
    """A closure with a constant value."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, _context: Mapping[str, Any]) -> Any:
        return self.value


def guard(node: Reader, label: str) -> Reader:
    """A condition's truth: a Refused names the operand."""

    def test(context: Mapping[str, Any]) -> Any:
        value = node(context)
        if value is MISSING:
            raise NoAnswer(f"{label} is missing")
        return value

    return test


def named(operate: Callable[..., Any], values: tuple[Any, ...], labels: tuple[str, ...]) -> Any:
    """Run an operator; a refusal names the operands as they were written, never their values."""
    try:
        return operate(*values)
    except NoAnswer as refused:
        for value, label in zip(values, labels, strict=True):
            if value is MISSING:
                raise NoAnswer(f"{label} is missing") from None
        raise NoAnswer(f"{' and '.join(labels)}: {refused}") from None


def negation(test: Reader) -> Reader:
    return lambda context: not test(context)


def choose(condition: Reader, then: Reader, otherwise: Reader) -> Reader:
    return lambda context: then(context) if condition(context) else otherwise(context)


def either(left: Reader, right: Reader) -> Reader:
    return lambda context: left(context) or right(context)


def both(left: Reader, right: Reader) -> Reader:
    return lambda context: left(context) and right(context)


def calculate(
    operate: Callable[[Any, Any], Any], left: Reader, right: Reader, left_label: str, right_label: str
) -> Reader:
    labels = (left_label, right_label)
    return lambda context: named(operate, (left(context), right(context)), labels)


def compare(  # noqa: PLR0917  an operator, its two sides and what they are called
    word: str, inverted: bool, left: Reader, right: Reader, left_label: str, right_label: str
) -> Reader:
    labels = (left_label, right_label)
    if word == "in":
        if isinstance(right, Constant) and isinstance(right.value, list):
            texts = frozenset(item for item in right.value if isinstance(item, str))

            def within(context: Mapping[str, Any]) -> bool:
                value = left(context)
                if value.__class__ is str:
                    return (value in texts) is not inverted
                return named(contains, (value, right(context)), labels) is not inverted

            return within
        return lambda context: named(contains, (left(context), right(context)), labels) is not inverted
    if word in ("==", "!="):
        wanted = word == "=="

        def equal(context: Mapping[str, Any]) -> bool:
            a, b = left(context), right(context)
            if a.__class__ is str and b.__class__ is str:
                return (a == b) is wanted
            return named(same, (a, b), labels) is wanted

        return equal
    order = _ORDERS[word]

    def ordered(context: Mapping[str, Any]) -> bool:
        a, b = left(context), right(context)
        if a.__class__ in PLAIN_NUMBERS and b.__class__ in PLAIN_NUMBERS:
            return order(a, b)  # type: ignore[no-any-return]  # two numbers
        a, b = named(comparable, (a, b), labels)
        return order(a, b)  # type: ignore[no-any-return]  # what comparable() gives is ordered

    return ordered
