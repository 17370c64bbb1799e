"""What lint needs to know of expressions, templates and values without running them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_TOKEN = re.compile(
    rf"""(?P<path>\${_NAME}(?:\.(?:{_NAME}|\d+))*)
       | (?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
       | (?P<number>\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?)
       | (?P<name>{_NAME})
       | (?P<operator>==|!=|<=|>=|//|\*\*|[^\s\w])""",
    re.VERBOSE | re.DOTALL,
)
_TEMPLATE_NAME = re.compile(rf"\{{\{{-?\s*({_NAME}(?:\.{_NAME})*)")


class Token(NamedTuple):
    """A piece of an expression: kind is path, string, number, name or operator."""

    kind: str
    text: str


def tokens(expression: str) -> list[Token]:
    """The pieces of an expression."""
    return [Token(str(match.lastgroup), match.group()) for match in _TOKEN.finditer(expression)]


def expression_names(expression: str) -> frozenset[str]:
    """The dotted names an expression reads, without their dollar. ConfigError when it cannot be read."""
    return frozenset(token.text[1:] for token in tokens(expression) if token.kind == "path")


def is_expression(value: Any) -> bool:
    """Is a value, where values stand, an expression?"""
    return isinstance(value, str) and re.match(rf"\${_NAME}", value) is not None


def value_names(value: Any) -> frozenset[str]:
    """The dotted names that a value reads: an expression, a template, or either inside lists and objects."""
    return frozenset(name for text in _texts(value) for name in _names_in(text))


def _names_in(text: str) -> frozenset[str]:
    if is_expression(text):
        return expression_names(text)
    return frozenset(_TEMPLATE_NAME.findall(text)) if "{{" in text else frozenset()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def has_arithmetic(expression: str) -> bool:
    """Does it reckon? Then its result is a float64."""
    return any(token.kind == "operator" and token.text in _ARITHMETIC for token in tokens(expression))


_ARITHMETIC = {"+", "-", "*", "/", "//", "%", "**"}
