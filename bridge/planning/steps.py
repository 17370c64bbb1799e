"""The steps of a pipeline: enrich, filter, set, redact, upsert. Rows in, rows out, failures told.

A step is a generator: it may ask for a Lookup and is sent the answer; the waiting is elsewhere.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

from bridge.errors import EntityFailure, ExpressionFailure, MissingEntity
from bridge.expressions.document import json_text, parse_exact
from bridge.expressions.expression import Expression, compile_expression
from bridge.expressions.operators import MISSING, Path, follow
from bridge.planning.entity import Keep, Kept
from bridge.planning.plan import Lookup
from bridge.planning.rows import (
    Failures,
    Rows,
    ValueSource,
    classify,
    lookup_of,
    names_of,
    survivors,
    values_of,
)
from bridge.planning.spec import EnrichSpec, FilterSpec, RedactSpec, SetSpec, StepSpec, UpsertSpec

Answer = Mapping[Any, Mapping[str, Any]]


@dataclass(slots=True)
class Answers:
    """What is known in this batch so far. rows: what lookups have answered, None: asked, and there is no such row.
    kept: what its events keep."""

    rows: dict[EnrichSpec, dict[Any, Any]] = field(default_factory=dict)
    kept: Kept = field(default_factory=Kept)


@dataclass(slots=True)
class Passed:
    """What a step leaves: the rows that go on, those that failed, how many it filtered out."""

    rows: Rows
    failures: Failures = field(default_factory=list)
    filtered: int = 0


class Enrich:
    """enrich.entity: rows of an entity by key, one Lookup a batch."""

    def __init__(self, spec: EnrichSpec, fields: frozenset[str]) -> None:
        self.spec = spec
        self.key: ValueSource = classify(spec.key)
        self.reads = names_of(self.key)
        self.absent = dict.fromkeys(fields)  # every field of a row that is not there is null

    def run(self, rows: Rows, answers: Answers) -> Generator[Lookup, Answer, Passed]:
        rows, keys, failures = survivors(self._keys, rows)
        known = answers.rows.setdefault(self.spec, {})
        wanted = [key for key in dict.fromkeys(keys) if key is not None and key not in known]
        for kind in (str, int):
            some = [key for key in wanted if key.__class__ is kind]
            if some:
                answer = yield Lookup(self.spec, some)
                known.update(zip(some, map(partial(lookup_of, answer), some), strict=True))
        found = [known.get(key) for key in keys]
        if self.spec.kept is not None:
            fields = answers.kept.rows(self.spec.kept, rows.at, keys, found)
            found = [None if row is None else {**self.absent, **row} for row in fields]
        if None not in found:
            return Passed(rows.with_root(self.spec.as_name, found), failures)
        if self.spec.missing == "continue":
            absent = self.absent
            found = [absent if row is None else row for row in found]
            return Passed(rows.with_root(self.spec.as_name, found), failures)
        parked = self.spec.retry_for_seconds if self.spec.missing == "retry" else None
        for place, event, key, row in zip(rows.at, rows.events, keys, found, strict=True):
            if row is None:
                why = "the key is null or missing" if key is None else "no row has this key"
                cause = f"enrich.entity {self.spec.as_name}: {why}"
                failures.append((place, event, MissingEntity(cause, retry_for_seconds=parked)))
        mask = [row is not None for row in found]
        rows = rows.keep(mask).with_root(self.spec.as_name, [row for row in found if row is not None])
        return Passed(rows, failures)

    def _keys(self, rows: Rows) -> list[Any]:
        keys = _keys(self.key, rows, f"enrich.entity {self.spec.as_name}: key {self.spec.key!r}")
        if self.spec.kept is None:
            return keys
        return [None if key is None else str(key) for key in keys]


_KEY_TYPES = frozenset({str, int, type(None)})


def _keys(source: ValueSource, rows: Rows, what: str) -> list[Any]:
    """The key of each row: a text, an integer or None."""
    values = values_of(source, rows)
    if set(map(type, values)) <= _KEY_TYPES:
        return values
    return [_key(value, what) for value in values]


def _key(value: Any, what: str) -> str | int | None:
    if value is None or value.__class__ in _KEY_TYPES:
        return value  # type: ignore[no-any-return]  # its class was just asked for
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Decimal | float) and value == int(value):
        return int(value)
    raise ExpressionFailure(f"{what} is neither a text nor an integer")


class Upsert:
    """upsert.entity: what the events say of an entity. They go on as they came.

    A field of the event that is not there says nothing; null says null.
    """

    def __init__(self, spec: UpsertSpec, pipeline: str, *, active: bool) -> None:
        """active: False, and the step does nothing: another unit is planned."""
        self.spec = spec
        self.active = active
        self._pipeline = pipeline
        self._key = classify(spec.key)
        self._fields = None if spec.fields is None else {n: classify(v) for n, v in spec.fields.items()}
        names = [frozenset({"event"})] if self._fields is None else map(names_of, self._fields.values())
        self.reads = names_of(self._key).union(*names)

    def run(self, rows: Rows, answers: Answers) -> Generator[Lookup, Answer, Passed]:
        if not self.active:
            return Passed(rows)
        rows, keeps, failures = survivors(self._keeps, rows)
        answers.kept.add([keep for keep in keeps if keep.fields])
        return Passed(rows, failures)
        yield  # a generator, as every step

    def _keeps(self, rows: Rows) -> list[Keep]:
        what = f"upsert.entity {self.spec.entity}: key {self.spec.key!r}"
        keys = [_entity_key(key, what) for key in _keys(self._key, rows, what)]
        entity, pipeline = self.spec.entity, self._pipeline
        return [
            Keep(pipeline, entity, key, event, place, parse_exact(json_text(fields)))
            for key, event, place, fields in zip(keys, rows.events, rows.at, self._said(rows), strict=True)
        ]

    def _said(self, rows: Rows) -> list[dict[str, Any]]:
        if self._fields is None:
            return [rows.document(row) for row in range(len(rows))]
        said: list[dict[str, Any]] = [{} for _ in rows.events]
        for name, source in self._fields.items():
            path = source.plain_path if isinstance(source, Expression) else None
            for document, fields, value in zip(rows.documents, said, values_of(source, rows), strict=True):
                from_event = value is None and path is not None and path[0] == "event"
                if not (from_event and follow(document, (path or ())[1:]) is MISSING):
                    fields[name] = value
        return said


_LONGEST_KEY = 500  # characters; an index entry has its limits, and an outbox' own ordering key the same


def _entity_key(key: str | int | None, what: str) -> str:
    text = "" if key is None else str(key)
    if not text:
        raise EntityFailure(f"{what} is null, missing or empty")
    if len(text) > _LONGEST_KEY or "\0" in text:
        raise EntityFailure(f"{what} is longer than {_LONGEST_KEY} characters or holds a NUL")
    return text


class Filter:
    """Lets the rows through for which an expression is true."""

    def __init__(self, spec: FilterSpec) -> None:
        self.expression = compile_expression(spec.expression)
        self.reads = self.expression.names

    def run(self, rows: Rows, answers: Answers) -> Generator[Lookup, Answer, Passed]:
        rows, values, failures = survivors(lambda some: some.evaluate(self.expression), rows)
        mask = [bool(value) for value in values]
        if all(mask):
            return Passed(rows, failures)
        return Passed(rows.keep(mask), failures, mask.count(False))
        yield  # a generator, as every step


class Set:
    """Adds names."""

    def __init__(self, spec: SetSpec) -> None:
        self.expressions = {name: compile_expression(source) for name, source in spec.values.items()}
        self.reads = frozenset().union(*(e.names for e in self.expressions.values()))

    def run(self, rows: Rows, answers: Answers) -> Generator[Lookup, Answer, Passed]:
        failures: Failures = []
        for name, expression in self.expressions.items():
            rows, values, failed = survivors(partial(exactly, expression), rows)
            rows = rows.with_root(name, values)
            failures += failed
        return Passed(rows, failures)
        yield  # a generator, as every step


def exactly(expression: Expression, rows: Rows) -> list[Any]:
    """Values; a lone path keeps its exact numbers."""
    if expression.plain_path is not None:
        return rows.exact(expression.plain_path)
    return rows.evaluate(expression)


class Redact:
    """Removes fields from the event, and so from the payload."""

    def __init__(self, spec: RedactSpec) -> None:
        self.paths: tuple[Path, ...] = tuple(
            tuple(name.removeprefix("$event.").split(".")) for name in spec.fields
        )
        self.reads = frozenset({"event." + ".".join(path) for path in self.paths})

    def run(self, rows: Rows, answers: Answers) -> Generator[Lookup, Answer, Passed]:
        return Passed(rows.redacted(self.paths))
        yield  # a generator, as every step


Step = Enrich | Filter | Set | Redact | Upsert


def compile_step(
    spec: StepSpec, fields: Mapping[str, frozenset[str]], pipeline: str = "", *, keeps: bool = False
) -> Step:
    """fields: for each enrichment, which of its fields the pipeline reads. keeps: its upsert.entity is active."""
    if isinstance(spec, UpsertSpec):
        return Upsert(spec, pipeline, active=keeps)
    if isinstance(spec, EnrichSpec):
        return Enrich(spec, fields.get(spec.as_name, frozenset()))
    if isinstance(spec, FilterSpec):
        return Filter(spec)
    if isinstance(spec, SetSpec):
        return Set(spec)
    return Redact(spec)
