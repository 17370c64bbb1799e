"""The models as plain values: what the planner, the capture and the sinks work from."""

from __future__ import annotations

from bridge.config.contract import EventContract
from bridge.config.model import Config
from bridge.config.pipeline import PipelineSection
from bridge.planning.spec import BranchSpec, ContractSpec, FieldSpec, PipelineSpec


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
        source=config.source_name,
        events=pipeline.events,
        steps=tuple(step.spec(config.entities) for step in pipeline.steps),
        branches=branches,
        destinations={
            key: destination.spec(key, config.connections[destination.connection])
            for key, destination in pipeline.destinations.items()
        },
    )
