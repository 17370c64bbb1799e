"""`set`: names for the values of expressions."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

from pydantic import Field, RootModel

from bridge.expressions.expression import Expression, compile_expression
from bridge.planning.entity import Entity
from bridge.planning.lookup import Answer, Lookup
from bridge.planning.rows import Failures, Rows, survivors
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
from bridge.section import ExpressionText, RootName


class SetSection(RootModel[Annotated[dict[RootName, ExpressionText], Field(min_length=1)]], StepSection):
    """Name to expression."""

    word: ClassVar[str] = "set"

    def spec(self, entities: Mapping[str, Entity]) -> SetSpec:
        return SetSpec(MappingProxyType(dict(self.root)))

    @property
    def makes(self) -> Collection[str]:
        return self.root

    def lint(self, path: KeyPath, scope: Scope) -> Iterator[Remark]:
        for name, expression in self.root.items():
            yield from scope.expression((*path, name), expression, makes=name)

    def told(self) -> Iterator[str]:
        for name, expression in self.root.items():
            yield f"set **{name}**: `{expression}`"

    @classmethod
    def made(cls, written: Any) -> Iterator[Made]:
        if isinstance(written, dict):
            for name in written:
                yield Made(name, (name,), key=True)


@dataclass(frozen=True, slots=True)
class SetSpec(StepSpec):
    """`set`."""

    values: Mapping[str, Any]  # name -> expression

    effect: ClassVar[Effect] = "adds"

    def compile(self, context: StepContext) -> Set:
        return Set(self)

    def words(self) -> str:
        return "set: " + ", ".join(f"{name} = {value}" for name, value in self.values.items())

    @property
    def makes(self) -> Mapping[str, frozenset[str]]:
        return {name: compile_expression(str(source)).names for name, source in self.values.items()}


class Set(Step):
    """Adds names."""

    def __init__(self, spec: SetSpec) -> None:
        self.expressions = {name: compile_expression(source) for name, source in spec.values.items()}
        self.reads = frozenset().union(*(e.names for e in self.expressions.values()))

    def run(self, rows: Rows, answers: Answers) -> Generator[Lookup, Answer, Passed]:
        failures: Failures = []
        for name, expression in self.expressions.items():
            rows, values, failed = survivors(partial(_exactly, expression), rows)
            rows = rows.with_root(name, values)
            failures += failed
        return Passed(rows, failures)
        yield  # a generator, as every step

    def result(self, passed: Passed, answers: Answers) -> Any:
        if not passed.rows:
            return None
        return {name: passed.rows.values((name,))[0] for name in self.expressions}


def _exactly(expression: Expression, rows: Rows) -> list[Any]:
    """The values; a lone path keeps exact numbers."""
    if expression.plain_path is not None:
        return rows.exact(expression.plain_path)
    return rows.evaluate(expression)
