"""What can be asked and done: each operation once, for the pages' forms, the API and its OpenAPI document.

An operation that acts needs an operator (app.py), and leaves its row in bridge.audit (operate/audit.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bridge.errors import ConfigError
from bridge.observe.access import Person
from bridge.operate.audit import Actor

if TYPE_CHECKING:
    from bridge.console.desk import Desk

Kind = Literal["text", "texts", "flag", "number", "time", "object"]
Given = Mapping[str, Any]
"""The fields that were sent, by name; a flag that was not is False, texts are a tuple, the others None."""


@dataclass(frozen=True, slots=True)
class Field:
    name: str
    about: str
    kind: Kind = "text"
    choices: tuple[str, ...] = ()
    needed: bool = False


REASON = Field("reason", "Why; the audit keeps it.")
DRY_RUN = Field("dry_run", "Say what would happen, and change nothing.", "flag")


@dataclass(frozen=True, slots=True)
class Request:
    """desk: of the bridge. given: the fields. person: who asks. actor: as the audit names who asks."""

    desk: Desk
    given: Given
    person: Person
    actor: Actor


@dataclass(frozen=True, slots=True)
class Done:
    """told: the answer of the API. said: in words, for a page. undo: the path of the operation that takes it back, and
    its fields."""

    told: Any
    said: str = ""
    undo: tuple[str, Mapping[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """path: below /api; names in braces are fields too. run: in a thread; raises BridgeError."""

    method: Literal["GET", "POST"]
    path: str
    summary: str
    run: Callable[[Request], Done]
    fields: tuple[Field, ...] = ()
    acts: bool = False

    @property
    def every_field(self) -> tuple[Field, ...]:
        return (*self.fields, REASON) if self.acts else self.fields


def taken(operation: Operation, sent: Mapping[str, list[Any]]) -> dict[str, Any]:
    """The operation's fields from what was sent, each name with its values. Raises ConfigError."""
    known = {one.name: one for one in operation.every_field}
    if unknown := sorted(sent.keys() - known.keys()):
        raise ConfigError(f"there is no field {unknown[0]}", hint=f"one of: {', '.join(known)}")
    found = {
        name: _value(one, [v for v in sent.get(name, []) if v not in ("", None)])
        for name, one in known.items()
    }
    for one in known.values():
        if one.needed and found[one.name] in (None, ()):
            raise ConfigError(f"{one.name} is missing: {one.about}")
    return found


def _value(field: Field, values: list[Any]) -> Any:
    if field.kind == "texts":
        parts = (value if isinstance(value, list) else str(value).split() for value in values)
        return tuple(str(word) for part in parts for word in part)
    if not values:
        return False if field.kind == "flag" else None
    value = values[-1]
    if field.kind == "flag":
        return value is True or str(value).lower() in ("true", "on", "1", "yes")
    if field.kind == "object":
        return value
    if field.choices and value not in field.choices:
        raise ConfigError(f"{field.name} is {value!r}", hint=f"one of: {', '.join(field.choices)}")
    if field.kind == "number":
        return _number(field, value)
    return moment(field.name, str(value)) if field.kind == "time" else str(value)


def _number(field: Field, value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{field.name} is no whole number: {value!r}") from None


def moment(name: str, text: str) -> Any:
    """ISO 8601, UTC without a zone, or so long ago: 24h. Raises ConfigError."""
    from datetime import UTC, datetime  # noqa: PLC0415

    from bridge.quantity import parse_duration  # noqa: PLC0415

    try:
        return datetime.now(UTC) - parse_duration(text)
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{name} is {text!r}", hint="a time such as 2026-01-31T12:00:00Z, or a duration ago such as 24h"
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
