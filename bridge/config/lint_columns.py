"""Lint of what goes into a table's columns, where the table is known: names, kinds, and the words of an enum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bridge.config.known import EventFields, Kind, Roots
from bridge.config.lint_values import is_expression
from bridge.config.snapshot import Columns
from bridge.expressions.syntax import path_of
from bridge.expressions.tree import tree_of
from bridge.planning.column_fit import ColumnType, Group, fit_of, refused
from bridge.problem import KeyPath, Level, Remark, nearest

_GROUPS: dict[Kind, Group] = {"number": "number", "boolean": "boolean", "array": "array"}
_OF_CONTRACT: dict[str, Group] = {
    "number": "number",
    "integer": "number",
    "boolean": "boolean",
    "timestamp": "moment",
    "array": "array",
    "object": "object",
}
_CHECKED: dict[Group, str] = {
    "number": "number",
    "moment": "timestamp",
    "boolean": "boolean",
    "array": "array",
}
"""Where a contract says `string`: the type that says the same of the event as the column's group does. The others, a
uuid say, can only be a string."""
_OF_META: dict[str, Group] = {"occurred_at": "moment", "seq": "number", "headers": "object"}
"""An outbox of the user's own may have any id."""


class _Place(NamedTuple):
    """A value's place in the file, and the column that it goes to."""

    path: KeyPath
    name: str
    column: ColumnType


class ColumnLint:
    """What is wrong with the values for the columns of one destination."""

    def __init__(
        self,
        destination: str,
        columns: Columns,
        fields: EventFields | None,
        roots: Roots,
        rows: Mapping[str, Columns],
    ) -> None:
        """rows: the lookups whose columns are known, by the name of the row."""
        self._destination = destination
        self._columns = columns
        self._fields = fields
        self._roots = roots
        self._rows = rows

    def default(self, path: KeyPath) -> Iterator[Remark]:
        """Under the default mapping: the events' fields to the columns of their names."""
        for name in self._fields.names() if self._fields is not None else ():
            if name in self._columns:
                yield from self.check(path, name, f"$event.{name}")

    def check(self, path: KeyPath, name: str, value: Any) -> Iterator[Remark]:
        """`value` for the column of this name."""
        column = self._columns.get(name)
        if column is None:
            fix = nearest(name, self._columns) or "add the column, or take it out"
            message = f"the table of {self._destination} has no column {name}"
            yield Remark("error", path, message, fix, key=True, name="unknown-column")
        elif isinstance(value, str) and is_expression(value):
            yield from self._expression(_Place(path, name, column), value)
        elif isinstance(value, bool | int | float) or (isinstance(value, str) and "{{" not in value):
            text = value.replace("$$", "$") if isinstance(value, str) else value
            yield from self._words(_Place(path, name, column), "the value", [text])

    def _expression(self, place: _Place, value: str) -> Iterator[Remark]:
        node = tree_of(value)
        if node is None:
            return
        if node.kind != "path":
            group = _GROUPS.get(self._roots.of(node).kind, "")
            yield from self._kind(place, node.text, {"": group})
            return
        root, *rest = path_of(value.strip())
        if root in self._rows and len(rest) == 1:
            came = self._rows[root].get(rest[0])
            if came is not None:
                yield from self._kind(place, node.text, {"": came.group}, came.shown)
                if came.labels:
                    yield from self._words(place, node.text, came.labels)
        elif root == "event" and len(rest) == 1 and self._fields is not None:
            groups = {
                event: _OF_CONTRACT.get(fields[rest[0]].type, "")
                for event, fields in self._fields.by_type.items()
                if rest[0] in fields
            }
            yield from self._kind(place, node.text, groups)
            for field in self._fields.of(rest[0]):
                yield from self._words(place, node.text, field.enum or ())
            yield from self._unchecked(place, node.text, rest[0], self._fields)
        elif root == "meta" and len(rest) == 1:
            yield from self._kind(place, node.text, {"": _OF_META.get(rest[0], "")})
        elif not rest:
            whole = root in self._rows or (
                root == "event" and self._fields is not None and self._fields.total
            )
            group = "object" if whole else _GROUPS.get(self._roots.of(node).kind, "")
            yield from self._kind(place, node.text, {"": group})

    def _kind(
        self, place: _Place, text: str, groups: Mapping[str, Group], shown: str = ""
    ) -> Iterator[Remark]:
        """groups: what comes, by the type of the event. shown: its type in the lookup."""
        path, name, column = place
        fits = {event: fit_of(group, column) for event, group in groups.items()}
        for fit, level in (("never", "error"), ("perhaps", "warning")):
            events = [event for event, one in fits.items() if one == fit]
            if not events or (fit == "perhaps" and not shown):
                continue
            what = shown or groups[events[0]]
            told = f"column {name} is {column.shown}, and {text} is {what}"
            where = f" in events of {', '.join(filter(None, events))}" if any(events) else ""
            then = "no value fits" if fit == "never" else "what does not fit is a dead letter"
            sure: Level = "error" if level == "error" and len(events) == len(groups) else "warning"
            fix = "map another field, or change the column's type"
            yield Remark(sure, path, f"{told}{where}: {then}", fix, name="column-type")

    def _unchecked(self, place: _Place, text: str, field: str, fields: EventFields) -> Iterator[Remark]:
        """A field that may be any text, for a column that takes only some."""
        path, name, column = place
        better = _CHECKED.get(column.group)
        events = [
            event
            for event, known in fields.by_type.items()
            if field in known and known[field].type == "string" and known[field].enum is None
        ]
        if better is None or not events:
            return
        where = f" in events of {', '.join(events)}" if len(events) < len(fields.by_type) else ""
        message = f"column {name} is {column.shown}, and {text} is any text{where}: what does not fit is a dead letter"
        fix = f"let the contract say `{field}: {better}`, so that the producer is told"
        yield Remark("warning", path, message, fix, name="column-type")

    def _words(self, place: _Place, text: str, words: Sequence[Any]) -> Iterator[Remark]:
        path, name, column = place
        wrong = refused(words, column)
        if not wrong:
            return
        known = f" ({', '.join(column.labels)})" if column.labels else ""
        listed = ", ".join(map(repr, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
        what = f"{text} is {listed}" if len(wrong) == len(words) else f"{text} may be {listed}"
        message = f"column {name} is {column.shown}{known}, and {what}: such an event is a dead letter"
        level: Level = "error" if len(wrong) == len(words) else "warning"
        fix = (nearest(str(wrong[0]), column.labels) if column.labels else "") or (
            "map another field, or change the column's type"
        )
        yield Remark(level, path, message, fix, name="column-words")
