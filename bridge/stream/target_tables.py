"""A stream's planner for the target's tables as they are now: the catalog is asked before anything is planned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from bridge.errors import Halt
from bridge.planning.plan import Column, TableShape
from bridge.planning.planner import Planner
from bridge.planning.spec import TableSpec, Unit
from bridge.postgres.catalog import ledger_findings, table_shape
from bridge.postgres.connect import connect
from bridge.postgres.profiles import CATALOG
from bridge.stream.spec import StreamSpec


def plan_target(plan: StreamSpec) -> Planner:
    """Check the target's catalog and compile the pipelines for its tables. Raises Halt."""
    shapes: dict[tuple[str, str], TableShape] = {}
    with connect(plan.target_dsn, CATALOG, f"bridge-check/{plan.stream}") as connection:
        findings = ledger_findings(connection)
        for pipeline in plan.pipelines:
            for name, destination in pipeline.destinations.items():
                if isinstance(destination, TableSpec) and destination.connection == plan.connection:
                    kinds = contract_kinds(plan, pipeline.events, destination)
                    shape, found = table_shape(connection, destination, kinds)
                    findings += found
                    if shape is not None:
                        shapes[pipeline.name, name] = shape
    if findings:
        message = "; ".join(finding.message for finding in findings)
        fixes = dict.fromkeys(finding.fix for finding in findings)
        raise Halt(message, reason=findings[0].reason, hint="\n".join(fixes))
    return Planner(
        plan.pipelines,
        plan.contracts,
        shapes,
        sinks=plan.sinks,
        entities=plan.entities,
        unmatched=plan.unmatched,
        max_payload=plan.max_payload,
        nulls=plan.outbox.is_foreign,
    )


def table_of(plan: StreamSpec, events: tuple[str, ...], spec: TableSpec) -> TableShape:
    """One destination's table. events: the types that its pipeline takes. Raises Halt if the table does not fit."""
    with connect(plan.target_dsn, CATALOG, f"bridge-check/{plan.stream}") as connection:
        shape, findings = table_shape(connection, spec, contract_kinds(plan, events, spec))
    if findings or shape is None:
        first = findings[0]
        raise Halt(first.message, reason=first.reason, hint=first.fix)
    return shape


def contract_kinds(plan: StreamSpec, events: tuple[str, ...], spec: TableSpec) -> Mapping[str, str]:
    """Column -> contract type, for columns mapped from one field of one contract."""
    contracts = [plan.contracts[name] for name in events if name in plan.contracts]
    if len(contracts) != 1 or len(events) != 1:
        return {}
    fields = {f"$event.{field.name}": field.type for field in contracts[0].fields}
    columns = spec.columns or {field.name: f"$event.{field.name}" for field in contracts[0].fields}
    return {
        column: fields[source]
        for column, source in columns.items()
        if isinstance(source, str) and source in fields
    }


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
