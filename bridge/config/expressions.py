"""What lint needs to know of expressions, templates and values without running them."""

from __future__ import annotations

import re
from typing import Any

from bridge.core.expressions.expression import compile_expression
from bridge.core.expressions.tokens import ExpressionSyntaxError, Token, tokens_of
from bridge.core.source import classify, names_of

_PATH = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*)")
_ARITHMETIC = {"+", "-", "*", "/", "//", "%", "**"}
_NO_NUMBER = {"==", "!=", "<", "<=", ">", ">=", "and", "or", "not", "in", "~"}


def tokens(expression: str) -> list[Token]:
    """The pieces of an expression; none when it cannot be cut into any."""
    try:
        return tokens_of(expression)[:-1]
    except ExpressionSyntaxError:
        return []


def expression_names(expression: str) -> frozenset[str]:
    """The dotted names an expression reads, without their dollar. ConfigError when it cannot be read."""
    return compile_expression(expression).names


def value_names(value: Any) -> frozenset[str]:
    """The dotted names that a value reads: an expression, a template, or either inside lists and objects."""
    return names_of(classify(value))


def is_expression(value: Any) -> bool:
    """Is a value, where values stand, an expression?"""
    return isinstance(value, str) and _PATH.match(value) is not None


def paths_in_text(text: str) -> list[str]:
    """`$name.field` inside a text that is no expression, where they are only text."""
    return _PATH.findall(text.replace("$$", ""))


def has_arithmetic(expression: str) -> bool:
    """Is its result reckoned, and so a float64? (A comparison's is not a number.)"""
    words = {token.text for token in tokens(expression) if token.kind in ("operator", "name")}
    return bool(words & _ARITHMETIC) and not words & _NO_NUMBER
