"""What a configuration says, as plain frozen values: the language `config/` speaks to the planner.

A step's value stands with the step (steps/).
Value sources (`columns`, `set`, keys, texts) stay as the strings or literals that were written:
`$name...` an expression, `$$` a literal dollar, a text with `{{` a template, else a literal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import time
from typing import Any, Literal
from zoneinfo import ZoneInfo

from bridge.expressions.markup import Markup
from bridge.planning.steps.step import StepSpec
from bridge.section import SOURCE

Unit = tuple[str, str]
"""(pipeline, destination): with an event, the unit of effect, dead letter, delivery and dedupe."""

FieldType = Literal["string", "number", "integer", "boolean", "object", "array", "timestamp", "any"]


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One field of an event contract."""

    name: str
    type: FieldType = "string"
    enum: tuple[str | int | float | bool, ...] | None = None
    required: bool = True
    nullable: bool = False


@dataclass(frozen=True, slots=True)
class ContractSpec:
    """The fields that an event type promises. unknown: what to do with other fields."""

    event: str
    fields: tuple[FieldSpec, ...]
    unknown: Literal["payload", "reject"] = "payload"


@dataclass(frozen=True, slots=True)
class BranchSpec:
    """The first match wins. when None: always matches."""

    name: str
    when: str | None
    to: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TableSpec:
    """A target: a Postgres table, written inside the apply transaction. columns None: the default mapping."""

    name: str
    connection: str
    schema: str
    table: str
    mode: Literal["insert", "upsert"] = "insert"
    key: tuple[str, ...] = ()
    version: str | None = None
    columns: Mapping[str, Any] | None = None

    @property
    def table_name(self) -> str:
        """`schema.table`, for people."""
        return f"{self.schema}.{self.table}"

    @property
    def version_column(self) -> str | None:
        """The column that holds `version`: the one it names or the one with the same value, otherwise `version`."""
        if self.version is None:
            return None
        mapping = self.columns or {}
        if self.version in mapping:
            return self.version
        return next((name for name, source in mapping.items() if source == self.version), "version")


@dataclass(frozen=True, slots=True)
class SinkSpec:
    """A sink: at least once. `fields` are the vendor's keys, each a value."""

    name: str
    connection: str
    kind: str  # slack, webhook, ...
    fields: Mapping[str, Any] = field(default_factory=dict)
    markup: Mapping[str, Markup] = field(default_factory=dict)  # fields in which values must be inert
    max_age_seconds: float = 86400.0
    timeout_seconds: float = 10.0
    digest: tuple[float, int] | None = None  # seconds that the first waits, most in one
    throttle: tuple[int, int] | None = None  # messages to one recipient, in so many seconds
    quiet: tuple[time, time, ZoneInfo] | None = None  # hours of the day in which nothing is sent


@dataclass(frozen=True, slots=True)
class SubjectSpec:
    """A subject of NATS: at least once, acknowledged before the event counts as applied. Each is a value."""

    name: str
    connection: str
    subject: str
    headers: Mapping[str, Any] = field(default_factory=dict)
    payload: Any = "$event"


DestinationSpec = TableSpec | SinkSpec | SubjectSpec


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    name: str
    events: tuple[str, ...]  # exact types or globs such as "usage.*"
    steps: tuple[StepSpec, ...]
    branches: tuple[BranchSpec, ...] | None  # None: every destination
    destinations: Mapping[str, DestinationSpec]
    source: str = SOURCE  # the name of the source whose events it gets here
