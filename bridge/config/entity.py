"""Entities by name: a lookup that several pipelines share, or rows that events keep in the source's outbox.entity."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from bridge.config.quantity import Duration
from bridge.config.section import Section


def takes_keys(sql: str) -> str:
    """The same text, if it can be asked for keys."""
    if "%(keys)s" not in sql:
        raise ValueError("must take its keys as %(keys)s, such as: where customer_id = any(%(keys)s)")
    return sql


class Entity(Section):
    """What enrich.entity finds under this name: either `sql`, or what upsert.entity has kept."""

    kept_by: Literal["events"] | None = None
    """events: upsert.entity writes it, into outbox.entity of the source. Instead of `sql`."""
    source: Annotated[str, Field(alias="from")] = "source"
    """With sql: `source`, or the name of a postgres connection."""
    sql: Annotated[str, AfterValidator(takes_keys)] | None = None
    """One query that takes %(keys)s and whose first column is the key."""
    cache: Duration = timedelta(0)
    """How long a row found may be used again. What this stream writes itself is seen at once."""

    @model_validator(mode="after")
    def _one_origin(self) -> Entity:
        if (self.sql is None) == (self.kept_by is None):
            raise ValueError("must have either `kept_by: events` or `sql`")
        if self.kept_by is not None and "source" in self.model_fields_set:
            raise ValueError("is kept in the source: `from` goes with `sql`")
        return self


def kept_sql(entity: str) -> str:
    """The lookup of an entity that events keep. The name is a RootName: nothing in it wants quoting."""
    return (
        "select key, fields::text as fields, seqs::text as seqs from outbox.entity"
        f" where entity = '{entity}' and key = any(%(keys)s::text[])"
    )
