"""Value sources: what a configuration writes where a value is wanted.

`$name...` is an expression, `$$` a literal dollar, a text with `{{` a template, objects and arrays
hold sources themselves, anything else is a literal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from bridge.core.expression import Expression, compile_expression
from bridge.core.rows import Rows
from bridge.core.template import Template, compile_template

_EXPRESSION = re.compile(r"\$[A-Za-z_]")


@dataclass(frozen=True, slots=True)
class Literal:
    """The same value for every event."""

    value: Any


@dataclass(frozen=True, slots=True)
class Structure:
    """An object or array with sources inside."""

    items: dict[str, ValueSource] | list[ValueSource]


ValueSource = Expression | Template | Literal | Structure


def classify(value: Any) -> ValueSource:  # noqa: PLR0911  one return a form of value
    """Compile what was written; raises ExpressionSyntaxError or TemplateSyntaxError."""
    if isinstance(value, str):
        if _EXPRESSION.match(value):
            return compile_expression(value)
        text = value.replace("$$", "$")
        return compile_template(text) if "{{" in text else Literal(text)
    if isinstance(value, Mapping):
        items = {str(name): classify(item) for name, item in value.items()}
        if all(isinstance(item, Literal) for item in items.values()):
            return Literal({name: item.value for name, item in items.items() if isinstance(item, Literal)})
        return Structure(items)
    if isinstance(value, list | tuple):
        elements = [classify(item) for item in value]
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
