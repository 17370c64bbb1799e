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
from bridge.planning.plan import Lookup, TableShape
from bridge.planning.rows import Rows
from bridge.planning.spec import (
    EnrichSpec,
    FilterSpec,
    PipelineSpec,
    RedactSpec,
    SetSpec,
    SinkSpec,
    StepSpec,
    TableSpec,
    Unit,
    UpsertSpec,
)
from bridge.planning.steps import Answer, Answers, Enrich, Step, compile_step
from bridge.protocol.events import Event

Walk = list[tuple[Step, list[str]]]
"""Each step with the units that a failure there costs: those that come of it or of what follows."""


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
        """entities: the units of upsert.entity whose dead letters are this stream's. What they keep is written by
        every stream, since each reads it, unless `only` other units are wanted."""
        self.spec = spec
        self.name = spec.name
        self.tables: dict[str, Table] = {}
        self.sinks: dict[str, Sink] = {}
        for name, destination in spec.destinations.items():
            unit = (spec.name, name)
            if isinstance(destination, TableSpec) and unit in tables:
                self.tables[name] = Table(spec.name, destination, tables[unit])
            elif isinstance(destination, SinkSpec) and unit in sinks:
                self.sinks[name] = Sink(spec.name, destination)
        self.owned = [name for name in spec.destinations if name in self.tables or name in self.sinks]
        self.branches: list[tuple[Expression | None, frozenset[str]]] = [
            (None if b.when is None else compile_expression(b.when), frozenset(b.to))
            for b in spec.branches or ()
        ]
        self.reads = self._names()
        names = [step.as_name for step in spec.steps if isinstance(step, EnrichSpec)]
        fields = {name: frozenset(_fields(name, self.reads)) for name in names}
        kept = [unit_name(step.entity) if isinstance(step, UpsertSpec) else "" for step in spec.steps]
        keeps = [bool(name) and (only is None or (spec.name, name) in only) for name in kept]
        self.steps = [
            compile_step(step, fields, spec.name, keeps=here)
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
        """False where nothing of it concerns this stream."""
        self.needs_document = (
            "event" in self.reads
            or any(name.startswith("event.") for name in self.reads)
            or any(table.spec.columns is None for table in self.tables.values())
        )

    def _names(self) -> frozenset[str]:
        names: set[str] = set()
        for step in self.spec.steps:
            names |= compile_step(step, {}).reads
        for when, _ in self.branches:
            names |= when.names if when is not None else frozenset()
        for table in self.tables.values():
            names |= table.reads
        for sink in self.sinks.values():
            names |= sink.reads
        return frozenset(names)

    def takes(self, event_type: str) -> bool:
        """True when one of its patterns matches the type."""
        return any(fnmatchcase(event_type, pattern) for pattern in self.spec.events)

    def branch(self, rows: Rows) -> list[int]:
        """The first branch that matches, for every row; one past the last where none does."""
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
    return [(spec.name, unit_name(step.entity)) for step in spec.steps if isinstance(step, UpsertSpec)]


def _fields(root: str, names: Collection[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith(root + ".")}


@dataclass(slots=True)
class Seen:
    """A step or branch: what it is, the values that it read, and what came of it."""

    what: str
    saw: dict[str, Any] = field(default_factory=dict)
    result: Any = None


@dataclass(slots=True)
class Trace:
    """seen: in order. ended: why it goes nowhere, "" when it reaches `to`. branch: None where there are none."""

    pipeline: str
    seen: list[Seen] = field(default_factory=list)
    ended: str = ""
    branch: str | None = None
    to: list[str] = field(default_factory=list)


def trace(pipeline: Pipeline, contract: Contract | None, event: Event) -> Generator[Lookup, Answer, Trace]:
    """Asks for lookups as the planner does."""
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
    rows = Rows([0], [event], [document])
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
    seen = Seen(_words(spec), _read(rows, step.reads))
    found.seen.append(seen)
    passed = yield from step.run(rows, answers)
    if isinstance(step, Enrich):
        row = passed.rows.values((step.spec.as_name,))[0] if passed.rows else None
        known = any(answers.rows.get(step.spec, {}).values())
        seen.result = "no row" if row is step.absent or not (row or known) else row
    elif isinstance(spec, UpsertSpec) and passed.rows:
        kept = [keep for keep in answers.kept.keeps if keep.entity == spec.entity]
        seen.result = {keep.key: dict(keep.fields) for keep in kept}
    elif isinstance(spec, FilterSpec):
        seen.result = not passed.filtered
    elif isinstance(spec, SetSpec) and passed.rows:
        seen.result = {name: passed.rows.values((name,))[0] for name in spec.values}
    if passed.failures:
        failure = passed.failures[0][2]
        parked = ", retries itself" if failure.retry_for_seconds is not None else ""
        found.ended = f"dead letter, {failure.code}: {failure.cause}{parked}"
    elif passed.filtered:
        found.ended = "filtered out"
    return passed.rows


def _branch(pipeline: Pipeline, rows: Rows, found: Trace) -> None:
    if pipeline.spec.branches is None:
        found.to = list(pipeline.spec.destinations)
        found.ended = "" if found.to else "it has no destination: it keeps an entity"
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
            found.ended = "" if found.to else f"branch {spec.name} leads nowhere"
            return
    found.ended = "no branch takes it"


def _words(spec: StepSpec) -> str:
    if isinstance(spec, EnrichSpec):
        return f"enrich.entity {spec.as_name} by {spec.key} from {spec.source}"
    if isinstance(spec, FilterSpec):
        return f"filter: {spec.expression}"
    if isinstance(spec, SetSpec):
        return "set: " + ", ".join(f"{name} = {value}" for name, value in spec.values.items())
    if isinstance(spec, UpsertSpec):
        return f"upsert.entity {spec.entity} by {spec.key}"
    if isinstance(spec, RedactSpec):
        return f"redact: {', '.join(spec.fields)}"
    raise TypeError(type(spec).__name__)


def _read(rows: Rows, names: frozenset[str]) -> dict[str, Any]:
    return {f"${name}": rows.exact(tuple(name.split(".")))[0] for name in sorted(names)}
