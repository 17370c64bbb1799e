"""The mapping of rows to the columns of a table or the body of a message.

Compiled once for a table's shape. For each batch it takes rows and returns lists of column text (column_text.py).

What an event does not say is not written: a field that it lacks leaves a new row the column's default, and an existing
row its value. `null` is written as null. So events with other fields are other writes, whatever stands beside them in
the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from bridge.errors import Halt
from bridge.expressions.document import json_text
from bridge.expressions.expression import Expression
from bridge.expressions.markup import PLAIN
from bridge.expressions.operators import MISSING, Path, follow
from bridge.planning.column_text import Printer, Texts, texts
from bridge.planning.plan import Column, Deliver, TableShape, Write, keyed_by_event
from bridge.planning.rows import META, Literal, Rows, Structure, ValueSource, classify, names_of, values_of
from bridge.planning.spec import SinkSpec, TableSpec

# --- destinations -----------------------------------------------------------------------------------


def is_whole_event(source: ValueSource) -> bool:
    """`$event` alone: the unchanged payload, which needs no parsing."""
    return isinstance(source, Expression) and source.plain_path == ("event",)


Fill = Callable[[Rows], Texts]


@dataclass(frozen=True, slots=True)
class PlainFill:
    """A column that is one path of the rows."""

    column: Column
    path: Path

    def __call__(self, rows: Rows) -> Texts:
        return texts(self.column, rows.exact(self.path))


_SPECIAL = ("occurred_at", "idempotency_key")


def fill_of(source: ValueSource, column: Column) -> Fill:
    """How one column is filled for all rows."""
    if isinstance(source, Expression) and source.plain_path is not None:
        path = source.plain_path
        if path == ("event",):
            return lambda rows: list(rows.payloads())
        if path[0] == "meta" and len(path) == 2 and path[1] in META:
            get = META[path[1]]
            if column.kind == "json" and path[1] not in ("headers", "seq"):
                return lambda rows: texts(
                    column, [None if v is None else v.decode() for v in map(get, rows.events)]
                )
            return lambda rows: list(map(get, rows.events))
        return PlainFill(column, path)
    if isinstance(source, Literal):
        constant = texts(column, [source.value])
        return lambda rows: constant * len(rows)
    return lambda rows: texts(column, values_of(source, rows))


class Table:
    """A target with its mapping. `rejected` has the columns of the mapping that the table does not have."""

    def __init__(self, pipeline: str, spec: TableSpec, shape: TableShape) -> None:
        self.pipeline = pipeline
        self.spec = spec
        self.shape = shape
        mapping = dict(spec.columns or {})
        if spec.version_column is not None and spec.version_column not in mapping:
            mapping[spec.version_column] = spec.version
        lacking = [name for name in mapping if name not in shape.columns]
        if lacking:
            raise Halt(
                f"pipeline {pipeline}, destination {spec.name}: {spec.table_name} has no column"
                f" {', '.join(lacking)}",
                reason="target_columns",
                hint=f"add the column to {spec.table_name}, or take it out of `columns` in the configuration",
            )
        sources = {name: classify(value) for name, value in mapping.items()}
        self.names = tuple(sources)
        self.fills = [fill_of(source, shape.columns[name]) for name, source in sources.items()]
        self.optional = self._optional()
        plain = [fill for fill in self.fills if isinstance(fill, PlainFill)]
        self._printers = [Printer(fill.column) for fill in plain]
        self._paths = [fill.path for fill in plain]
        self._may_lack = {
            fill.column.name: fill.path[1:]
            for fill in plain
            if fill.path[0] == "event" and fill.column.name in self.optional
        }
        self.reads = frozenset().union(
            *(names_of(source) for source in sources.values() if not is_whole_event(source))
        )

    def _optional(self) -> frozenset[str]:
        """The columns for which absent and null differ: where a row may be there already, and where there is a
        default. A key is always written, and so is the version."""
        always = {*self.spec.key, self.spec.version_column}
        upsert = self.spec.mode == "upsert" and not keyed_by_event(self.spec)
        return frozenset(
            name
            for name, column in self.shape.columns.items()
            if (upsert or column.has_default) and name not in always
        )

    def writes(self, rows: Rows) -> list[Write]:
        """The rows as one Write, or as several where events lack fields."""
        filled = self._filled(rows)
        if self.spec.columns is None:
            filled += self._default(rows)
        return self._written(rows, filled)

    def _filled(self, rows: Rows) -> list[_Filled]:
        """The columns of the mapping, plain paths read together."""
        values = zip(self._printers, rows.exact_each(self._paths), strict=True)
        plain = iter([column(some) for column, some in values])
        return [
            _Filled(name, column := next(plain), self._absent(rows, name, column))
            if fill.__class__ is PlainFill
            else _Filled(name, fill(rows))
            for name, fill in zip(self.names, self.fills, strict=True)
        ]

    def _absent(self, rows: Rows, name: str, column: Texts) -> list[bool] | None:
        """Which events lack the field; None: each has it, or null is the same."""
        rest = self._may_lack.get(name)
        if rest is None or None not in column:
            return None
        absent = [
            text is None and follow(document, rest) is MISSING
            for text, document in zip(column, rows.documents, strict=True)
        ]
        return absent if True in absent else None

    def _written(self, rows: Rows, filled: list[_Filled]) -> list[Write]:
        masks = [one.absent for one in filled if one.absent is not None]
        if not masks:
            return [self._write(rows, filled, None)]
        groups: dict[tuple[bool, ...], list[int]] = {}
        for row, lacking in enumerate(zip(*masks, strict=True)):
            groups.setdefault(lacking, []).append(row)
        return [self._write(rows, filled, chosen) for chosen in groups.values()]

    def _write(self, rows: Rows, filled: list[_Filled], chosen: list[int] | None) -> Write:
        """Of these rows, which lack the same fields; None: of all."""
        if chosen is None:
            columns = {one.name: one.texts for one in filled}
        else:
            columns = {
                one.name: [one.texts[row] for row in chosen]
                for one in filled
                if one.absent is None or not one.absent[chosen[0]]
            }
            rows = rows.pick(chosen)
        return Write(
            self.pipeline, self.spec, self.shape, tuple(columns), rows.events, list(columns.values()), rows.at
        )

    # -- the default mapping (docs/configuration.md)

    def _default(self, rows: Rows) -> list[_Filled]:
        fields: set[str] = set().union(*rows.documents)
        roots = {name: items for name, items in rows.roots.items() if name != "meta"}
        filled = []
        for name, column in self.shape.columns.items():
            if not column.writable or name in self.names:
                continue
            if name == "payload" and column.kind == "json":
                filled.append(_Filled(name, list(rows.payloads())))
            elif name == "event_id":
                filled.append(_Filled(name, list(map(META["id"], rows.events))))
            else:
                one = self._found(rows, column, fields, roots)
                if one is not None:
                    filled.append(one)
        return filled

    def _found(
        self, rows: Rows, column: Column, fields: set[str], roots: dict[str, list[Any]]
    ) -> _Filled | None:
        """The event's field of this name, else what a step has found or made under it. None: no event has one, and
        nothing need be written."""
        name = column.name
        found: Texts = [None] * len(rows)
        absent = [True] * len(rows)
        if name in fields:
            absent = [name not in document for document in rows.documents]
            found = texts(column, rows.exact(("event", name)))
        if name in _SPECIAL and True in absent:
            own = map(META[name], rows.events)
            found = [o if a else f for f, o, a in zip(found, own, absent, strict=True)]
            absent = [False] * len(rows)
        for root, items in roots.items():
            if True not in absent:
                break
            inner = [isinstance(item, dict) and name in item for item in items]
            whole = [root == name and not isinstance(item, dict) for item in items]
            for has, path in ((inner, (root, name)), (whole, (root,))):
                taken = [a and h for a, h in zip(absent, has, strict=True)]
                if True in taken:
                    given = texts(column, rows.exact(path))
                    found = [g if t else f for f, g, t in zip(found, given, taken, strict=True)]
                    absent = [a and not t for a, t in zip(absent, taken, strict=True)]
        if False not in absent and name not in self.spec.key:
            return None
        return _Filled(name, found, absent if True in absent and name in self.optional else None)


class _Filled(NamedTuple):
    """A column's texts. absent: which events say nothing of it."""

    name: str
    texts: Texts
    absent: list[bool] | None = None


class Sink:
    """A sink with its fields: one body per row."""

    def __init__(self, pipeline: str, spec: SinkSpec) -> None:
        self.pipeline = pipeline
        self.spec = spec
        self.source = Structure(
            {key: classify(v, spec.markup.get(key, PLAIN)) for key, v in spec.fields.items()}
        )
        self.reads = names_of(self.source)

    def deliveries(self, rows: Rows) -> list[Deliver]:
        """The message of every row, as JSON text."""
        return [
            Deliver(self.pipeline, self.spec.name, event, json_text(body))
            for event, body in zip(rows.events, values_of(self.source, rows), strict=True)
        ]
