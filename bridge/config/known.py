"""What is known of the values that expressions name: the kind of each path, and the words that it can have.

From the contracts of the pipeline's events, from `set`, and from the columns of a lookup where these are known.
"""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from bridge.config.contract import EventField
from bridge.expressions.syntax import path_of
from bridge.expressions.tree import Node

Kind = Literal["text", "number", "boolean", "time", "object", "array", ""]
"""Of a value, as operators tell them apart; time: a date or time of a lookup. "": not known."""

_OF_FIELD: dict[str, Kind] = {
    "string": "text",
    "timestamp": "text",
    "number": "number",
    "integer": "number",
    "boolean": "boolean",
    "object": "object",
    "array": "array",
}
_OF_META: dict[str, Kind] = {
    "id": "text",
    "type": "text",
    "key": "text",
    "seq": "number",
    "occurred_at": "text",
    "idempotency_key": "text",
    "source": "text",
}
_OF_FILTER: dict[str, Kind] = {
    **dict.fromkeys(("lower", "upper", "title", "capitalize", "trim", "replace", "string", "join"), "text"),
    **dict.fromkeys(("length", "count", "round", "int", "float", "abs"), "number"),
}
NAMES: dict[str, str] = {
    "text": "a text",
    "number": "a number",
    "boolean": "a boolean",
    "time": "a date or time",
    "object": "an object",
    "array": "an array",
}


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a value. by_type: its kind in the events of each type, where it differs. words: all values that
    it can have. total: is that so of every event that can come, and not only of those with a contract?"""

    kind: Kind = ""
    by_type: Mapping[str, Kind] = field(default_factory=dict)
    words: tuple[object, ...] | None = None
    total: bool = True


NOTHING = Known()


@dataclass(frozen=True, slots=True)
class EventFields:
    """The fields of a pipeline's events. patterns: the types that it takes. by_type: the contracts' fields."""

    patterns: Sequence[str]
    by_type: Mapping[str, Mapping[str, EventField]]

    @property
    def total(self) -> bool:
        """Has every event that can come a contract?"""
        return all(pattern in self.by_type for pattern in self.patterns)

    def names(self) -> list[str]:
        return list(dict.fromkeys(name for fields in self.by_type.values() for name in fields))

    def of(self, name: str) -> list[EventField]:
        """Its definitions."""
        return [fields[name] for fields in self.by_type.values() if name in fields]

    def lacking(self, name: str) -> list[str]:
        """The types whose contract does not have it, where others' have it."""
        without = [event for event, fields in self.by_type.items() if name not in fields]
        return without if len(without) < len(self.by_type) else []

    def known(self, name: str) -> Known:
        kinds = {
            event: _OF_FIELD.get(fields[name].type, "")
            for event, fields in self.by_type.items()
            if name in fields
        }
        same = set(kinds.values())
        enums = [one.enum for one in self.of(name)]
        words = (
            None if None in enums or not enums else tuple(dict.fromkeys(w for e in enums for w in e or ()))
        )
        if len(same) == 1:
            return Known(same.pop(), words=words, total=self.total)
        return Known(by_type=kinds, words=words, total=self.total)

    def may_be(self, event: str) -> bool:
        """Can an event of this type come?"""
        return any(fnmatchcase(event, pattern) for pattern in self.patterns)


class Roots:
    """What is known of each path at one place of a pipeline."""

    def __init__(self, fields: EventFields | None) -> None:
        self._fields = fields
        self._made: dict[str, Known] = {}
        self._rows: dict[str, Mapping[str, Kind]] = {}

    def row(self, name: str, columns: Mapping[str, Kind]) -> None:
        """`$name` is a row with these columns."""
        self._rows[name] = columns

    def make(self, name: str, node: Node | None) -> None:
        """`$name` is the value of an expression."""
        self._made[name] = NOTHING if node is None else self.of(node)

    def path(self, text: str) -> Known:
        """Of `$event.used`, say."""
        root, *rest = path_of(text)
        if not rest:
            return self._made.get(root, NOTHING)
        if len(rest) > 1:
            return NOTHING
        if root == "meta":
            return Known(_OF_META.get(rest[0], ""))
        if root == "event":
            return self._fields.known(rest[0]) if self._fields is not None else NOTHING
        return Known(self._rows.get(root, {}).get(rest[0], ""))

    def of(self, node: Node) -> Known:
        """Of any expression."""
        if node.kind == "path":
            return self.path(node.text)
        return Known(self._kind(node), words=_constants(node))

    def _kind(self, node: Node) -> Kind:  # noqa: PLR0911  one return a kind of node
        if node.kind in ("number", "negative"):
            return "number"
        if node.kind in ("string", "join"):
            return "text"
        if node.kind in ("compare", "not", "test"):
            return "boolean"
        if node.kind == "word":
            return "boolean" if node.text.lower() != "none" else ""
        if node.kind == "arithmetic":
            kinds = {self.of(part).kind for part in node.parts}
            return "number" if node.word != "+" or "number" in kinds else _one(kinds)
        if node.kind in ("and", "or"):
            return _one(self.of(part).kind for part in node.parts)
        if node.kind == "choice" and len(node.parts) == 3:
            return _one((self.of(node.parts[0]).kind, self.of(node.parts[2]).kind))
        if node.kind == "filtered":
            return _OF_FILTER.get(node.word, "")
        return ""


def _constants(node: Node) -> tuple[object, ...] | None:
    """All values of a text in quotes, or of a choice between such texts; None where they are not known."""
    if node.kind == "string":
        return (literal_eval(node.text),)
    if node.kind == "choice" and len(node.parts) == 3:
        one, other = _constants(node.parts[0]), _constants(node.parts[2])
        return (*one, *other) if one and other else None
    return None


def _one(kinds: Iterable[Kind]) -> Kind:
    found = set(kinds)
    return found.pop() if len(found) == 1 else ""
