"""Pipelines: which events, through which steps, along which branch, to which destinations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, WrapValidator, model_validator

from bridge.config.contract import takes_keys
from bridge.config.quantity import Duration
from bridge.section import OpenSection, PlainName, RootName, Section

_PART = r'(?:"(?:[^"\x00]|"")+"|[A-Za-z_\u0080-\U0010ffff][A-Za-z0-9_$\u0080-\U0010ffff]*)'
_TABLE = re.compile(rf"({_PART})\.({_PART})")


def split_table(text: str) -> tuple[str, str] | None:
    """(schema, table); quoted parts keep their case, others fold to lower, as in SQL. None: not qualified."""
    match = _TABLE.fullmatch(text)
    return (_name(match[1]), _name(match[2])) if match else None


def _name(part: str) -> str:
    return part[1:-1].replace('""', '"') if part.startswith('"') else part.lower()


def table_names(text: str) -> tuple[str, str]:
    """(schema, table), in schema public where none is named; a text that SQL would not read is taken as it is."""
    split = split_table(text)
    if split is None:
        schema, _, table = text.rpartition(".")
        split = (schema, table) if schema else split_table(f"public.{text}") or ("public", text)
    return split


Text = Annotated[str, Field(min_length=1)]


def _expression(value: Any) -> Any:
    """YAML reads `when: true` and `filter: 1` as what they are; as expressions they are their text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


ExpressionText = Annotated[str, Field(min_length=1), BeforeValidator(_expression)]
"""An expression over $event, $meta, enrichments and names made by `set`."""


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class EnrichEntity(Section):
    """One lookup for all keys of a batch. The first column of `sql` is the key."""

    as_name: Annotated[RootName | None, Field(alias="as")] = None
    """What expressions call the row found. Absent: as the entity is called."""
    entity: RootName | None = None
    """One of `entities`, instead of `from`, `sql` and `cache` here."""
    key: Text
    """The value to look for, such as $event.customer_id."""
    source: Annotated[str, Field(alias="from")] = "source"
    """`source`, or the name of a postgres connection."""
    sql: Annotated[str, AfterValidator(takes_keys)] | None = None
    """One query that takes %(keys)s and whose first column is the key."""
    cache: Duration = timedelta(0)
    """How long a row found may be used again."""
    missing: Literal["continue", "retry", "dead"] = "continue"
    """No such row: go on with nulls, park the unit and try again, or dead letter."""
    retry_for: Duration = timedelta(minutes=10)
    """With missing: retry, how long the parked unit tries itself again."""

    @model_validator(mode="after")
    def _one_origin(self) -> EnrichEntity:
        if self.entity is None and self.as_name is None:
            raise ValueError("`as` is missing: what expressions call the row found")
        if self.entity is None and self.sql is None:
            raise ValueError("`sql` is missing, or `entity`: one of those under entities")
        both = {"sql", "source", "cache"} & self.model_fields_set
        if self.entity is not None and both:
            names = ", ".join(sorted("from" if name == "source" else name for name in both))
            raise ValueError(f"{names}: said where the entity is, under entities")
        return self

    @property
    def name(self) -> str:
        """What expressions call the row found."""
        return self.as_name or self.entity or ""


class UpsertEntity(Section):
    """What an event says of an entity that events keep, merged one level deep: the newest event's word counts."""

    entity: RootName
    """One of `entities` with `kept_by: events`."""
    key: Text
    """Which one, such as $event.customer_id."""
    fields: Annotated[dict[str, Any], Field(min_length=1)] | None = None
    """Name to value. Absent: all fields of the event. A field that the event does not have is left as it was."""


class StepSection(Section):
    """One step. In the file: a mapping with exactly one of these keys."""

    enrich_entity: Annotated[EnrichEntity | None, Field(alias="enrich.entity")] = None
    """Look rows up."""
    upsert_entity: Annotated[UpsertEntity | None, Field(alias="upsert.entity")] = None
    """Keep what the event says of an entity, for events that come later to be enriched with."""
    filter: ExpressionText | None = None
    """Go on only where this is true."""
    set: Annotated[dict[RootName, ExpressionText], Field(min_length=1)] | None = None
    """Name to expression."""
    redact: Annotated[tuple[Text, ...], BeforeValidator(_as_list), Field(min_length=1)] | None = None
    """Event fields to blank from here on, payload column included."""

    @model_validator(mode="after")
    def _exactly_one(self) -> StepSection:
        if len(self.model_fields_set) != 1:
            raise ValueError("must have exactly one of enrich.entity, upsert.entity, filter, set, redact")
        return self


class Branch(Section):
    """One way through. The first whose `when` holds is taken."""

    name: PlainName
    """Stands in metrics, tests and explain."""
    when: ExpressionText | None = None
    """Absent: always. Branches after it can't be reached."""
    to: Annotated[tuple[str, ...], BeforeValidator(_as_list)]
    """Names of destinations; [] for none."""


class TableDestination(Section):
    """A target: a table of a postgres connection, written exactly once."""

    connection: str
    """The name of a postgres connection."""
    table: Text
    """The table, schema-qualified: events.usage_limits."""
    mode: Literal["insert", "upsert"] = "insert"
    """insert adds rows; upsert writes over the row with the same key."""
    key: Annotated[tuple[Text, ...], BeforeValidator(_as_list)] = ()
    """With upsert: the columns of a unique index."""
    version: Text | None = None
    """With upsert: $meta.seq, or the column that holds it: older never writes over newer."""
    columns: dict[str, Any] | None = None
    """Column to value. Absent: the default mapping."""


class SinkDestination(OpenSection):
    """A sink: at least once, always with the same id. Further keys are the vendor's own, each a value."""

    connection: str
    """The name of a sink's connection."""
    max_age: Duration = timedelta(hours=24)
    """An undelivered message older than this is a dead letter."""
    timeout: Duration = timedelta(seconds=10)
    """How long one attempt may take."""

    @property
    def fields(self) -> Mapping[str, Any]:
        """The vendor's keys, as written."""
        return self.__pydantic_extra__ or {}


def _by_connection(value: Any, _handler: Any, info: ValidationInfo) -> Any:
    """A table where the connection is a database; without the context of a file, where `table` stands."""
    if isinstance(value, TableDestination | SinkDestination) or not isinstance(value, dict):
        return TableDestination.model_validate(value)
    kinds: Mapping[str, str] = (info.context or {}).get("connections", {})
    kind = kinds.get(str(value.get("connection")))
    is_table = kind == "postgres" or (kind is None and "table" in value)
    model = TableDestination if is_table else SinkDestination
    return model.model_validate(value, context=info.context)


Destination = Annotated[TableDestination | SinkDestination, WrapValidator(_by_connection)]


class PipelineSection(Section):
    """What happens to events of some types."""

    events: Annotated[tuple[Text, ...], BeforeValidator(_as_list), Field(alias="event", min_length=1)]
    """A type, a list of types, or globs such as "usage.*"."""
    steps: tuple[StepSection, ...] = ()
    """Taken in order."""
    branches: tuple[Branch, ...] | None = None
    """First match wins; absent: every destination."""
    destinations: dict[PlainName, Destination] = Field(default_factory=dict)
    """Where it goes, by name. Only a pipeline with upsert.entity may have none."""

    @model_validator(mode="after")
    def _goes_somewhere(self) -> PipelineSection:
        if not self.destinations and not any(step.upsert_entity for step in self.steps):
            raise ValueError("`destinations` is missing: only a pipeline with upsert.entity may have none")
        return self
