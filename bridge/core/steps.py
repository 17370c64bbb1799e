"""The steps of a pipeline: enrich, filter, set, redact. Rows in, rows out, failures told.

A step is a generator: it may ask for a Lookup and is sent the answer; the waiting is elsewhere.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

from bridge.core.expressions.expression import Expression, compile_expression
from bridge.core.expressions.path import Path
from bridge.core.failure import ExpressionFailure, MissingEntity
from bridge.core.plan import Lookup
from bridge.core.rows import Failures, Rows, lookup_of, survivors
from bridge.core.source import ValueSource, classify, names_of, values_of
from bridge.core.spec import EnrichSpec, FilterSpec, RedactSpec, SetSpec, StepSpec

Answer = Mapping[Any, Mapping[str, Any]]
Answers = dict[EnrichSpec, dict[Any, Any]]
"""What the lookups of this batch have answered so far; None: asked, and there is no such row."""


@dataclass(slots=True)
class Passed:
    """What a step leaves: the rows that go on, those that failed, how many it filtered out."""

    rows: Rows
    failures: Failures = field(default_factory=list)
    filtered: int = 0


Step = "Enrich | Filter | Set | Redact"


class Enrich:
    """enrich.entity: rows of an entity by key, one Lookup a batch."""

    def __init__(self, spec: EnrichSpec, fields: frozenset[str]) -> None:
        self.spec = spec
        self.key: ValueSource = classify(spec.key)
        self.reads = names_of(self.key)
        self.absent = dict.fromkeys(fields)  # every field of a row that is not there is null

    def run(self, rows: Rows, answers: Answers) -> Generator[Lookup, Answer, Passed]:
        rows, keys, failures = survivors(self._keys, rows)
        known = answers.setdefault(self.spec, {})
        wanted = [key for key in dict.fromkeys(keys) if key is not None and key not in known]
        for kind in (str, int):
            some = [key for key in wanted if key.__class__ is kind]
            if some:
                answer = yield Lookup(self.spec, some)
                known.update((key, lookup_of(answer, key)) for key in some)
        found = [known.get(key) for key in keys]
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
        if isinstance(self.key, Expression) and self.key.plain_path is not None:
            values = rows.exact(self.key.plain_path)
        elif isinstance(self.key, Expression):
            values = rows.evaluate(self.key)
        else:
            values = values_of(self.key, rows)
        if set(map(type, values)) <= _KEY_TYPES:
            return values
        return [self._key(value) for value in values]

    def _key(self, value: Any) -> str | int | None:
        if value is None or value.__class__ in _KEY_TYPES:
            return value  # type: ignore[no-any-return]  # its class was just asked for
        if isinstance(value, UUID):
            return str(value)
        if isinstance(value, Decimal | float) and value == int(value):
            return int(value)
        raise ExpressionFailure(
            f"enrich.entity {self.spec.as_name}: key {self.spec.key!r} is neither a text nor an integer"
        )


_KEY_TYPES = frozenset({str, int, type(None)})


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


def compile_step(spec: StepSpec, fields: Mapping[str, frozenset[str]]) -> Enrich | Filter | Set | Redact:
    """fields: for each enrichment, which of its fields the pipeline reads."""
    if isinstance(spec, EnrichSpec):
        return Enrich(spec, fields.get(spec.as_name, frozenset()))
    if isinstance(spec, FilterSpec):
        return Filter(spec)
    if isinstance(spec, SetSpec):
        return Set(spec)
    return Redact(spec)
