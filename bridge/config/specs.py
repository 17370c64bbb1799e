"""The models as the plain values of core/spec: what the planner, the capture and the sinks work from."""

from __future__ import annotations

from types import MappingProxyType

from bridge.config.contract import Entity, EventContract, kept_sql
from bridge.config.model import Config
from bridge.config.pipeline import (
    EnrichEntity,
    PipelineSection,
    SinkDestination,
    StepSection,
    TableDestination,
    table_names,
)
from bridge.planning.spec import (
    BranchSpec,
    ContractSpec,
    DestinationSpec,
    EnrichSpec,
    FieldSpec,
    FilterSpec,
    PipelineSpec,
    RedactSpec,
    SetSpec,
    SinkSpec,
    StepSpec,
    TableSpec,
    UpsertSpec,
)
from bridge.sinks.kinds import SINKS


def pipeline_specs(config: Config) -> list[PipelineSpec]:
    """Every pipeline, in the order of the file."""
    return [_pipeline(name, pipeline, config) for name, pipeline in config.pipelines.items()]


def contract_specs(config: Config) -> dict[str, ContractSpec]:
    """Every event contract, by event type."""
    return {name: _contract(name, contract) for name, contract in config.events.items()}


def _contract(name: str, contract: EventContract) -> ContractSpec:
    fields = tuple(
        FieldSpec(key, field.type, field.enum, field.required, field.nullable)
        for key, field in contract.fields.items()
    )
    return ContractSpec(name, fields, contract.unknown)


def _pipeline(name: str, pipeline: PipelineSection, config: Config) -> PipelineSpec:
    branches = None
    if pipeline.branches is not None:
        branches = tuple(BranchSpec(branch.name, branch.when, branch.to) for branch in pipeline.branches)
    return PipelineSpec(
        name=name,
        events=pipeline.events,
        steps=tuple(_step(step, config) for step in pipeline.steps),
        branches=branches,
        destinations={key: _destination(key, value, config) for key, value in pipeline.destinations.items()},
    )


def _step(step: StepSection, config: Config) -> StepSpec:
    if step.enrich_entity is not None:
        return _enrich(step.enrich_entity, config)
    if step.upsert_entity is not None:
        upsert = step.upsert_entity
        return UpsertSpec(upsert.entity, upsert.key, upsert.fields)
    if step.filter is not None:
        return FilterSpec(step.filter)
    if step.set is not None:
        return SetSpec(MappingProxyType(dict(step.set)))
    return RedactSpec(step.redact or ())


def _enrich(enrich: EnrichEntity, config: Config) -> EnrichSpec:
    origin: EnrichEntity | Entity = enrich if enrich.entity is None else config.entities[enrich.entity]
    kept = enrich.entity if origin.sql is None else None
    return EnrichSpec(
        as_name=enrich.name,
        key=enrich.key,
        source=origin.source,
        sql=origin.sql or kept_sql(kept or ""),
        cache_seconds=origin.cache.total_seconds(),
        missing=enrich.missing,
        retry_for_seconds=enrich.retry_for.total_seconds(),
        kept=kept,
    )


def _destination(
    name: str, destination: TableDestination | SinkDestination, config: Config
) -> DestinationSpec:
    if isinstance(destination, TableDestination):
        schema, table = table_names(destination.table)
        return TableSpec(
            name=name,
            connection=destination.connection,
            schema=schema,
            table=table,
            mode=destination.mode,
            key=destination.key,
            version=destination.version,
            columns=destination.columns,
        )
    kind = config.connections[destination.connection].type
    message = SINKS[kind].message
    return SinkSpec(
        name=name,
        connection=destination.connection,
        kind=kind,
        fields={**message.given, **destination.fields},
        escapes=message.escapes(destination.fields),
        max_age_seconds=destination.max_age.total_seconds(),
        timeout_seconds=destination.timeout.total_seconds(),
    )
