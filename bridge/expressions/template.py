"""Templates: `{{ customer.csm }}: {{ event.used }}`, for texts that people read.

The same engine as expressions, with its sandbox and fuel; names are written without `$`. null prints nothing. A name
that does not exist makes the unit a dead letter, not a message with a gap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import UUID

from minijinja import Environment, TemplateError

from bridge.errors import ConfigError, ExpressionFailure
from bridge.expressions.document import json_text
from bridge.expressions.expression import LONGEST, TooLong, bounded, inert, sandbox, words_of
from bridge.expressions.server_text import ServerText


class TemplateSyntaxError(ConfigError):
    """A template cannot be read."""

    reason = "template"

    def __init__(self, message: str, line: int | None) -> None:
        super().__init__(message)
        self.line = line


_NAME = "message"
"""Every template's name in the engine: without an extension, which would turn HTML escaping on."""


def _escaping(escape: Callable[[str], str]) -> Callable[[Any], Any]:
    """Make values inert in a vendor's markup; the author's own text stays markup."""

    def printed(value: Any) -> Any:
        if isinstance(value, bool):
            return "true" if value else "false"
        return escape(value if isinstance(value, str) else json_text(value).decode())

    return printed


def _as_it_is(value: Any) -> Any:
    return value


class _Printed:
    """The engine calls this for each value that it prints. It counts the length, because a loop over a large text
    must stop before memory runs out."""

    def __init__(self, escape: Callable[[str], str] | None) -> None:
        self._shown: Callable[[Any], Any] = _as_it_is if escape is None else _escaping(escape)
        self.length = 0

    def __call__(self, value: Any) -> Any:
        shown = "" if value is None else self._shown(value)
        self.length += len(shown) if isinstance(shown, str) else 20
        return shown if not isinstance(shown, str) else bounded(shown, self.length)


def readable(value: Any) -> Any:
    """A value as a template prints it: whole Decimals without fraction, dates and UUIDs as ISO text."""
    if isinstance(value, Decimal):
        if not value.is_finite():
            return str(value)
        return int(value) if value == value.to_integral_value() and abs(value) < 2**63 else float(value)
    if isinstance(value, ServerText | UUID):
        return value.readable() if isinstance(value, ServerText) else str(value)
    if isinstance(value, Mapping):
        return {name: readable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [readable(item) for item in value]
    return value


@dataclass(frozen=True, slots=True)
class Template:
    """names: the dotted names it reads; only the root if its fields cannot be determined."""

    source: str
    names: frozenset[str]
    _engine: Environment = field(compare=False, repr=False)
    _printed: _Printed = field(compare=False, repr=False)
    _needs: Mapping[str, frozenset[str] | None] = field(compare=False, repr=False)

    @property
    def roots(self) -> frozenset[str]:
        return frozenset(self._needs)

    def render(self, context: Mapping[str, Any]) -> str:
        """The text for a context (root -> value); raises ExpressionFailure without values in its words."""
        shown = {
            root: _part(context[root], fields) for root, fields in self._needs.items() if root in context
        }
        self._printed.length = 0
        try:
            return self._engine.render_template(_NAME, **shown)
        except TemplateError as error:
            where = f" (line {error.line})" if error.line is not None else ""
            raise ExpressionFailure(
                f"template {shortened(self.source)!r}{where}: {words_of(error)}"
            ) from None
        except TooLong:
            raise ExpressionFailure(
                f"template {shortened(self.source)!r}: the text is longer than {LONGEST} characters"
            ) from None
        except (ArithmeticError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ExpressionFailure(f"template {shortened(self.source)!r}: {type(error).__name__}") from None


def _part(value: Any, fields: frozenset[str] | None) -> Any:
    """The parts of a root that a template reads. Converting the rest of an event would cost more than the message."""
    if fields is None or not isinstance(value, Mapping):
        return readable(value)
    return {name: readable(value[name]) for name in fields if name in value}


def shortened(source: str, limit: int = 120) -> str:
    """A template's source, shortened for messages."""
    return source if len(source) <= limit else source[: limit - 3] + "..."


def compile_template(source: str, escape: Callable[[str], str] | None = None) -> Template:
    """Check a template and collect its names. Raises TemplateSyntaxError. escape: applied to values."""
    printed = _Printed(escape)
    engine = sandbox(printed)
    try:
        found = engine.undeclared_variables_in_str(source, nested=True)  # reads it, runs nothing
        harmless = inert(source)
    except TemplateError as error:
        raise TemplateSyntaxError(
            f"template {shortened(source)!r} cannot be read: {error.kind}", error.line
        ) from None
    except ValueError as error:
        raise TemplateSyntaxError(f"template {shortened(source)!r} cannot be read: {error}", None) from None
    names = frozenset(found) - {"range", "dict", "namespace"}
    engine.add_template(_NAME, harmless)
    needs = {root: _fields(root, names) for root in {name.partition(".")[0] for name in names}}
    return Template(source, names, engine, printed, needs)


def _fields(root: str, names: frozenset[str]) -> frozenset[str] | None:
    """The fields of a root that are read; None: possibly all."""
    if root in names:
        return None
    return frozenset(name.split(".")[1] for name in names if name.startswith(root + "."))
