"""`digest`: a name for the SHA-256 of a text."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, ClassVar

from bridge.planning.entity import Entity
from bridge.planning.lookup import Answer, Lookup
from bridge.planning.rows import Rows, classify, names_of, survivors, values_of
from bridge.planning.steps.step import (
    Answers,
    Effect,
    Made,
    Passed,
    Scope,
    Step,
    StepContext,
    StepSection,
    StepSpec,
)
from bridge.problem import KeyPath, Remark
from bridge.section import RootName, Section, Text


class DigestSection(Section, StepSection):
    """Give the SHA-256 of a text a name."""

    word: ClassVar[str] = "digest"

    name: RootName
    """The name."""
    of: Text
    """The text, such as $event.email."""

    def spec(self, entities: Mapping[str, Entity]) -> DigestSpec:
        return DigestSpec(self.name, self.of)

    @property
    def makes(self) -> Collection[str]:
        return (self.name,)

    def lint(self, path: KeyPath, scope: Scope) -> Iterator[Remark]:
        yield from scope.value((*path, "of"), self.of)

    def told(self) -> Iterator[str]:
        yield f"digest of `{self.of}` as **{self.name}**"

    @classmethod
    def made(cls, written: Any) -> Iterator[Made]:
        if isinstance(written, dict) and isinstance(written.get("name"), str):
            yield Made(written["name"], ("name",))


@dataclass(frozen=True, slots=True)
class DigestSpec(StepSpec):
    """`digest`."""

    name: str
    of: str

    effect: ClassVar[Effect] = "adds"

    def compile(self, context: StepContext) -> Digest:
        return Digest(self)

    def words(self) -> str:
        return f"digest: {self.name} of {self.of}"

    @property
    def makes(self) -> Mapping[str, frozenset[str]]:
        return {self.name: names_of(classify(self.of))}


class Digest(Step):
    """Adds the name."""

    def __init__(self, spec: DigestSpec) -> None:
        self.spec = spec
        self.source = classify(spec.of)
        self.reads = names_of(self.source)

    def run(self, rows: Rows, answers: Answers) -> Generator[Lookup, Answer, Passed]:
        rows, values, failures = survivors(self._digests, rows)
        return Passed(rows.with_root(self.spec.name, values), failures)
        yield  # a generator, as every step

    def _digests(self, rows: Rows) -> list[str]:
        return [sha256(value.encode()).hexdigest() for value in values_of(self.source, rows)]
