"""Run the configuration's own `tests:` through the planner: no database, the rows of entities come from the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from typing import Any

import orjson

from bridge.config.model import Case, Config
from bridge.config.specs import contract_specs, pipeline_specs
from bridge.expressions.document import json_text
from bridge.planning.column_text import scalar
from bridge.planning.entity import folded
from bridge.planning.lookup import Answer, Lookup
from bridge.planning.pipeline import entity_units
from bridge.planning.plan import Column, Planned, TableShape
from bridge.planning.planner import Planner, answered
from bridge.planning.spec import ContractSpec, PipelineSpec, TableSpec
from bridge.protocol.events import Event


@dataclass(frozen=True, slots=True)
class CaseResult:
    """The result of one test. differences: one line per unmet expectation; none: passed."""

    name: str
    differences: tuple[str, ...] = ()


@dataclass(slots=True)
class _Result:
    planned: Planned
    branches: list[str | None] = field(default_factory=list)


def run_cases(config: Config) -> list[CaseResult]:
    """Run every test of the configuration, in order. Raises ConfigError if something does not compile."""
    pipelines = {spec.name: spec for spec in pipeline_specs(config)}
    contracts = contract_specs(config)
    return [
        CaseResult(case.name, tuple(_differences(case, pipelines[case.pipeline], contracts)))
        for case in config.tests
    ]


def _differences(case: Case, pipeline: PipelineSpec, contracts: Mapping[str, ContractSpec]) -> Iterator[str]:
    result = _run(case, pipeline, contracts)
    yield from _fate(case, pipeline, result)
    planned = result.planned
    rows: dict[str, dict[str, Any]] = {
        write.spec.name: _record(write.names, write.columns) for write in planned.writes
    }
    rows |= {delivery.destination: orjson.loads(delivery.body) for delivery in planned.deliveries}
    rows |= {one.destination: one.shown() for one in planned.publications}
    yield from _kept(case, planned)
    for name, wanted in case.expect.destinations.items():
        got = rows.get(name)
        if wanted is None:
            if got is not None:
                yield f"{name}: expected nothing, but the event goes there"
        elif got is None:
            yield f"{name}: expected the event, got nothing"
        else:
            yield from _fields(name, wanted, got)


def _kept(case: Case, planned: Planned) -> Iterator[str]:
    """The event's entity fields."""
    rows = {(entity, key): row.fields for (entity, key), row in folded(planned.keeps)}
    for entity, wanted in case.expect.entities.items():
        keys = [key for name, key in rows if name == entity]
        if wanted is None:
            if keys:
                yield f"entities.{entity}: expected nothing, but the event sets fields of it"
            continue
        for key, fields in wanted.items():
            if key in keys:
                yield from _fields(f"entities.{entity}.{key}", fields, rows[entity, key])
            else:
                yield f"entities.{entity}: expected {key}, got {', '.join(keys) or 'nothing'}"


def _fate(case: Case, pipeline: PipelineSpec, result: _Result) -> Iterator[str]:
    """Dead, filtered, and the branch."""
    expect, letters = case.expect, result.planned.dead_letters
    codes = sorted({letter.code for letter in letters})
    filtered = result.planned.outcomes[pipeline.name, "filtered"] > 0
    if expect.dead is not None and expect.dead not in codes:
        yield f"dead: expected {expect.dead}, got {', '.join(codes) or 'no dead letter'}"
    if expect.dead is None:
        for code, cause in dict.fromkeys((letter.code, letter.cause) for letter in letters):
            yield f"dead: expected no dead letter, got {code}: {cause}"
    if expect.filtered != filtered and not codes:
        words = {True: "filtered out", False: "let through"}
        yield f"filtered: expected the event to be {words[expect.filtered]}, it was {words[filtered]}"
    taken = result.branches[0] if result.branches else None
    if expect.branch is not None and taken != expect.branch:
        yield f"branch: expected {expect.branch}, got {taken or 'none'}"


def _fields(name: str, wanted: Mapping[str, Any], got: Mapping[str, Any]) -> Iterator[str]:
    for column, value in wanted.items():
        if column not in got and value is None:
            continue  # nothing is written: a new row has the column's default
        if column not in got:
            yield f"{name}.{column}: expected {_shown(value)}, but the mapping does not fill it"
        elif not _equal(value, got[column]):
            yield f"{name}.{column}: expected {_shown(value)}, got {_shown(got[column])}"


def _run(case: Case, pipeline: PipelineSpec, contracts: Mapping[str, ContractSpec]) -> _Result:
    pipeline = replace(pipeline, source=case.meta.source)
    kind = case.type or pipeline.events[0]
    units = [((pipeline.name, name), destination) for name, destination in pipeline.destinations.items()]
    tables = {
        unit: _shape(spec, case, pipeline, contracts.get(kind))
        for unit, spec in units
        if isinstance(spec, TableSpec)
    }
    planner = Planner(
        [pipeline],
        contracts,
        tables,
        sinks=[unit for unit, spec in units if not isinstance(spec, TableSpec)],
        entities=entity_units(pipeline),
    )
    branches: list[str | None] = []
    planner.on_branch = lambda _pipeline, branch, _rows: branches.append(branch)

    return _Result(answered(planner.plan([event_of(case, kind)]), answer_of(case)), branches)


def answer_of(case: Case) -> Callable[[Lookup], Answer]:
    """Answers lookups with the rows of the test."""

    def answer(lookup: Lookup) -> Answer:
        row = case.entities.get(lookup.entity.as_name)
        if row is not None and lookup.entity.kept is not None:
            row = {"fields": json_text(row).decode(), "seqs": "{}"}
        return {} if row is None else dict.fromkeys(lookup.keys, row)

    return answer


def event_of(case: Case, kind: str) -> Event:
    """The event of the test, as of this type."""
    meta = case.meta
    return Event(
        id=meta.id.encode(),
        seq=b"%d" % meta.seq,
        xid=b"0",
        type=kind.encode(),
        key=None if meta.key is None else meta.key.encode(),
        payload=json_text(case.event),
        idempotency_key=None if meta.idempotency_key is None else meta.idempotency_key.encode(),
        headers=None if meta.headers is None else json_text(meta.headers),
        occurred_at=meta.occurred_at.encode(),
    )


def _shape(spec: TableSpec, case: Case, pipeline: PipelineSpec, contract: ContractSpec | None) -> TableShape:
    """A table with every column that the mapping could fill, without reading a catalog."""
    if spec.columns is not None:
        names = list(spec.columns)
    else:
        wanted = case.expect.destinations.get(spec.name)
        names = ["payload", "event_id", "occurred_at", "idempotency_key"]
        names += [one.name for one in contract.fields] if contract is not None else []
        names += list(case.event) if isinstance(case.event, dict) else []
        names += list(wanted) if isinstance(wanted, dict) else []
        for step in pipeline.steps:
            for made in step.makes:
                names += [made] if step.lookup is None else case.entities.get(made) or {}
    if spec.version_column is not None:
        names.append(spec.version_column)
    columns = {
        name: Column(name, "jsonb", "json") if name == "payload" else Column(name, "unknown", "other")
        for name in names
    }
    return TableShape(spec.schema, spec.table, columns)


def _record(names: tuple[str, ...], columns: list[list[bytes | None]]) -> dict[str, Any]:
    return {
        name: None if column[0] is None else column[0].decode()
        for name, column in zip(names, columns, strict=True)
    }


def _equal(wanted: Any, actual: Any) -> bool:  # noqa: PLR0911  one return a kind of value
    """Compare a column's text, or a message's value, with the expectation; numbers by value."""
    if wanted is None or actual is None or isinstance(actual, bool):
        return wanted is actual
    if isinstance(wanted, bool):
        return bool(actual == scalar(wanted).decode())
    if isinstance(wanted, int | float | Decimal):
        try:
            return Decimal(str(wanted)) == Decimal(str(actual))
        except InvalidOperation:
            return False
    if isinstance(wanted, str):
        return wanted == str(actual)
    try:
        value = orjson.loads(actual) if isinstance(actual, str) else actual
    except orjson.JSONDecodeError:
        return False
    return bool(orjson.loads(json_text(wanted)) == value)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return repr(value)
    return "null" if value is None else json_text(value).decode()
