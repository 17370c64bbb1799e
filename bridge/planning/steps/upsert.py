"""`upsert.entity`: what events say of an entity, for events that come later to be enriched with."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from bridge.errors import EntityFailure
from bridge.expressions.document import json_text, parse_exact
from bridge.expressions.expression import Expression
from bridge.expressions.operators import MISSING, follow
from bridge.planning.entity import Entity, Keep
from bridge.planning.lookup import Answer, Lookup
from bridge.planning.rows import Rows, classify, keys_of, names_of, survivors, values_of
from bridge.planning.steps.step import (
    Answers,
    Effect,
    Names,
    Passed,
    Scope,
    Step,
    StepContext,
    StepSection,
    StepSpec,
)
from bridge.problem import KeyPath, Remark, suggestion
from bridge.section import RootName, Section, Text


class UpsertSection(Section, StepSection):
    """Keep what the event says of an entity, merged one level deep: the newest event's word counts."""

    word: ClassVar[str] = "upsert.entity"

    entity: RootName
    """One of `entities` with `kept_by: events`."""
    key: Text
    """The entity's key, such as $event.customer_id."""
    fields: Annotated[dict[str, Any], Field(min_length=1)] | None = None
    """Name to value. Absent: all fields of the event. A field that the event does not have keeps its value."""

    def spec(self, entities: Mapping[str, Entity]) -> UpsertSpec:
        return UpsertSpec(self.entity, self.key, self.fields)

    @property
    def keeps(self) -> str | None:
        return self.entity

    @property
    def says(self) -> Collection[str] | None:
        return self.fields

    def lint(self, path: KeyPath, scope: Scope) -> Iterator[Remark]:
        yield from scope.value((*path, "key"), self.key)
        for name, value in (self.fields or {}).items():
            yield from scope.value((*path, "fields", name), value)

    def told(self) -> Iterator[str]:
        fields = "all fields" if self.fields is None else ", ".join(f"`{name}`" for name in self.fields)
        yield f"keep **{self.entity}** by `{self.key}`: {fields}"

    @classmethod
    def check_names(cls, path: KeyPath, written: Any, names: Names) -> Iterator[Remark]:
        entity = cls.kept(written)
        if entity is not None:
            yield from cls._check_entity(path, entity, names)
        if not names.ordered:
            message = "an entity's newest value wins, but this outbox has no seq to find it"
            yield Remark("error", path, message, "name it: source.columns.seq", key=True)

    @classmethod
    def _check_entity(cls, path: KeyPath, entity: str, names: Names) -> Iterator[Remark]:
        at, hint = (*path, "entity"), suggestion(entity, names.kept)
        if entity not in names.entities:
            yield Remark("error", at, "is not one of `entities`", hint)
        elif entity not in names.kept:
            fix = f"use `kept_by: events` there instead, or another entity; {hint}"
            yield Remark("error", at, "is looked up by its sql: events cannot maintain it", fix)
        elif names.looked_up:
            asked = names.looked_up[0]
            message = f"comes after the lookup of ${asked}: stored values may not depend on stored values"
            yield Remark("error", path, message, f"move {cls.word} before enrich.entity", key=True)

    @classmethod
    def kept(cls, written: Any) -> str | None:
        entity = written.get("entity") if isinstance(written, dict) else None
        return entity if isinstance(entity, str) else None


@dataclass(frozen=True, slots=True)
class UpsertSpec(StepSpec):
    """`upsert.entity`. fields None: all of the event's."""

    entity: str
    key: str
    fields: Mapping[str, Any] | None = None  # name -> value source

    effect: ClassVar[Effect] = "adds"

    def compile(self, context: StepContext) -> Upsert:
        return Upsert(self, context)

    def words(self) -> str:
        return f"upsert.entity {self.entity} by {self.key}"

    @property
    def keeps(self) -> str:
        return self.entity


class Upsert(Step):
    """Collects what the events say. They go on as they came.

    A field of the event that is not there says nothing; null says null.
    """

    def __init__(self, spec: UpsertSpec, context: StepContext) -> None:
        self.spec = spec
        self._context = context
        self._key = classify(spec.key)
        self._fields = None if spec.fields is None else {n: classify(v) for n, v in spec.fields.items()}
        names = [frozenset({"event"})] if self._fields is None else map(names_of, self._fields.values())
        self.reads = names_of(self._key).union(*names)

    def run(self, rows: Rows, answers: Answers) -> Generator[Lookup, Answer, Passed]:
        if not self._context.keeps:
            return Passed(rows)
        rows, keeps, failures = survivors(self._keeps, rows)
        answers.kept.add([keep for keep in keeps if keep.fields])
        return Passed(rows, failures)
        yield  # a generator, as every step

    def _keeps(self, rows: Rows) -> list[Keep]:
        what = f"upsert.entity {self.spec.entity}: key {self.spec.key!r}"
        keys = [_entity_key(key, what) for key in keys_of(self._key, rows, what)]
        entity, pipeline = self.spec.entity, self._context.pipeline
        return [
            Keep(pipeline, entity, key, event, place, parse_exact(json_text(fields)))
            for key, event, place, fields in zip(keys, rows.events, rows.at, self._said(rows), strict=True)
        ]

    def _said(self, rows: Rows) -> list[dict[str, Any]]:
        if self._fields is None:
            return [rows.document(row) for row in range(len(rows))]
        said: list[dict[str, Any]] = [{} for _ in rows.events]
        for name, source in self._fields.items():
            path = source.plain_path if isinstance(source, Expression) else None
            for document, fields, value in zip(rows.documents, said, values_of(source, rows), strict=True):
                from_event = value is None and path is not None and path[0] == "event"
                if not (from_event and follow(document, (path or ())[1:]) is MISSING):
                    fields[name] = value
        return said

    def result(self, passed: Passed, answers: Answers) -> Any:
        if not passed.rows:
            return None
        kept = [keep for keep in answers.kept.keeps if keep.entity == self.spec.entity]
        return {keep.key: dict(keep.fields) for keep in kept}


_LONGEST_KEY = 500  # characters; an index entry has its limits, and an outbox' own ordering key the same


def _entity_key(key: str | int | None, what: str) -> str:
    text = "" if key is None else str(key)
    if not text:
        raise EntityFailure(f"{what} is null, missing or empty")
    if len(text) > _LONGEST_KEY or "\0" in text:
        raise EntityFailure(f"{what} is longer than {_LONGEST_KEY} characters or contains a NUL")
    return text
