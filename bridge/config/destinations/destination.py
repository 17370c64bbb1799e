"""What every destination is: a section of bridge.yaml that becomes the value of a target or of a sink.

There are two guarantees, exactly once and at least once, and so two plain values: TableSpec and SinkSpec. A kind is
another way to write one of them. It is one module in this package with one DestinationSection; kinds.py finds it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

from bridge.config.connection import PostgresConnection
from bridge.planning.spec import DestinationSpec
from bridge.problem import KeyPath, Remark
from bridge.section import Section
from bridge.sinks.model import SinkConnection


class Value(NamedTuple):
    """A value source in a destination, and where it stands. column: it becomes a column's text."""

    at: KeyPath
    value: Any
    column: bool = False


class DestinationSection(Section):
    """Where a pipeline's events go."""

    mark: ClassVar[str] = ""
    """The key that tells it from other kinds on the same type of connection."""

    connection: str
    """The name of a connection."""

    @classmethod
    def fits(cls, kind: str | None) -> bool:
        """Can it have a connection of this type? None: the file does not tell the type."""
        raise NotImplementedError

    @classmethod
    def usual(cls, kind: str | None) -> bool:
        """Is it what is meant where no key tells?"""
        return False

    def spec(self, name: str, connection: PostgresConnection | SinkConnection) -> DestinationSpec:
        """The plain value."""
        raise NotImplementedError

    def values(self) -> Iterator[Value]:
        """Its value sources."""
        yield from ()

    def lint(self, path: KeyPath, connection: PostgresConnection | SinkConnection | None) -> Iterator[Remark]:
        """What is wrong with it, beside its values' names. connection: None where there is none of that name."""
        yield from ()

    def told(self) -> Iterator[str]:
        """For the recipes' page: a sentence of Markdown each."""
        yield from ()

    @classmethod
    def check_names(
        cls, path: KeyPath, written: Mapping[str, Any], kinds: Mapping[str, str]
    ) -> Iterator[Remark]:
        """Names that lead nowhere, in what nothing has judged yet. kinds: of the connections, by name."""
        yield from ()
