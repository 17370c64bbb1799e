"""Templates: `{{ customer.csm }}: {{ event.used }}`, for the texts that people read.

The same engine as expressions, with its sandbox and fuel; names stand without `$`. null is an empty
text; a name that does not exist is a failure of the unit, not a hole in a message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any
from uuid import UUID

from minijinja import Environment, TemplateError

from bridge.core.expression import FUEL, words_of
from bridge.core.failure import ExpressionFailure
from bridge.errors import ConfigError


class TemplateSyntaxError(ConfigError):
    """A template cannot be read."""

    reason = "template"

    def __init__(self, message: str, line: int | None) -> None:
        super().__init__(message)
        self.line = line


def _printed(value: Any) -> Any:
    return "" if value is None else value


@cache
def _environment() -> Environment:
    engine = Environment(undefined_behavior="strict", fuel=FUEL, debug=False, finalizer=_printed)
    for name in ("debug", "cycler", "joiner"):
        engine.remove_global(name)
    return engine


def readable(value: Any) -> Any:
    """A value as a template prints it: whole Decimals without a fraction, dates and UUIDs as ISO text."""
    if isinstance(value, Decimal):
        if not value.is_finite():
            return str(value)
        return int(value) if value == value.to_integral_value() and abs(value) < 2**63 else float(value)
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Mapping):
        return {name: readable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [readable(item) for item in value]
    return value


@dataclass(frozen=True, slots=True)
class Template:
    """names: the dotted names it reads, as far as they can be told without running it."""

    source: str
    names: frozenset[str]

    @property
    def roots(self) -> frozenset[str]:
        return frozenset(name.partition(".")[0] for name in self.names)

    def render(self, context: Mapping[str, Any]) -> str:
        """The text for a context (root -> value); raises ExpressionFailure without values in its words."""
        try:
            return _environment().render_str(self.source, **{n: readable(v) for n, v in context.items()})
        except TemplateError as error:
            where = f" (line {error.line})" if error.line is not None else ""
            raise ExpressionFailure(
                f"template {shortened(self.source)!r}{where}: {words_of(error)}"
            ) from None
        except (ArithmeticError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ExpressionFailure(f"template {shortened(self.source)!r}: {type(error).__name__}") from None


def shortened(source: str, limit: int = 120) -> str:
    """A template's source as a message names it."""
    return source if len(source) <= limit else source[: limit - 3] + "..."


def compile_template(source: str) -> Template:
    """Check a template and learn its names; raises TemplateSyntaxError."""
    engine = _environment()
    try:
        names = engine.undeclared_variables_in_str(source, nested=True)
    except TemplateError as error:
        raise TemplateSyntaxError(
            f"template {shortened(source)!r} cannot be read: {error.kind}", error.line
        ) from None
    return Template(source, frozenset(names) - {"range", "dict", "namespace"})
