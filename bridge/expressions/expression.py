"""Expressions: `$event.used / $event.limit >= 0.9`, compiled once, evaluated per event.

An expression that is only a path needs no engine and no closure: the planner reads `plain_path` by columns. What the
grammar passes to minijinja runs in a sandbox. The engine's own limit (fuel) counts instructions, and one instruction
can create a gigabyte (`'x' * 10**9`, a filter with a width, a macro that doubles its argument). So everything that
could multiply a text is left out, refused when it runs, replaced by a bounded version, or, in a loop, counted while
it prints.
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
from bridge.expressions.filters import FILTERS
from bridge.expressions.grammar import Parser
from bridge.expressions.operators import MISSING, NoAnswer, Path, Reader, follow
from bridge.expressions.server_text import ServerText
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
    """A text is longer than a template may create."""


def bounded(text: str, length: int) -> str:
    """Return the text if its length is allowed."""
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
    """An engine without the functions that could grow a text without limit."""
    engine = Environment(undefined_behavior="strict", fuel=FUEL, debug=False, finalizer=finalizer)
    for name in _UNWANTED_GLOBALS:
        engine.remove_global(name)
    for name in _UNWANTED_FILTERS:
        engine.remove_filter(name)
    engine.add_filter("replace", _replace)
    engine.add_filter("join", _join)
    for name, made in FILTERS.items():
        engine.add_filter(name, made)
    return engine


def numbers_only(code: str) -> str:
    """Engine code in which `*` refuses texts and arrays, whose product is unbounded: `a * b` becomes `a ** 1 * - -
    b`, which is the same for numbers. Raises ValueError for a large indentation."""
    if _WIDE.search(code):
        raise ValueError("tojson allows an indentation of at most 9")
    return _REPEATS.sub(lambda found: found[1] or " ** 1 * - - ", code)


def code_of(source: str) -> list[tuple[str, str]]:
    """The code of a template, in its order: (tag, expression). tag: of a statement, such as `if`; empty for what is
    printed."""
    found = []
    for part in _PARTS.finditer(source):
        if part["printed"] is not None:
            found.append(("", part["printed"].strip("-+ \t\n")))
        elif part["statement"] is not None:
            tag, _, rest = part["statement"].strip("-+ \t\n").partition(" ")
            found.append((tag, rest.strip()))
    return found


def inert(source: str) -> str:
    """A template made safe. Raises ValueError for constructs that are not allowed."""

    def checked(found: re.Match[str]) -> str:
        code = found["printed"] if found["printed"] is not None else found["statement"]
        if code is None:
            return found[0]
        if "{" in re.sub(_STRING, "", code, flags=re.DOTALL):
            raise ValueError("object literals are not allowed: build the object in a `set` step")
        tag = code.strip("-+ \t\n").partition(" ")[0]
        if found["printed"] is None and tag not in _TAGS:
            raise ValueError(f"the tag {tag!r} is not allowed")
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
    """The kind of an engine error in words. The engine's own message contains values and is never passed on."""
    kind = getattr(error, "kind", None) or type(error).__name__
    return _WORDS.get(kind, kind)


@cache
def environment() -> Environment:
    """The engine, with a limit on work and without access to the process."""
    return sandbox()


def _engine(text: str, variables: Mapping[str, Path]) -> Reader:
    """Check a span for minijinja at compile time; returns the closure that runs it."""
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
        values = {name: _readable(follow(context, path)) for name, path in paths}
        return engine.eval_expr(text, **{n: v for n, v in values.items() if v is not MISSING})

    return evaluate


def _readable(value: Any) -> Any:
    return value.readable() if isinstance(value, ServerText) else value


@dataclass(frozen=True, slots=True)
class Expression:
    """names: the dotted paths it reads. plain_path: set if it is only one path."""

    source: str
    names: frozenset[str]
    plain_path: Path | None
    _read: Reader
    column: ColumnReader | None = None
    """The same over whole lists, if it has such a form. Raises NotPlain for values that must be evaluated one by
    one."""

    @property
    def roots(self) -> frozenset[str]:
        """First segments of the names: event, meta, an enrichment, a name of `set`."""
        return frozenset(name.partition(".")[0] for name in self.names)

    def evaluate(self, context: Mapping[str, Any]) -> Any:
        """The value for a context (root -> value); None for a lone path that does not exist. Raises
        ExpressionFailure, which names the expression and the operand, never a value."""
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
    """Compile an expression of a configuration. Raises ExpressionSyntaxError."""
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
    """The path, if the whole text is one."""
    tokens = tokens_of(source)
    if len(tokens) == 2 and tokens[0].kind == "path":
        return path_of(tokens[0].text)
    return None
