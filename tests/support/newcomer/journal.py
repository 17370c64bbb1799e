"""A journal: every event as it came, in a table with three columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from bridge.config.connection import AnyConnection, table_names
from bridge.config.destinations.destination import DestinationSection
from bridge.planning.spec import TableSpec
from bridge.section import Text


class JournalDestination(DestinationSection):
    """Every event, as it came."""

    mark: ClassVar[str] = "journal"

    connection: str
    """The name of a postgres connection."""
    journal: Text
    """The table, schema-qualified."""

    @classmethod
    def fits(cls, kind: str | None) -> bool:
        return kind in ("postgres", None)

    def spec(self, name: str, connection: AnyConnection) -> TableSpec:
        schema, table = table_names(self.journal)
        columns = {"event_id": "$meta.id", "type": "$meta.type", "payload": "$event"}
        return TableSpec(name, self.connection, schema, table, columns=columns)

    def told(self) -> Iterator[str]:
        yield f"Every event into `{self.journal}`."
