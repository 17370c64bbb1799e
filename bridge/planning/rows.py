"""The events of one pipeline, by columns, and the values that a configuration takes from them.

The columns are parallel lists, so that a step is a comprehension and not a loop over objects. In a configuration
`$name...` is an expression, `$$` a literal dollar, a text with `{{` a template; objects and arrays contain values;
anything else is a literal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from itertools import compress
from operator import itemgetter
from typing import Any, TypeVar
from uuid import UUID

import orjson

from bridge.attempts import bisect
from bridge.errors import ExpressionFailure, UnitFailure
from bridge.expressions.columnar import NotPlain
from bridge.expressions.document import certain, holds_float, json_text, parse_exact, without
from bridge.expressions.expression import Expression, compile_expression
from bridge.expressions.filters import moment_text
from bridge.expressions.markup import PLAIN, Markup
from bridge.expressions.operators import MISSING, Path, follow
from bridge.expressions.template import Template, compile_template
from bridge.protocol.events import Event, payload_of
from bridge.section import SOURCE

T = TypeVar("T")

META = {name: itemgetter(at) for at, name in enumerate(Event._fields) if name not in ("xid", "payload")}
"""Readers of an event's own fields: text as bytes."""


def meta_of(event: Event, source: str) -> dict[str, Any]:
    """`$meta` as expressions and templates see it. source: the name of the event's source."""
    return {
        "source": source,
        "id": event.id.decode(),
        "type": event.type.decode(),
        "key": None if event.key is None else event.key.decode(),
        "seq": int(event.seq),
        "occurred_at": None if event.occurred_at is None else moment_text(event.occurred_at.decode()),
        "idempotency_key": None if event.idempotency_key is None else event.idempotency_key.decode(),
        "headers": None if event.headers is None else orjson.loads(event.headers),
    }


class Rows:
    """Events, their documents and every other root, as lists of one length. `at`: indexes in the batch."""

    __slots__ = ("_values", "at", "documents", "events", "hidden", "roots", "source")

    def __init__(
        self,
        at: list[int],
        events: list[Event],
        documents: list[dict[str, Any]],
        roots: dict[str, list[Any]] | None = None,
        hidden: tuple[Path, ...] = (),
        *,
        source: str = SOURCE,
    ) -> None:
        self.at = at
        self.events = events
        self.documents = documents  # empty where nothing reads the payload
        self.roots = roots if roots is not None else {}
        self.hidden = hidden  # redacted fields
        self.source = source  # its name in the file
        self._values: dict[Path, list[Any]] = {}

    def __len__(self) -> int:
        return len(self.events)

    def keep(self, mask: list[bool]) -> Rows:
        """The rows for which `mask` is true."""
        return Rows(
            list(compress(self.at, mask)),
            list(compress(self.events, mask)),
            list(compress(self.documents, mask)),
            {name: list(compress(values, mask)) for name, values in self.roots.items()},
            self.hidden,
            source=self.source,
        )

    def pick(self, chosen: Sequence[int]) -> Rows:
        """The rows at these indexes."""
        return Rows(
            [self.at[row] for row in chosen],
            [self.events[row] for row in chosen],
            [self.documents[row] for row in chosen],
            {name: [values[row] for row in chosen] for name, values in self.roots.items()},
            self.hidden,
            source=self.source,
        )

    def part(self, start: int, stop: int) -> Rows:
        """The rows from `start` up to `stop`."""
        return Rows(
            self.at[start:stop],
            self.events[start:stop],
            self.documents[start:stop],
            {name: values[start:stop] for name, values in self.roots.items()},
            self.hidden,
            source=self.source,
        )

    def with_root(self, name: str, values: list[Any]) -> Rows:
        """The same rows with one more root."""
        roots = {**self.roots, name: values}
        rows = Rows(self.at, self.events, self.documents, roots, self.hidden, source=self.source)
        rows._values = {path: kept for path, kept in self._values.items() if path[0] != name}
        return rows

    def redacted(self, paths: Iterable[Path]) -> Rows:
        """The same rows without these fields, in the documents and so in the payload."""
        documents = self.documents
        for path in paths:
            documents = [without(document, path) for document in documents]
        return Rows(
            self.at, self.events, documents, self.roots, self.hidden + tuple(paths), source=self.source
        )

    def values(self, path: Path) -> list[Any]:
        """A path's value in every row, None where it does not exist. Floats of events may be rounded."""
        found = self._values.get(path)
        if found is None:
            found = self._values[path] = self._read(path)
        return found

    def _read(self, path: Path) -> list[Any]:
        root, rest = path[0], path[1:]
        column = self._root(root)
        if not rest:
            return column
        if len(rest) == 1:
            name = rest[0]
            try:
                return list(map(itemgetter(name), column))
            except (KeyError, TypeError, IndexError):
                pass
        return [None if (v := follow(item, rest)) is MISSING else v for item in column]

    def _root(self, root: str) -> list[Any]:
        if root == "event":
            return self.documents
        if root == "meta":
            if "meta" not in self.roots:
                self.roots["meta"] = [meta_of(event, self.source) for event in self.events]
            return self.roots["meta"]
        return self.roots.get(root) or [None] * len(self.events)

    def contexts(self, roots: frozenset[str]) -> list[dict[str, Any]]:
        """One context per row, with these roots."""
        if roots == {"event"}:
            return [{"event": document} for document in self.documents]
        names = [root for root in roots if root in ("event", "meta") or root in self.roots]
        if not names:
            return [{} for _ in self.events]
        return [
            dict(zip(names, items, strict=True))
            for items in zip(*(self._root(name) for name in names), strict=True)
        ]

    def evaluate(self, expression: Expression) -> list[Any]:
        """The expression's value in every row. Raises ExpressionFailure if it fails in any row."""
        if expression.plain_path is not None:
            return self.values(expression.plain_path)
        if expression.column is not None:
            with suppress(NotPlain):
                return expression.column(self.values)
        evaluate = expression.evaluate
        return [evaluate(context) for context in self.contexts(expression.roots)]

    def exact(self, path: Path) -> list[Any]:
        """As values(), with the numbers of events exact."""
        values = self.values(path)
        if path[0] != "event":
            return values
        kinds = set(map(type, values))
        if kinds.isdisjoint(_INEXACT):
            return values
        return [
            value if value.__class__ in _SAFE else self._exact(row, path[1:], value)
            for row, value in enumerate(values)
        ]

    def exact_each(self, paths: Iterable[Path]) -> list[list[Any]]:
        """exact() of each path."""
        if len(self.events) == 1:
            return [[self._exact_one(path)] for path in paths]
        return list(map(self.exact, paths))

    def _exact_one(self, path: Path) -> Any:
        """exact() of the only row."""
        root, rest = path[0], path[1:]
        item = self.documents[0] if root == "event" else self._root(root)[0]
        if len(rest) == 1:
            try:
                value = item[rest[0]]
            except (KeyError, TypeError, IndexError):
                value = follow(item, rest)
        else:
            value = follow(item, rest)
        if value is MISSING:
            return None
        if root == "event" and value.__class__ in _INEXACT:
            return self._exact(0, rest, value)
        return value

    def _exact(self, row: int, path: Path, value: Any) -> Any:
        payload = self.events[row].payload
        if isinstance(value, float):
            if certain(payload, path[-1], value):
                return Decimal(repr(value))
        elif not holds_float(value):
            return value
        return follow(self.document(row), path)

    def document(self, row: int) -> dict[str, Any]:
        """One document with exact numbers, without the redacted fields."""
        document = parse_exact(self.events[row].payload)
        for path in self.hidden:
            document = without(document, path)
        return document

    def payloads(self) -> list[bytes]:
        """The payloads: verbatim, or without the redacted fields."""
        if not self.hidden:
            return list(map(payload_of, self.events))
        return [
            json_text(self.document(row) if holds_float(document) else document)
            for row, document in enumerate(self.documents)
        ]


_INEXACT = frozenset({float, dict, list})
_SAFE = frozenset({str, int, bool, type(None), Decimal})

Failures = list[tuple[int, Event, UnitFailure]]
"""(index in the batch, event, failure)."""


def survivors(work: Callable[[Rows], T], rows: Rows) -> tuple[Rows, T, Failures]:
    """Run work on all rows at once. Rows that make it fail are found by bisection and left out; the other rows are
    only computed again."""
    try:
        return rows, work(rows), []
    except Exception as error:  # any: a unit that fails costs only itself
        first = _failure(error)

    def attempt(places: Sequence[int]) -> UnitFailure | None:
        try:
            work(rows.part(places[0], places[-1] + 1))
        except Exception as error:
            return _failure(error)
        return None

    failed = dict(bisect(range(len(rows)), attempt, failed=first))
    rest = rows.keep([place not in failed for place in range(len(rows))])
    failures = [(rows.at[place], rows.events[place], failure) for place, failure in failed.items()]
    return rest, work(rest), failures


def _failure(error: Exception) -> UnitFailure:
    if isinstance(error, UnitFailure):
        return error
    if isinstance(error, UnicodeError):
        return UnitFailure("a text is not valid UTF-8")
    return UnitFailure(f"cannot be planned: {type(error).__name__}")  # its text may hold values


def lookup_of(rows: Mapping[Any, Any], key: Any) -> Any:
    """A lookup answer's row for a key, by the key itself or by its text."""
    found = rows.get(key)
    return rows.get(str(key)) if found is None else found


# --- value sources ----------------------------------------------------------------------------------

_EXPRESSION = re.compile(r"\$[A-Za-z_]")


@dataclass(frozen=True, slots=True)
class Literal:
    """The same value for every event."""

    value: Any


@dataclass(frozen=True, slots=True)
class Structure:
    """An object or array that contains values."""

    items: dict[str, ValueSource] | list[ValueSource]


@dataclass(frozen=True, slots=True)
class Escaped:
    """An expression whose texts must be inert in a vendor's markup."""

    source: Expression
    markup: Markup

    @property
    def names(self) -> frozenset[str]:
        return self.source.names

    def made_inert(self, value: Any) -> Any:
        return self.markup.inert(value)


ValueSource = Expression | Escaped | Template | Literal | Structure


def classify(  # noqa: PLR0911  one return a form of value
    value: Any, markup: Markup = PLAIN
) -> ValueSource:
    """Compile a value of the configuration. Raises ExpressionSyntaxError or TemplateSyntaxError. markup: of the text
    into which values go; it is not applied to literal text."""
    if isinstance(value, str):
        if _EXPRESSION.match(value):
            expression = compile_expression(value)
            return expression if markup == PLAIN else Escaped(expression, markup)
        text = value.replace("$$", "$")
        return compile_template(text, markup.text) if "{{" in text else Literal(text)
    if isinstance(value, Mapping):
        items = {str(name): classify(item, markup.at(str(name))) for name, item in value.items()}
        if all(isinstance(item, Literal) for item in items.values()):
            return Literal({name: item.value for name, item in items.items() if isinstance(item, Literal)})
        return Structure(items)
    if isinstance(value, list | tuple):
        elements = [classify(item, markup) for item in value]
        if all(isinstance(item, Literal) for item in elements):
            return Literal([item.value for item in elements if isinstance(item, Literal)])
        return Structure(elements)
    return Literal(value)


def names_of(source: ValueSource) -> frozenset[str]:
    """Every dotted name that a value reads."""
    if isinstance(source, Literal):
        return frozenset()
    if isinstance(source, Structure):
        inner = source.items.values() if isinstance(source.items, dict) else source.items
        return frozenset().union(*map(names_of, inner))
    return source.names


def values_of(source: ValueSource, rows: Rows) -> list[Any]:
    """The value in every row; numbers that are only copied stay exact."""
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


_KEY_TYPES = frozenset({str, int, type(None)})


def keys_of(source: ValueSource, rows: Rows, what: str) -> list[Any]:
    """The key that a source names in every row: a text, an integer or None. what: for the message of one that is
    none of them."""
    values = values_of(source, rows)
    if set(map(type, values)) <= _KEY_TYPES:
        return values
    return [_key(value, what) for value in values]


def _key(value: Any, what: str) -> str | int | None:
    if value is None or value.__class__ in _KEY_TYPES:
        return value  # type: ignore[no-any-return]  # its class was just asked for
    if isinstance(value, UUID | str):
        return str(value)
    if isinstance(value, Decimal | float) and value == int(value):
        return int(value)
    raise ExpressionFailure(f"{what} is neither text nor an integer")
