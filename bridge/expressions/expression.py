"""Expressions: `$event.used / $event.limit >= 0.9`, compiled once, evaluated per event.

A lone path needs no engine and no closure: the planner reads `plain_path` by columns. What the grammar hands to
minijinja runs in a sandbox. The engine's own limit (fuel) counts instructions, and one instruction can make a
gigabyte (`'x' * 10**9`, a filter with a width, a macro that doubles its argument): what could multiply a text is
left out, refused when it runs, replaced by a bounded one, or, where a loop prints, counted while it prints.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from math import isfinite
from typing import Any

from minijinja import Environment, TemplateError

from bridge.errors import ExpressionFailure
from bridge.expressions.columnar import ColumnReader
from bridge.expressions.grammar import Parser
from bridge.expressions.operators import MISSING, NoAnswer, Path, Reader, follow
from bridge.expressions.syntax import ExpressionSyntaxError, path_of, tokens_of

FUEL = 20_000  # engine instructions an evaluation may take; a handful is usual
LONGEST = 1 << 20  # characters of one text that is made
_UNWANTED_GLOBALS = ("debug", "cycler", "joiner", "namespace")
_UNWANTED_FILTERS = ("indent", "format", "batch", "slice")  # a number makes their result as large as it likes
_TAGS = {"if", "elif", "else", "endif", "for", "endfor", "set", "raw", "endraw"}
_STRING = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_PARTS = re.compile(  # what is not code; {{ code }}; {% code %}
    rf"""\{{\#.*?\#\}}
    | \{{%[-+]?\s*raw\s*[-+]?%\}} .*? \{{%[-+]?\s*endraw\s*[-+]?%\}}
    | \{{\{{ (?P<printed>(?:{_STRING}|[^'"])*?) \}}\}}
    | \{{% (?P<statement>(?:{_STRING}|[^'"])*?) %\}}""",
    re.DOTALL | re.VERBOSE,
)
_WIDE = re.compile(r"\btojson\s*\((?!\s*(?:indent\s*=\s*)?\d?\s*\))")
_REPEATS = re.compile(rf"({_STRING})|(?<!\*)\*(?!\*)", re.DOTALL)


class TooLong(ValueError):
    """A text that is longer than a template may make."""


def bounded(text: str, length: int) -> str:
    """The text, when something of this length may be made."""
    if length > LONGEST:
        raise TooLong
    return text


def _replace(text: Any, old: Any, new: Any, *_: Any) -> str:
    whole, part, other = str(text), str(old), str(new)
    bounded(whole, len(whole) + whole.count(part) * max(0, len(other) - len(part)))
    return whole.replace(part, other)


def _join(values: Sequence[Any], separator: Any = "", attribute: str | None = None) -> str:
    items = [each if attribute is None else each[attribute] for each in values]
    texts = ["" if each is None else str(each) for each in items]
    between = str(separator)
    bounded("", sum(map(len, texts)) + len(between) * len(texts))
    return between.join(texts)


def sandbox(finalizer: Callable[[Any], Any] | None = None) -> Environment:
    """An engine without what could grow a text at will."""
    engine = Environment(undefined_behavior="strict", fuel=FUEL, debug=False, finalizer=finalizer)
    for name in _UNWANTED_GLOBALS:
        engine.remove_global(name)
    for name in _UNWANTED_FILTERS:
        engine.remove_filter(name)
    engine.add_filter("replace", _replace)
    engine.add_filter("join", _join)
    return engine


def numbers_only(code: str) -> str:
    """Code of the engine in which `*` refuses texts and arrays, whose product has no bound: `a * b` becomes
    `a ** 1 * - - b`, which is the same for numbers. Raises ValueError for an indentation of any width."""
    if _WIDE.search(code):
        raise ValueError("tojson takes an indentation of at most 9")
    return _REPEATS.sub(lambda found: found[1] or " ** 1 * - - ", code)


def inert(source: str) -> str:
    """A template made harmless. Raises ValueError for what has no place in one."""

    def checked(found: re.Match[str]) -> str:
        code = found["printed"] if found["printed"] is not None else found["statement"]
        if code is None:
            return found[0]
        if "{" in re.sub(_STRING, "", code, flags=re.DOTALL):
            raise ValueError("an object has no place in it: make it in a `set` step")
        tag = code.strip("-+ \t\n").partition(" ")[0]
        if found["printed"] is None and tag not in _TAGS:
            raise ValueError(f"the tag {tag!r} has no place in it")
        return numbers_only(found[0])

    if re.search(r"\{\{|\{%", _PARTS.sub("", source)):
        raise ValueError("a quote, {{ or {% is not closed")
    return _PARTS.sub(checked, source)


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
    column: ColumnReader | None = None
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
        except NoAnswer as refused:
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
