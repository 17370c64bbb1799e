"""Value sources: what a configuration writes where a value is wanted.

`$name...` is an expression, `$$` a literal dollar, a text with `{{` a template, objects and arrays
hold sources themselves, anything else is a literal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import orjson

from bridge.core.expressions.expression import Expression, compile_expression
from bridge.core.expressions.template import Template, compile_template
from bridge.core.rows import Rows

_EXPRESSION = re.compile(r"\$[A-Za-z_]")


@dataclass(frozen=True, slots=True)
class Literal:
    """The same value for every event."""

    value: Any


@dataclass(frozen=True, slots=True)
class Structure:
    """An object or array with sources inside."""

    items: dict[str, ValueSource] | list[ValueSource]


@dataclass(frozen=True, slots=True)
class Escaped:
    """An expression whose text must be inert in a vendor's markup."""

    source: Expression
    escape: Callable[[str], str]

    @property
    def names(self) -> frozenset[str]:
        return self.source.names

    def made_inert(self, value: Any) -> Any:
        """Texts and numbers; anything else is no markup."""
        if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
            return value
        return self.escape(str(value))


ValueSource = Expression | Escaped | Template | Literal | Structure


def classify(  # noqa: PLR0911  one return a form of value
    value: Any, escape: Callable[[str], str] | None = None
) -> ValueSource:
    """Compile what was written; raises ExpressionSyntaxError or TemplateSyntaxError.

    escape: what values go through on their way into a text; what is written literally does not.
    """
    if isinstance(value, str):
        if _EXPRESSION.match(value):
            expression = compile_expression(value)
            return expression if escape is None else Escaped(expression, escape)
        text = value.replace("$$", "$")
        return compile_template(text, escape) if "{{" in text else Literal(text)
    if isinstance(value, Mapping):
        items = {str(name): classify(item, escape) for name, item in value.items()}
        if all(isinstance(item, Literal) for item in items.values()):
            return Literal({name: item.value for name, item in items.items() if isinstance(item, Literal)})
        return Structure(items)
    if isinstance(value, list | tuple):
        elements = [classify(item, escape) for item in value]
        if all(isinstance(item, Literal) for item in elements):
            return Literal([item.value for item in elements if isinstance(item, Literal)])
        return Structure(elements)
    return Literal(value)


def names_of(source: ValueSource) -> frozenset[str]:
    """Every dotted name a source reads."""
    if isinstance(source, Literal):
        return frozenset()
    if isinstance(source, Structure):
        inner = source.items.values() if isinstance(source.items, dict) else source.items
        return frozenset().union(*map(names_of, inner))
    return source.names


def values_of(source: ValueSource, rows: Rows) -> list[Any]:
    """A source's value in every row, numbers of events exact where they are only carried."""
    if isinstance(source, Literal):
        return [source.value] * len(rows)
    if isinstance(source, Expression):
        if source.plain_path == ("event",):
            return [orjson.Fragment(payload) for payload in rows.payloads()]
        return rows.exact(source.plain_path) if source.plain_path else rows.evaluate(source)
    if isinstance(source, Escaped):
        return [source.made_inert(value) for value in values_of(source.source, rows)]
    if isinstance(source, Template):
        return [source.render(context) for context in rows.contexts(source.roots)]
    return structures(source, rows)


def structures(source: Structure, rows: Rows) -> list[Any]:
    """Objects and arrays, built for every row."""
    if isinstance(source.items, dict):
        names = list(source.items)
        columns = [values_of(item, rows) for item in source.items.values()]
        return [dict(zip(names, items, strict=True)) for items in zip(*columns, strict=True)]
    return [list(items) for items in zip(*(values_of(item, rows) for item in source.items), strict=True)]
