"""What a configuration says, as plain frozen values: the language `config/` speaks to `core/`.

The pydantic models that outsiders write stand in config/; core must not know them.
Value sources (`columns`, `set`, keys, texts) stay as the strings or literals that were written:
`$name...` an expression, `$$` a literal dollar, a text with `{{` a template, else a literal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

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
    """The shape an event type promises. unknown: what to do with fields it does not name."""

    event: str
    fields: tuple[FieldSpec, ...]
    unknown: Literal["payload", "reject"] = "payload"


@dataclass(frozen=True, slots=True)
class EnrichSpec:
    """`enrich.entity`: one batched lookup a batch. The first column of `sql` is the key."""

    as_name: str
    key: str
    source: str  # "source" or the name of a postgres connection
    sql: str  # takes %(keys)s
    cache_seconds: float = 0.0
    missing: Literal["continue", "retry", "dead"] = "continue"
    retry_for_seconds: float = 600.0
    kept: str | None = None  # the entity, where events keep it and `sql` is the bridge's own


@dataclass(frozen=True, slots=True)
class FilterSpec:
    expression: str


@dataclass(frozen=True, slots=True)
class SetSpec:
    values: Mapping[str, Any]  # name -> expression


@dataclass(frozen=True, slots=True)
class RedactSpec:
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UpsertSpec:
    """`upsert.entity`: what an event says of an entity that events keep. fields None: all of the event's."""

    entity: str
    key: str
    fields: Mapping[str, Any] | None = None  # name -> value source


StepSpec = EnrichSpec | FilterSpec | SetSpec | RedactSpec | UpsertSpec


@dataclass(frozen=True, slots=True)
class BranchSpec:
    """First match wins. when None always matches."""

    name: str
    when: str | None
    to: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TableSpec:
    """A target: a Postgres table written inside the apply transaction. columns None: the default mapping."""

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
        """The column that holds `version`: the one it names or that has the same source, else `version`."""
        if self.version is None:
            return None
        mapping = self.columns or {}
        if self.version in mapping:
            return self.version
        return next((name for name, source in mapping.items() if source == self.version), "version")


@dataclass(frozen=True, slots=True)
class SinkSpec:
    """Anything else: at least once. `fields` are the vendor's own words, each a value source."""

    name: str
    connection: str
    kind: str  # slack, webhook, ...
    fields: Mapping[str, Any] = field(default_factory=dict)
    escapes: Mapping[str, Callable[[str], str]] = field(default_factory=dict)  # field -> makes values inert
    max_age_seconds: float = 86400.0
    timeout_seconds: float = 10.0


DestinationSpec = TableSpec | SinkSpec


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    name: str
    events: tuple[str, ...]  # exact types or globs such as "usage.*"
    steps: tuple[StepSpec, ...]
    branches: tuple[BranchSpec, ...] | None  # None: every destination
    destinations: Mapping[str, DestinationSpec]
