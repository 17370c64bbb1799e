"""`filter`: only events for which an expression is true go on."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import RootModel

from bridge.expressions.expression import compile_expression
from bridge.planning.entity import Entity
from bridge.planning.lookup import Answer, Lookup
from bridge.planning.rows import Rows, survivors
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
from bridge.problem import KeyPath, Remark
from bridge.section import ExpressionText


class FilterSection(RootModel[ExpressionText], StepSection):
    """Continue only if this is true."""

    word: ClassVar[str] = "filter"

    def spec(self, entities: Mapping[str, Entity]) -> FilterSpec:
        return FilterSpec(self.root)

    def lint(self, path: KeyPath, scope: Scope) -> Iterator[Remark]:
        yield from scope.expression(path, self.root)

    def told(self) -> Iterator[str]:
        yield f"continue if `{self.root}`"


@dataclass(frozen=True, slots=True)
class FilterSpec(StepSpec):
    """`filter`."""

    expression: str

    effect: ClassVar[Effect] = "drops"

    def compile(self, context: StepContext) -> Filter:
        return Filter(self)

    def words(self) -> str:
        return f"filter: {self.expression}"


class Filter(Step):
    """Keeps the rows for which an expression is true."""

    def __init__(self, spec: FilterSpec) -> None:
        self.expression = compile_expression(spec.expression)
        self.reads = self.expression.names

    def run(self, rows: Rows, answers: Answers) -> Generator[Lookup, Answer, Passed]:
        rows, values, failures = survivors(lambda some: some.evaluate(self.expression), rows)
        mask = [bool(value) for value in values]
        if all(mask):
            return Passed(rows, failures)
        return Passed(rows.keep(mask), failures, mask.count(False))
        yield  # a generator, as every step

    def result(self, passed: Passed, answers: Answers) -> Any:
        return not passed.filtered
