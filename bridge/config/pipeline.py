"""Pipelines: which events, through which steps, along which branch, to which destinations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationInfo,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from bridge.config.destinations.destination import DESTINATIONS, DestinationSection, kind_of
from bridge.planning.steps.step import StepSection, steps
from bridge.section import ONE_OR_MORE, ExpressionText, PlainName, Section, SlotWord, Text


class _ByWord:
    """A step in the file: a mapping whose only key says which step it is."""

    def __get_pydantic_core_schema__(self, _source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        fields = {
            word: core_schema.typed_dict_field(handler.generate_schema(section), required=False)
            for word, section in steps().items()
        }
        written = core_schema.typed_dict_schema(fields, extra_behavior="forbid")
        return core_schema.no_info_after_validator_function(_only, written)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        found = handler(schema)
        for word, section in steps().items():
            found["properties"][word]["description"] = (section.__doc__ or "").partition("\n")[0]
        return {**found, "title": "Step", "minProperties": 1, "maxProperties": 1}


def _only(written: dict[str, StepSection]) -> StepSection:
    if len(written) != 1:
        raise ValueError(f"must have exactly one of {', '.join(steps())}")
    return next(iter(written.values()))


Step = Annotated[StepSection, _ByWord()]


class Branch(Section):
    """A branch. The first whose `when` is true is taken."""

    name: PlainName
    """The name in metrics, tests and explain."""
    when: ExpressionText | None = None
    """The condition. Absent: always true; later branches are then unreachable."""
    to: Annotated[tuple[str, ...], ONE_OR_MORE]
    """Names of destinations; [] for none."""


class _ByConnection:
    """A destination in the file: what it is, its connection and its keys tell."""

    def __get_pydantic_core_schema__(self, _source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        every = core_schema.union_schema([handler.generate_schema(each) for each in DESTINATIONS.values()])
        return core_schema.with_info_wrap_validator_function(_by_connection, every)


def _by_connection(value: Any, _handler: Any, info: ValidationInfo) -> DestinationSection:
    if isinstance(value, DestinationSection):
        return value
    kinds: Mapping[str, str] = (info.context or {}).get("connections", {})
    model = kind_of(value if isinstance(value, dict) else {}, kinds)
    return model.model_validate(value, context=info.context)


Destination = Annotated[DestinationSection, _ByConnection()]


class PipelineSection(Section):
    """What happens to events of some types."""

    events: Annotated[tuple[Text, ...], ONE_OR_MORE, Field(alias="event", min_length=1)]
    """A type, a list of types, or globs such as "usage.*"."""
    sources: Annotated[tuple[SlotWord, ...] | None, ONE_OR_MORE, Field(min_length=1)] = None
    """Of several sources, those whose events it takes. Absent: every one."""
    steps: tuple[Step, ...] = ()
    """The steps, in order."""
    branches: tuple[Branch, ...] | None = None
    """The first match wins. Absent: every destination."""
    destinations: dict[PlainName, Destination] = Field(default_factory=dict)
    """Tables and sinks, by name. Only a pipeline with upsert.entity may have none."""

    @model_validator(mode="after")
    def _goes_somewhere(self) -> PipelineSection:
        if not self.destinations and not any(step.keeps for step in self.steps):
            raise ValueError("`destinations` is missing: only a pipeline with upsert.entity may have none")
        return self
