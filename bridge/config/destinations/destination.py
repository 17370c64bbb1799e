"""What every destination is: a section of bridge.yaml that becomes the value of a target or of a sink.

There are two guarantees, exactly once and at least once, and so two plain values: TableSpec and SinkSpec. A kind is
another way to write one of them. It is one module in this package with one DestinationSection; DESTINATIONS has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

from bridge.config.connection import AnyConnection
from bridge.discover import Kinds
from bridge.planning.spec import DestinationSpec
from bridge.problem import KeyPath, Remark
from bridge.section import Section


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

    def spec(self, name: str, connection: AnyConnection) -> DestinationSpec:
        """The plain value."""
        raise NotImplementedError

    def values(self) -> Iterator[Value]:
        """Its value sources."""
        yield from ()

    @property
    def written_table(self) -> tuple[str, str] | None:
        """(schema, table) that it writes; None: no table."""
        return None

    @property
    def by_name(self) -> bool:
        """Do fields go to the columns of their names?"""
        return False

    def identity(self) -> Iterator[Value]:
        """What identifies a row: the values that must not be NULL."""
        yield from ()

    def lint(self, path: KeyPath, connection: AnyConnection | None) -> Iterator[Remark]:
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


DESTINATIONS = Kinds(__name__, DestinationSection, but=("destination",))
"""Every kind of destination: the modules of this package."""


def kind_of(written: Mapping[str, Any], kinds: Mapping[str, str]) -> type[DestinationSection]:
    """What is meant by a mapping in the file: told by its connection's type and by its keys. kinds: the types of
    connections, by name."""
    kind = kinds.get(str(written.get("connection")))
    fitting = [each for each in DESTINATIONS.values() if each.fits(kind)]
    marked = [each for each in fitting if each.mark and each.mark in written]
    return (marked or [each for each in fitting if each.usual(kind)])[0]
