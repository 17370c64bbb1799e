"""The whole of bridge.yaml. Its parts stand in modules of their own, one a noun."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bridge.config.case import Case
from bridge.config.connection import Connection, PostgresConnection
from bridge.config.contract import Contract, EventContract
from bridge.config.entity import Entity
from bridge.config.pipeline import Pipeline, SinkDestination, TableDestination
from bridge.config.quantity import Boolean
from bridge.config.section import EventType, PlainName, RootName, Section, SlotWord
from bridge.config.server import Admin, Ingress
from bridge.config.source import Source
from bridge.sinks.model import SinkConnection

__all__ = [
    "Admin",
    "Case",
    "Config",
    "EventContract",
    "Ingress",
    "Pipeline",
    "PostgresConnection",
    "SinkConnection",
    "SinkDestination",
    "Source",
    "TableDestination",
]


class Config(Section):
    """A configuration, checked in itself. `load` also checks that its names meet."""

    version: Literal[1]
    """The version of this file's format."""
    source: Source = Source()
    """The database whose outbox is read."""
    connections: dict[SlotWord, Connection] = Field(default_factory=dict)
    """Where things go, by name."""
    events: dict[EventType, Contract] = Field(default_factory=dict)
    """Event contracts, by type."""
    entities: dict[RootName, Entity] = Field(default_factory=dict)
    """Entities to enrich with, by name: shared lookups, and those that events keep."""
    pipelines: dict[PlainName, Pipeline] = Field(default_factory=dict)
    """Pipelines, by name."""
    admin: Admin = Admin()
    """Metrics, health and the status page."""
    ingress: Ingress | None = None
    """Events in over HTTP; absent: none."""
    strict: Boolean = False
    """Refuse roles with more power than the bridge needs (superuser, BYPASSRLS, table owner)."""
    tests: tuple[Case, ...] = ()
    """The config's own tests, for `bridge test`."""
