"""A stream's planner for the target's tables as they are now: the catalog is asked before anything is planned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

import psycopg

from bridge.errors import Halt
from bridge.planning.plan import Column, TableShape
from bridge.planning.planner import Planner
from bridge.planning.spec import ContractSpec, TableSpec, Unit
from bridge.postgres.catalog import ledger_findings, table_shape
from bridge.postgres.connect import connect
from bridge.postgres.profiles import CATALOG
from bridge.postgres.target_rules import Finding, Lack
from bridge.postgres.versions import REASONS
from bridge.stream.spec import StreamSpec


def connect_catalog(plan: StreamSpec) -> psycopg.Connection:
    """A connection to ask the target's catalog."""
    return connect(plan.target_dsn, CATALOG, f"bridge-check/{plan.stream}")


def plan_target(plan: StreamSpec, *, reads: bool = False) -> Planner:
    """Check the target's catalog and compile the pipelines for its tables. reads: nothing will be written, so a ledger
    of a newer release is as good. Raises Halt."""
    with connect_catalog(plan) as target:
        return examine_target(plan, target, reads=reads)[0]


def examine_target(
    plan: StreamSpec, target: psycopg.Connection, *, reads: bool = False
) -> tuple[Planner, list[Finding]]:
    """The same, and what does not stop the stream and may cost events."""
    shapes: dict[tuple[str, str], TableShape] = {}
    doubts: list[Finding] = []
    findings = [one for one in ledger_findings(target) if not (reads and one.reason == REASONS["target"])]
    for pipeline in plan.pipelines:
        for name, destination in pipeline.destinations.items():
            if isinstance(destination, TableSpec) and destination.connection == plan.connection:
                shape, found = table_of_destination(target, plan, pipeline.events, destination)
                findings += [finding for finding in found if finding.stops]
                doubts += [finding for finding in found if not finding.stops]
                if shape is not None:
                    shapes[pipeline.name, name] = shape
    if findings:
        message = "; ".join(finding.message for finding in findings)
        fixes = dict.fromkeys(finding.fix for finding in findings)
        raise Halt(message, reason=findings[0].reason, hint="\n".join(fixes))
    planner = Planner(
        plan.pipelines,
        plan.contracts,
        shapes,
        sinks=plan.messages,
        entities=plan.entities,
        unmatched=plan.unmatched,
        ignored=plan.ignored,
        max_payload=plan.max_payload,
        nulls=plan.outbox.is_foreign,
    )
    return planner, doubts


def table_of(plan: StreamSpec, events: tuple[str, ...], spec: TableSpec) -> TableShape:
    """One destination's table. events: the types that its pipeline takes. Raises Halt if the table does not fit."""
    with connect_catalog(plan) as target:
        shape, findings = table_of_destination(target, plan, events, spec)
    for finding in findings:
        if finding.stops:
            raise Halt(finding.message, reason=finding.reason, hint=finding.fix)
    assert shape is not None  # noqa: S101  otherwise a finding says why
    return shape


def table_of_destination(
    connection: psycopg.Connection, plan: StreamSpec, events: tuple[str, ...], spec: TableSpec
) -> tuple[TableShape | None, list[Finding]]:
    """Its shape and findings, of what the contracts of these event types say."""
    kinds, nulls = contract_kinds(plan, events, spec), contract_nulls(plan, events, spec)
    return table_shape(connection, spec, kinds, nulls)


def contract_kinds(plan: StreamSpec, events: tuple[str, ...], spec: TableSpec) -> Mapping[str, str]:
    """Column -> contract type, for columns mapped from one field of one contract."""
    contracts = [plan.contracts[name] for name in events if name in plan.contracts]
    if len(contracts) != 1 or len(events) != 1:
        return {}
    fields = {f"$event.{field.name}": field.type for field in contracts[0].fields}
    return {
        column: fields[source]
        for column, source in _columns(spec, contracts).items()
        if isinstance(source, str) and source in fields
    }


def contract_nulls(plan: StreamSpec, events: tuple[str, ...], spec: TableSpec) -> Mapping[str, Lack]:
    """Column -> may the field that fills it be absent or null? For columns mapped from one field of a contract; "" only
    where each type of these has a contract that requires it."""
    names = {
        name: contract for name, contract in plan.contracts.items() for p in events if fnmatchcase(name, p)
    }
    contracts = list(names.values())
    all_known = all(event in names for event in events)
    nulls: dict[str, Lack] = {}
    for column, source in _columns(spec, contracts).items():
        field = source.removeprefix("$event.") if isinstance(source, str) else ""
        found = [each for contract in contracts for each in contract.fields if each.name == field]
        if not found or source != f"$event.{field}":
            continue
        optional = any(not each.required for each in found) or len(found) < len(contracts)
        lack: Lack = "null" if any(each.nullable for each in found) else "absent" if optional else ""
        if lack or all_known:
            nulls[column] = lack
    return nulls


def _columns(spec: TableSpec, contracts: Sequence[ContractSpec]) -> Mapping[str, object]:
    """Column -> value, the version's among them; under the default mapping those that the contracts name."""
    columns: dict[str, object] = dict(spec.columns or {})
    if spec.columns is None:
        columns = {field.name: f"$event.{field.name}" for one in contracts for field in one.fields}
    if spec.version_column is not None:
        columns.setdefault(spec.version_column, spec.version)
    return columns


def differences(old: Mapping[Unit, TableShape], new: Mapping[Unit, TableShape]) -> Iterator[tuple[str, str]]:
    """(table, what was altered), for tables of both."""
    told = set()
    for unit, shape in new.items():
        before = old.get(unit)
        table = f"{shape.schema}.{shape.table}"
        if before is None or before.columns == shape.columns or table in told:
            continue
        told.add(table)
        words = [f"column {name} is gone" for name in before.columns if name not in shape.columns]
        for name, column in shape.columns.items():
            was = before.columns.get(name)
            if was is None:
                words.append(f"column {name} is new: {column.declared}")
            elif was != column:
                words.append(f"column {name}: {_told(was)} is now {_told(column)}")
        yield table, "; ".join(words)


def _told(column: Column) -> str:
    words = [column.declared, "not null" if column.not_null else "", "default" if column.has_default else ""]
    return " ".join(filter(None, words)) + ("" if column.writable else " (generated)")
