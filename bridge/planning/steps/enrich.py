"""`enrich.entity`: rows of an entity by key, one lookup a batch."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from itertools import compress
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from bridge.errors import MissingEntity, UnreadableEntity
from bridge.planning.entity import Entity, kept_sql, takes_keys
from bridge.planning.lookup import Answer, Lookup, LookupSpec, Unreadable
from bridge.planning.rows import Rows, ValueSource, classify, keys_of, lookup_of, names_of, survivors
from bridge.planning.steps.step import (
    Answers,
    Effect,
    Made,
    Names,
    Passed,
    Scope,
    Step,
    StepContext,
    StepSection,
    StepSpec,
)
from bridge.problem import KeyPath, Remark, suggestion
from bridge.quantity import Duration
from bridge.section import RootName, Section, Text


class EnrichSection(Section, StepSection):
    """Look rows up: one lookup for all keys of a batch. The first column of `sql` is the key."""

    word: ClassVar[str] = "enrich.entity"

    as_name: Annotated[RootName | None, Field(alias="as")] = None
    """The row's name in expressions. Absent: the entity's name."""
    entity: RootName | None = None
    """One of `entities`, instead of `from`, `sql` and `cache` here."""
    key: Text
    """The value to look up, such as $event.customer_id."""
    source: Annotated[str, Field(alias="from")] = "source"
    """`source`, or the name of a postgres connection."""
    sql: Annotated[str, AfterValidator(takes_keys)] | None = None
    """One query that takes %(keys)s and whose first column is the key."""
    cache: Duration = timedelta(0)
    """How long a row may be reused."""
    missing: Literal["continue", "retry", "dead"] = "continue"
    """If there is no row: continue with nulls, retry the unit later, or make it a dead letter (dead)."""
    retry_for: Duration = timedelta(minutes=10)
    """With `missing: retry`: how long the parked unit is retried."""

    @model_validator(mode="after")
    def _one_origin(self) -> EnrichSection:
        if self.entity is None and self.as_name is None:
            raise ValueError("`as` is missing: the row's name in expressions")
        if self.entity is None and self.sql is None:
            raise ValueError("`sql` or `entity` (one of entities) is missing")
        both = {"sql", "source", "cache"} & self.model_fields_set
        if self.entity is not None and both:
            names = ", ".join(sorted("from" if name == "source" else name for name in both))
            raise ValueError(f"{names}: said where the entity is, under entities")
        return self

    @property
    def name(self) -> str:
        """The row's name in expressions."""
        return self.as_name or self.entity or ""

    def spec(self, entities: Mapping[str, Entity]) -> EnrichSpec:
        origin: EnrichSection | Entity = self if self.entity is None else entities[self.entity]
        kept = self.entity if origin.sql is None else None
        return EnrichSpec(
            as_name=self.name,
            key=self.key,
            source=origin.source,
            sql=origin.sql or kept_sql(kept or ""),
            cache_seconds=origin.cache.total_seconds(),
            kept=kept,
            missing=self.missing,
            retry_for_seconds=self.retry_for.total_seconds(),
        )

    @property
    def makes(self) -> Collection[str]:
        return (self.name,)

    @property
    def looks_up(self) -> str | None:
        return self.entity

    @property
    def asks(self) -> str | None:
        return self.source

    def lint(self, path: KeyPath, scope: Scope) -> Iterator[Remark]:
        yield from scope.value((*path, "key"), self.key)
        if self.missing == "continue":
            scope.may_lack(self.name)

    def told(self) -> Iterator[str]:
        how = f"`{self.sql}`" if self.entity is None else f"the entity `{self.entity}`"
        yield f"look up **{self.name}** by `{self.key}`: {how}"

    @classmethod
    def check_names(cls, path: KeyPath, written: Any, names: Names) -> Iterator[Remark]:
        yield from names.database(path, written)
        entity = _get(written, "entity")
        if not isinstance(entity, str):
            return
        if entity not in names.entities:
            hint = suggestion(entity, names.entities)
            yield Remark("error", (*path, "entity"), "is not one of `entities`", hint)
        elif entity in names.kept:
            names.looked_up.append(entity)

    @classmethod
    def made(cls, written: Any) -> Iterator[Made]:
        by = "entity" if _get(written, "as") is None else "as"
        name = _get(written, by)
        if isinstance(name, str):
            yield Made(name, (by,), hint="" if by == "as" else "give it another with `as`")

    @classmethod
    def finds(cls, written: Any) -> str | None:
        return next((made.name for made in cls.made(written)), None)


def _get(written: Any, key: str) -> Any:
    return written.get(key) if isinstance(written, dict) else None


@dataclass(frozen=True, slots=True)
class EnrichSpec(LookupSpec, StepSpec):
    """`enrich.entity`: one lookup a batch."""

    missing: Literal["continue", "retry", "dead"] = "continue"
    retry_for_seconds: float = 600.0

    effect: ClassVar[Effect] = "adds"

    def compile(self, context: StepContext) -> Enrich:
        start = self.as_name + "."
        fields = [name.split(".")[1] for name in context.reads if name.startswith(start)]
        return Enrich(self, frozenset(fields))

    def words(self) -> str:
        return f"enrich.entity {self.as_name} by {self.key} from {self.source}"

    @property
    def makes(self) -> Mapping[str, frozenset[str]]:
        return {self.as_name: names_of(classify(self.key))}

    @property
    def lookup(self) -> LookupSpec:
        return self

    def offline(self) -> EnrichSpec:
        return replace(self, missing="continue")


class Enrich(Step):
    """Adds the row of each event's key."""

    def __init__(self, spec: EnrichSpec, fields: frozenset[str]) -> None:
        """fields: those of the row that the pipeline reads."""
        self.spec = spec
        self.key: ValueSource = classify(spec.key)
        self.reads = names_of(self.key)
        self.fields = fields
        self.absent = dict.fromkeys(fields)  # every field of a row that is not there is null

    def lookup(self) -> Lookup:
        return Lookup(self.spec, [], self.fields)

    def run(self, rows: Rows, answers: Answers) -> Generator[Lookup, Answer, Passed]:
        rows, keys, failures = survivors(self._keys, rows)
        known = answers.rows.setdefault(self.spec, {})
        wanted = [key for key in dict.fromkeys(keys) if key is not None and key not in known]
        for kind in (str, int):
            some = [key for key in wanted if key.__class__ is kind]
            if some:
                answer = yield Lookup(self.spec, some, self.fields)
                known.update(zip(some, map(partial(lookup_of, answer), some), strict=True))
        found = [known.get(key) for key in keys]
        if Unreadable in set(map(type, found)):
            mask = [row.__class__ is not Unreadable for row in found]
            for place, event, row in zip(rows.at, rows.events, found, strict=True):
                if isinstance(row, Unreadable):
                    cause = f"enrich.entity {self.spec.as_name}: {row.why}"
                    failures.append((place, event, UnreadableEntity(cause)))
            rows, keys, found = rows.keep(mask), list(compress(keys, mask)), list(compress(found, mask))
        if self.spec.kept is not None:
            fields = answers.kept.rows(self.spec.kept, rows.at, keys, found)
            found = [None if row is None else {**self.absent, **row} for row in fields]
        if None not in found:
            return Passed(rows.with_root(self.spec.as_name, found), failures)
        if self.spec.missing == "continue":
            absent = self.absent
            found = [absent if row is None else row for row in found]
            return Passed(rows.with_root(self.spec.as_name, found), failures)
        parked = self.spec.retry_for_seconds if self.spec.missing == "retry" else None
        for place, event, key, row in zip(rows.at, rows.events, keys, found, strict=True):
            if row is None:
                why = "the key is null or missing" if key is None else "no row has this key"
                cause = f"enrich.entity {self.spec.as_name}: {why}"
                failures.append((place, event, MissingEntity(cause, retry_for_seconds=parked)))
        mask = [row is not None for row in found]
        rows = rows.keep(mask).with_root(self.spec.as_name, [row for row in found if row is not None])
        return Passed(rows, failures)

    def _keys(self, rows: Rows) -> list[Any]:
        keys = keys_of(self.key, rows, f"enrich.entity {self.spec.as_name}: key {self.spec.key!r}")
        if self.spec.kept is None:
            return keys
        return [None if key is None else str(key) for key in keys]

    def result(self, passed: Passed, answers: Answers) -> Any:
        row = passed.rows.values((self.spec.as_name,))[0] if passed.rows else None
        looked_up = answers.rows.get(self.spec, {}).values()
        if row is None:
            row = next((found.why for found in looked_up if isinstance(found, Unreadable)), None)
        known = any(looked_up)
        return "no row" if row is self.absent or not (row or known) else row
