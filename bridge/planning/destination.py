"""The mapping of rows to the columns of a table or the body of a message.

Compiled once for a table's shape. For each batch it takes rows and returns lists of column text. It works by lists,
because the cost per event decides the throughput: a list of one type takes one comprehension. The kind of a column
decides how text and objects are written; the server decides whether it accepts them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from functools import lru_cache
from typing import Any

from bridge.errors import Halt
from bridge.expressions.document import json_text
from bridge.expressions.expression import Expression
from bridge.expressions.operators import Path
from bridge.expressions.server_text import SERVER_TEXTS, Money, ServerArray, ServerObject, Timestamptz
from bridge.planning.plan import Column, ColumnKind, Deliver, TableShape, Write
from bridge.planning.rows import META, Literal, Rows, Structure, ValueSource, classify, names_of, values_of
from bridge.planning.spec import SinkSpec, TableSpec

Texts = list[bytes | None]

_NONE = type(None)
_WRITTEN_OUT = 1000  # zeros before or after a number's digits


def digits(value: Decimal) -> bytes:
    """As Postgres prints a numeric, without an exponent."""
    text = str(value)
    if "E" in text and abs(value.adjusted()) < _WRITTEN_OUT:
        text = format(value, "f")
    return text.encode()


_INTEGER_TYPES = frozenset({"smallint", "integer", "bigint"})
_ZONELESS = frozenset({"timestamp without time zone", "date", "time without time zone"})
_PLAIN: dict[type, Callable[[Any], bytes]] = {
    str: str.encode,
    int: b"%d".__mod__,
    Decimal: digits,
    date: lru_cache(4096)(lambda value: value.isoformat().encode()),  # a lookup's dates are few
    datetime: lambda value: value.isoformat().encode(),
    **dict.fromkeys(SERVER_TEXTS, str.encode),
}
"""The converter that scalar() uses for one type."""


def texts(column: Column, values: list[Any]) -> Texts:
    """Column text for each value, None for null. Floats must be exact already (document.py)."""
    kinds = set(map(type, values))
    nulls = _NONE in kinds
    kinds.discard(_NONE)
    encode = encoder(column)
    if len(kinds) == 1 and encode in _ODD and _ODD[encode] not in kinds:
        encode = _PLAIN.get(kinds.pop(), encode)
    return (
        [None if value is None else encode(value) for value in values] if nulls else list(map(encode, values))
    )


def encoder(column: Column) -> Callable[[Any], bytes]:
    """One value, not None, to its column text."""
    if column.kind == "json":
        return _json_as_it_is if column.type_sql == "json" else json_text
    if column.kind == "array":
        element: ColumnKind = "json" if column.type_sql.startswith("json") else "other"
        of = column.type_sql

        def array(value: Any) -> bytes:
            if value.__class__ is ServerArray and value.type_sql == of:
                return value.text.encode()
            return array_literal(value, element) if isinstance(value, list) else scalar(value)

        return array
    if column.type_sql in _INTEGER_TYPES:
        return whole
    if column.type_sql in _ZONELESS:
        return zoneless
    return scalar if column.kind == "text" else valued


def zoneless(value: Any) -> bytes:
    """For columns without a zone: a lookup's timestamptz is written in UTC."""
    return value.utc().encode() if value.__class__ is Timestamptz else scalar(value)


def _json_as_it_is(value: Any) -> bytes:
    if isinstance(value, ServerObject | ServerArray) and value.type_sql == "json":
        return value.text.encode()
    return json_text(value)


def valued(value: Any) -> bytes:
    """For columns of other types than text: money by its number."""
    return scalar(value.number if value.__class__ is Money else value)


def scalar(value: Any) -> bytes:  # noqa: PLR0911  one line a type is the plainest form
    """Text of anything for a column that is neither JSON nor an array."""
    if value.__class__ is str:
        return value.encode()
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, float):
        text = repr(value)
        return (text[:-2] if text.endswith(".0") else text).encode()
    if isinstance(value, dict | list | tuple):
        return json_text(value)
    if isinstance(value, date | datetime | time):
        return value.isoformat().encode()
    if isinstance(value, bytes | memoryview):
        return b"\\x" + bytes(value).hex().encode()
    return digits(value) if isinstance(value, Decimal) else str(value).encode()


def whole(value: Any) -> bytes:
    """For integer columns: 100.0 is the integer 100, as in JSON."""
    if isinstance(value, Decimal) and value.is_finite() and abs(value.adjusted()) < 100:
        integer = int(value)
        if value == integer:
            return b"%d" % integer
    return scalar(value)


_ODD: dict[Callable[[Any], bytes], type | None] = {
    scalar: None,
    valued: None,
    whole: Decimal,
    zoneless: Timestamptz,
}
"""Encoders that write one type in another way than scalar(), or none."""


def array_literal(items: list[Any], element: ColumnKind) -> bytes:
    """A Postgres array literal (PostgreSQL manual, 8.15.6): texts quoted, null as NULL, arrays nested."""
    parts: list[bytes] = []
    for item in items:
        if item is None:
            parts.append(b"NULL")
        elif isinstance(item, list):
            parts.append(array_literal(item, element))
        elif element == "json":
            parts.append(_quoted(json_text(item)))
        elif isinstance(item, int | float | Decimal):
            parts.append(scalar(item))
        else:
            parts.append(_quoted(scalar(item)))
    return b"{" + b",".join(parts) + b"}"


def _quoted(text: bytes) -> bytes:
    return b'"' + text.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


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


_SPECIAL = ("event_id", "occurred_at", "idempotency_key")


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
        self.paths = [fill.path for fill in self.fills if isinstance(fill, PlainFill)]
        self.reads = frozenset().union(
            *(names_of(source) for source in sources.values() if not is_whole_event(source))
        )

    def writes(self, rows: Rows) -> list[Write]:
        """The rows as one Write, or as several if the default mapping leaves columns out."""
        if self.spec.columns is not None:
            return [
                Write(
                    self.pipeline, self.spec, self.shape, self.names, rows.events, self._filled(rows), rows.at
                )
            ]
        return [self._default(part) for part in self._alike(rows)]

    def _filled(self, rows: Rows) -> list[Texts]:
        """The columns of the mapping, plain paths read together."""
        plain = iter(rows.exact_each(self.paths))
        return [
            texts(fill.column, next(plain)) if isinstance(fill, PlainFill) else fill(rows)
            for fill in self.fills
        ]

    # -- the default mapping (docs/configuration.md)

    def _alike(self, rows: Rows) -> list[Rows]:
        """Groups of rows whose events have the same fields for columns with a default: an absent field takes the
        default, not null."""
        optional = frozenset(
            name
            for name, column in self.shape.columns.items()
            if column.has_default and column.writable and name != "payload" and name not in _SPECIAL
        )
        if not optional:
            return [rows]
        roots = {name: items for name, items in rows.roots.items() if name != "meta"}
        signatures = [
            optional.intersection(set(document).union(roots, *(_keys(i[row]) for i in roots.values())))
            for row, document in enumerate(rows.documents)
        ]
        return [
            rows if len(set(signatures)) == 1 else rows.keep([s == signature for s in signatures])
            for signature in dict.fromkeys(signatures)
        ]

    def _default(self, rows: Rows) -> Write:
        fields: set[str] = set().union(*rows.documents)
        enriched: dict[str, str] = {}
        for root, items in rows.roots.items():
            if root == "meta":
                continue
            if any(isinstance(item, dict) for item in items):
                for name in set().union(*(item for item in items if isinstance(item, dict))):
                    enriched.setdefault(name, root)
            else:
                enriched.setdefault(root, "")
        names = list(self.names)  # the version, if there is one
        columns = self._filled(rows)
        for name, column in self.shape.columns.items():
            if not column.writable or name in self.names:
                continue
            filled = self._fill_default(rows, column, fields, enriched)
            if filled is not None:
                names.append(name)
                columns.append(filled)
        return Write(self.pipeline, self.spec, self.shape, tuple(names), rows.events, columns, rows.at)

    def _fill_default(  # noqa: PLR0911  one return a rule of the mapping
        self, rows: Rows, column: Column, fields: set[str], enriched: dict[str, str]
    ) -> Texts | None:
        name = column.name
        if name == "payload" and column.kind == "json":
            return list(rows.payloads())
        if name == "event_id":
            return list(map(META["id"], rows.events))
        if name in _SPECIAL:
            own: Texts = list(map(META[name], rows.events))
            if name not in fields:
                return own
            given = texts(column, rows.exact(("event", name)))
            return [g if name in d else o for g, o, d in zip(given, own, rows.documents, strict=True)]
        if name in enriched and name not in fields:
            root = enriched[name]
            return texts(column, rows.exact((root, name) if root else (name,)))
        if name in fields:
            return texts(column, rows.exact(("event", name)))
        return None


def _keys(item: Any) -> frozenset[str]:
    return frozenset(item) if isinstance(item, dict) else frozenset()


class Sink:
    """A sink with its fields: one body per row."""

    def __init__(self, pipeline: str, spec: SinkSpec) -> None:
        self.pipeline = pipeline
        self.spec = spec
        self.source = Structure({key: classify(v, spec.escapes.get(key)) for key, v in spec.fields.items()})
        self.reads = names_of(self.source)

    def deliveries(self, rows: Rows) -> list[Deliver]:
        """The message of every row, as JSON text."""
        return [
            Deliver(self.pipeline, self.spec.name, event, json_text(body))
            for event, body in zip(rows.events, values_of(self.source, rows), strict=True)
        ]
