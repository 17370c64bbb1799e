"""Expressions: `$event.used / $event.limit >= 0.9`, compiled once, evaluated per event.

A lone path needs no engine and no closure: the planner reads `plain_path` by columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from math import isfinite
from typing import Any

from minijinja import Environment, TemplateError

from bridge.core.expressions.columnar import Column
from bridge.core.expressions.grammar import Parser
from bridge.core.expressions.operators import MISSING, Refused
from bridge.core.expressions.path import Path, Reader, follow
from bridge.core.expressions.sandbox import numbers_only, sandbox
from bridge.core.expressions.tokens import ExpressionSyntaxError, path_of, tokens_of
from bridge.core.failure import ExpressionFailure

__all__ = ["Expression", "ExpressionSyntaxError", "compile_expression", "environment", "plain_path_of"]

_WORDS = {
    "UndefinedError": "a field is missing",
    "InvalidOperation": "the operation has no result for these kinds of values",
    "OutOfFuel": "it takes too long",
    "UnknownFilter": "no such filter",
    "UnknownTest": "no such test",
    "UnknownFunction": "no such function",
    "UnknownMethod": "no such method",
}


def words_of(error: Exception) -> str:
    """The kind of an engine error in words. Its own message holds values and is never passed on."""
    kind = getattr(error, "kind", None) or type(error).__name__
    return _WORDS.get(kind, kind)


@cache
def environment() -> Environment:
    """The engine, with a limit on work and nothing of the process within reach."""
    return sandbox()


def _engine(text: str, variables: Mapping[str, Path]) -> Reader:
    """Compile-time check of a span for minijinja; gives the closure that runs it."""
    engine = environment()
    text = numbers_only(text)  # ValueError: said as one that cannot be read
    try:
        free = engine.undeclared_variables_in_str("{{ " + text + " }}") - set(variables) - {"range", "dict"}
    except TemplateError as error:
        raise ValueError(text) from error
    if free:
        raise ValueError(text)
    try:
        engine.eval_expr(text)
    except TemplateError as error:
        if error.kind in ("UnknownFilter", "UnknownTest", "UnknownFunction"):
            raise ValueError(text) from error
    paths = tuple(variables.items())

    def evaluate(context: Mapping[str, Any]) -> Any:
        values = {name: follow(context, path) for name, path in paths}
        return engine.eval_expr(text, **{n: v for n, v in values.items() if v is not MISSING})

    return evaluate


@dataclass(frozen=True, slots=True)
class Expression:
    """names: the dotted paths it reads. plain_path: set when it is nothing but one path."""

    source: str
    names: frozenset[str]
    plain_path: Path | None
    _read: Reader
    column: Column | None = None
    """The same over whole lists, where it has such a form; raises NotPlain for values that want more care."""

    @property
    def roots(self) -> frozenset[str]:
        """First segments of the names: event, meta, an enrichment, a name of `set`."""
        return frozenset(name.partition(".")[0] for name in self.names)

    def evaluate(self, context: Mapping[str, Any]) -> Any:
        """The value for a context (root -> value), None for a lone path that leads nowhere.

        Raises ExpressionFailure naming the expression and the operand, never a value.
        """
        try:
            value = self._read(context)
        except Refused as refused:
            raise ExpressionFailure(f"expression {self.source!r}: {refused}") from None
        except TemplateError as error:
            raise ExpressionFailure(f"expression {self.source!r}: {words_of(error)}") from None
        except (ArithmeticError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ExpressionFailure(f"expression {self.source!r}: {type(error).__name__}") from None
        if value is MISSING:
            return None
        if value.__class__ is float and not isfinite(value):
            raise ExpressionFailure(f"expression {self.source!r}: the result is not a finite number")
        return value


def compile_expression(source: str) -> Expression:
    """Read an expression as it stands in a configuration; raises ExpressionSyntaxError."""
    if not isinstance(source, str):
        value = source
        if not isinstance(value, bool | int | float | Decimal | None):
            raise ExpressionSyntaxError(f"not an expression: {type(source).__name__}", 0)
        return Expression(str(source), frozenset(), None, lambda _context: value)
    parser = Parser(source, _engine)
    read = parser.read()
    names = frozenset(".".join(path) for path in parser.paths)
    return Expression(source, names, plain_path_of(source), read, parser.columns.get(read))


def plain_path_of(source: str) -> Path | None:
    """The path, when the whole text is one."""
    tokens = tokens_of(source)
    if len(tokens) == 2 and tokens[0].kind == "path":
        return path_of(tokens[0].text)
    return None
