"""One pipeline compiled for one stream, and the trace of a single event through it.

The planner works by columns and keeps nothing. A trace runs the same compiled steps on one row and records what
they read and said, for a person who asks: values are in it.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import compress
from typing import Any

from bridge.errors import UnitFailure
from bridge.expressions.document import parse
from bridge.expressions.expression import Expression, compile_expression
from bridge.planning.contract import Contract
from bridge.planning.destination import Sink, Table
from bridge.planning.entity import unit_name
from bridge.planning.lookup import Answer, Lookup
from bridge.planning.plan import TableShape
from bridge.planning.publication import Subject
from bridge.planning.rows import Rows
from bridge.planning.spec import PipelineSpec, SinkSpec, SubjectSpec, TableSpec, Unit
from bridge.planning.steps.step import Answers, Step, StepContext, StepSpec
from bridge.protocol.events import Event

Walk = list[tuple[Step, list[str]]]
"""Each step with the units that a failure in it makes dead: its own and those that follow."""


class Pipeline:
    """One pipeline, compiled, with the destinations that this stream owns."""

    def __init__(
        self,
        spec: PipelineSpec,
        tables: Mapping[Unit, TableShape],
        sinks: Collection[Unit],
        entities: Collection[Unit] = (),
        only: Collection[Unit] | None = None,
    ) -> None:
        """entities: the units of upsert.entity whose dead letters belong to this stream. Every stream writes the
        entities, because each one reads them, unless `only` other units are wanted."""
        self.spec = spec
        self.name = spec.name
        self.tables: dict[str, Table] = {}
        self.sinks: dict[str, Sink] = {}
        self.subjects: dict[str, Subject] = {}
        for name, destination in spec.destinations.items():
            unit = (spec.name, name)
            if isinstance(destination, TableSpec) and unit in tables:
                self.tables[name] = Table(spec.name, destination, tables[unit])
            elif isinstance(destination, SinkSpec) and unit in sinks:
                self.sinks[name] = Sink(spec.name, destination)
            elif isinstance(destination, SubjectSpec) and unit in sinks:
                self.subjects[name] = Subject(spec.name, destination)
        compiled = {**self.tables, **self.sinks, **self.subjects}
        self.owned = [name for name in spec.destinations if name in compiled]
        self.branches: list[tuple[Expression | None, frozenset[str]]] = [
            (None if b.when is None else compile_expression(b.when), frozenset(b.to))
            for b in spec.branches or ()
        ]
        self.reads = self._names()
        kept = [unit_name(step.keeps) if step.keeps else "" for step in spec.steps]
        keeps = [bool(name) and (only is None or (spec.name, name) in only) for name in kept]
        self.steps = [
            step.compile(StepContext(spec.name, self.reads, keeps=here))
            for step, here in zip(spec.steps, keeps, strict=True)
        ]
        mine = [here and (spec.name, name) in entities for name, here in zip(kept, keeps, strict=True)]
        self.walk: Walk = [
            (step, [*dict.fromkeys(compress(kept[at:], mine[at:])), *self.owned])
            for at, step in enumerate(self.steps)
        ]
        # So many steps to the last upsert.entity: they run before anything is looked up for another pipeline.
        self.head = len(keeps) - keeps[::-1].index(True) if True in keeps else 0
        self.units = self.walk[0][1] if self.walk else self.owned
        self.active = bool(self.units or self.head)
        """False if the pipeline has no unit of this stream."""
        self.needs_document = (
            "event" in self.reads
            or any(name.startswith("event.") for name in self.reads)
            or any(table.spec.columns is None for table in self.tables.values())
        )

    def _names(self) -> frozenset[str]:
        names: set[str] = set()
        for step in self.spec.steps:
            names |= step.compile(StepContext()).reads
        for when, _ in self.branches:
            names |= when.names if when is not None else frozenset()
        for table in self.tables.values():
            names |= table.reads
        for sink in self.sinks.values():
            names |= sink.reads
        for subject in self.subjects.values():
            names |= subject.reads
        return frozenset(names)

    def takes(self, event_type: str) -> bool:
        """True when one of its patterns matches the type."""
        return any(fnmatchcase(event_type, pattern) for pattern in self.spec.events)

    def branch(self, rows: Rows) -> list[int]:
        """For every row, the index of the first branch that matches; the number of branches if none does."""
        chosen = [len(self.branches)] * len(rows)
        left = list(range(len(rows)))
        for number, (when, _) in enumerate(self.branches):
            if not left:
                break
            matches = [True] * len(left) if when is None else list(map(bool, rows.evaluate(when)))
            if True not in matches:
                continue
            for row, match in zip(left, matches, strict=True):
                if match:
                    chosen[row] = number
            left = [row for row, match in zip(left, matches, strict=True) if not match]
            if left:
                rows = rows.keep([not match for match in matches])
        return chosen


def entity_units(spec: PipelineSpec) -> list[Unit]:
    """The units of its upsert.entity steps."""
    return [(spec.name, unit_name(step.keeps)) for step in spec.steps if step.keeps]


@dataclass(slots=True)
class Seen:
    """A step or branch: its text, the values that it read, and its result."""

    what: str
    saw: dict[str, Any] = field(default_factory=dict)
    result: Any = None


@dataclass(slots=True)
class Trace:
    """seen: in order. ended: why the event stops, "" if it reaches `to`. passed_over: because the pipeline says so, and
    it is no dead letter. branch: None if the pipeline has none."""

    pipeline: str
    seen: list[Seen] = field(default_factory=list)
    ended: str = ""
    passed_over: bool = False
    branch: str | None = None
    to: list[str] = field(default_factory=list)


def trace(pipeline: Pipeline, contract: Contract | None, event: Event) -> Generator[Lookup, Answer, Trace]:
    """Yields lookups, as the planner does."""
    found = Trace(pipeline.name)
    try:
        document = parse(event.payload)
    except UnitFailure as failure:
        found.ended = f"dead letter, {failure.code}: {failure.cause}"
        return found
    if contract is not None:
        broken = contract.violation(document, event.payload)
        found.seen.append(Seen(f"contract {contract.spec.event}", result=broken.cause if broken else "kept"))
        if broken is not None:
            found.ended = f"dead letter, {broken.code}: {broken.cause}"
            return found
    rows = Rows([0], [event], [document], source=pipeline.spec.source)
    answers = Answers()
    for spec, step in zip(pipeline.spec.steps, pipeline.steps, strict=True):
        rows = yield from _step(spec, step, rows, answers, found)
        if found.ended:
            return found
    _branch(pipeline, rows, found)
    return found


def _step(
    spec: StepSpec, step: Step, rows: Rows, answers: Answers, found: Trace
) -> Generator[Lookup, Answer, Rows]:
    seen = Seen(spec.words(), _read(rows, step.reads))
    found.seen.append(seen)
    passed = yield from step.run(rows, answers)
    seen.result = step.result(passed, answers)
    if passed.failures:
        failure = passed.failures[0][2]
        parked = ", retried automatically" if failure.retry_for_seconds is not None else ""
        found.ended = f"dead letter, {failure.code}: {failure.cause}{parked}"
    elif passed.filtered:
        found.ended, found.passed_over = "filtered out", True
    return passed.rows


def _branch(pipeline: Pipeline, rows: Rows, found: Trace) -> None:
    if pipeline.spec.branches is None:
        found.to = list(pipeline.spec.destinations)
        found.ended = "" if found.to else "the pipeline has no destination: it maintains an entity"
        return
    for spec, (when, to) in zip(pipeline.spec.branches, pipeline.branches, strict=True):
        seen = Seen(
            f"branch {spec.name}: {spec.when or 'always'}", _read(rows, when.names if when else frozenset())
        )
        found.seen.append(seen)
        try:
            seen.result = True if when is None else bool(rows.evaluate(when)[0])
        except UnitFailure as failure:
            found.ended = f"dead letter, {failure.code}: {failure.cause}"
            return
        if seen.result:
            found.branch = spec.name
            found.to = [name for name in pipeline.spec.destinations if name in to]
            found.ended = "" if found.to else f"branch {spec.name} has no destination"
            found.passed_over = not found.to
            return
    found.ended, found.passed_over = "no branch matches", True


def _read(rows: Rows, names: frozenset[str]) -> dict[str, Any]:
    return {f"${name}": rows.exact(tuple(name.split(".")))[0] for name in sorted(names)}
