"""One event's way through one pipeline, with what each condition saw. For a person who asks: values are in it.

Apart from the planner, which works by columns and keeps nothing: this runs the same compiled steps on a
single row and writes down what they read and said.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from bridge.core.compiled import Pipeline
from bridge.core.contract import Contract
from bridge.core.document import parse
from bridge.core.event import Event
from bridge.core.failure import UnitFailure
from bridge.core.plan import Lookup
from bridge.core.rows import Rows
from bridge.core.spec import EnrichSpec, FilterSpec, RedactSpec, SetSpec, StepSpec, UpsertSpec
from bridge.core.steps import Answer, Answers, Enrich, Step


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
