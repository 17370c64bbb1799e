"""Templates: `{{ customer.csm }}: {{ event.used }}`, for texts that people read.

The same engine as expressions, with its sandbox and fuel; names are written without `$`. null prints nothing. A name
that does not exist makes the unit a dead letter, not a message with a gap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from minijinja import Environment, TemplateError

from bridge.errors import ConfigError, ExpressionFailure
from bridge.expressions.document import json_text
from bridge.expressions.expression import LONGEST, TooLong, bounded, inert, sandbox, words_of
from bridge.expressions.markup import MARK, Escape, InContext
from bridge.expressions.server_text import ServerText


class TemplateSyntaxError(ConfigError):
    """A template cannot be read."""

    reason = "template"

    def __init__(self, message: str, line: int | None) -> None:
        super().__init__(message)
        self.line = line


_NAME = "message"
"""Every template's name in the engine: without an extension, which would turn HTML escaping on."""


class _Printed:
    """The engine calls this for each value that it prints. It counts the length, because a loop over a large text
    must stop before memory runs out."""

    def __init__(self, escape: Escape | InContext | None) -> None:
        self.escape = escape
        self.length = 0
        self.values: list[str] = []
        """What was printed, where it is put in afterwards."""

    def __call__(self, value: Any) -> Any:
        shown = "" if value is None else self._shown(value)
        self.length += len(shown) if isinstance(shown, str) else 20
        if not isinstance(shown, str):
            return shown
        bounded(shown, self.length)
        if not isinstance(self.escape, InContext):
            return shown
        self.values.append(shown)
        return MARK

    def _shown(self, value: Any) -> Any:
        """Moments in ISO 8601. With an escape, values are inert in the vendor's markup; the author's own text stays
        markup."""
        if isinstance(value, date | time):
            value = value.isoformat()
        if self.escape is None:
            return value
        if isinstance(value, bool):
            return "true" if value else "false"
        text = value if isinstance(value, str) else json_text(value).decode()
        return text if isinstance(self.escape, InContext) else self.escape(text)

    def whole(self, rendered: str) -> str:
        if not isinstance(self.escape, InContext):
            return rendered
        return bounded(made := self.escape.around(rendered, self.values), len(made))


class _Moment(datetime):
    """Also inside a list or beside `~` in ISO 8601, which Python's own text is not."""

    def __str__(self) -> str:
        return self.isoformat()


def readable(value: Any) -> Any:
    """A value as a template prints it: whole Decimals without fraction, moments and UUIDs as ISO text."""
    if isinstance(value, Decimal):
        if not value.is_finite():
            return str(value)
        return int(value) if value == value.to_integral_value() and abs(value) < 2**63 else float(value)
    if isinstance(value, ServerText):
        found = value.readable()
        value = value.as_json() if isinstance(found, str) else found
    if isinstance(value, datetime):
        value = _Moment.fromisoformat(value.isoformat())
    if isinstance(value, UUID):
        value = str(value)
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
        self._printed.values.clear()
        try:
            return self._printed.whole(self._engine.render_template(_NAME, **shown))
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


def compile_template(source: str, escape: Escape | InContext | None = None) -> Template:
    """Check a template and collect its names. Raises TemplateSyntaxError. escape: applied to values."""
    printed = _Printed(escape)
    source = source.replace(MARK, "\ufffd")
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
