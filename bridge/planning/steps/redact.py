"""`redact`: fields of the event that nobody sees from here on."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field, RootModel

from bridge.expressions.operators import Path
from bridge.planning.entity import Entity
from bridge.planning.lookup import Answer, Lookup
from bridge.planning.rows import Rows
from bridge.planning.steps.step import (
    Answers,
    Effect,
    Passed,
    Scope,
    Step,
    StepContext,
    StepSection,
    StepSpec,
)
from bridge.problem import KeyPath, Remark, nearest
from bridge.section import ONE_OR_MORE, Text


class RedactSection(RootModel[Annotated[tuple[Text, ...], ONE_OR_MORE, Field(min_length=1)]], StepSection):
    """Event fields to blank from here on, also in the payload column."""

    word: ClassVar[str] = "redact"

    def spec(self, entities: Mapping[str, Entity]) -> RedactSpec:
        return RedactSpec(self.root)

    def lint(self, path: KeyPath, scope: Scope) -> Iterator[Remark]:
        known: Collection[str] = scope.fields or ()
        for index, field in enumerate(self.root):
            near = "" if field in known else nearest(field, known)
            if near:
                yield Remark(
                    "warning",
                    (*path, index),
                    f"the contract has no field {field}",
                    near,
                    name="unknown-redaction",
                )

    def told(self) -> Iterator[str]:
        yield f"redact {', '.join(f'`{name}`' for name in self.root)}"


@dataclass(frozen=True, slots=True)
class RedactSpec(StepSpec):
    """`redact`."""

    fields: tuple[str, ...]

    effect: ClassVar[Effect] = "rewrites"

    def compile(self, context: StepContext) -> Redact:
        return Redact(self)

    def words(self) -> str:
        return f"redact: {', '.join(self.fields)}"


class Redact(Step):
    """Removes fields from the event and from the payload."""

    def __init__(self, spec: RedactSpec) -> None:
        self.paths: tuple[Path, ...] = tuple(
            tuple(name.removeprefix("$event.").split(".")) for name in spec.fields
        )
        self.reads = frozenset({"event." + ".".join(path) for path in self.paths})

    def run(self, rows: Rows, answers: Answers) -> Generator[Lookup, Answer, Passed]:
        return Passed(rows.redacted(self.paths))
        yield  # a generator, as every step
