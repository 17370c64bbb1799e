"""The config's own tests: an event, the rows enrichment would find, and where it must end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from bridge.config.quantity import Boolean
from bridge.config.section import OpenSection, Section

RESERVED_EXPECTATIONS = ("branch", "filtered", "dead", "entities")
"""No destination can have these names, so that an expectation cannot be misread."""


class Expectation(OpenSection):
    """What must come out. Every other key is a destination: the columns or fields it must get, at least."""

    branch: str | None = None
    """The branch taken."""
    filtered: Boolean = False
    """A filter stopped it; false: none did."""
    dead: str | None = None
    """The code of the dead letter: contract, missing_entity, expression, entity."""
    entities: dict[str, dict[str, dict[str, Any]] | None] = Field(default_factory=dict)
    """Entity to key to the fields that the event says of it, at least; null: nothing."""

    @property
    def destinations(self) -> Mapping[str, Any]:
        """Destination to column to value; null: that destination must get nothing."""
        return self.__pydantic_extra__ or {}


class CaseMeta(Section):
    """$meta of the event of a test; what is absent is made up."""

    id: str = "00000000-0000-7000-8000-000000000001"
    """The event's id."""
    key: str | None = None
    """The ordering key."""
    seq: int = 1
    """The event's number."""
    occurred_at: str = "2027-01-01T00:00:00+00:00"
    """A timestamp."""
    idempotency_key: str | None = None
    """The producer's idempotency key."""
    headers: dict[str, Any] | None = None
    """The event's headers."""


class Case(Section):
    """One of the config's own tests."""

    name: str
    """A sentence."""
    pipeline: str
    """The pipeline under test."""
    type: str | None = None
    """The event's type; absent: the one type the pipeline takes."""
    event: Any
    """The payload."""
    meta: CaseMeta = CaseMeta()
    """The event's $meta."""
    entities: dict[str, dict[str, Any] | None] = Field(default_factory=dict)
    """What each enrichment finds; absent or null: no row."""
    expect: Expectation
    """What must come out."""
