"""Lint of expressions, templates and values: do their names exist, and can their comparisons be true?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from bridge.config.contract import EventField
from bridge.config.lint_values import (
    Absences,
    check_comparisons,
    expression_names,
    has_arithmetic,
    is_expression,
    paths_in_text,
    value_names,
)
from bridge.config.model import Config
from bridge.config.pipeline import PipelineSection, StepSection, TableDestination
from bridge.config.problem import KeyPath, Level, Remark, nearest
from bridge.errors import ConfigError

META_FIELDS = ("id", "type", "key", "seq", "occurred_at", "idempotency_key", "headers")
_LEAVES = {"string", "number", "integer", "boolean", "timestamp"}


@dataclass(slots=True)
class _Scope:
    """What an expression at one place of a pipeline can name."""

    fields: Mapping[str, list[EventField]] | None  # None: some event has no contract, anything may come
    roots: set[str]
    later: set[str]  # made by steps still to come
    reckoned: set[str]  # made by `set` with arithmetic
    absences: Absences


def check_expressions(config: Config) -> Iterator[Remark]:
    """Every remark about what the pipelines' expressions, templates and values say."""
    for name, pipeline in config.pipelines.items():
        yield from _pipeline(("pipelines", name), pipeline, _fields(config, pipeline))
        for index, case in enumerate(config.tests):
            many = len(pipeline.events) > 1 or any(set(event) & set("*?[") for event in pipeline.events)
            if case.pipeline == name and case.type is None and many:
                message = "the pipeline takes several types of event: the test must say which one"
                yield Remark("error", ("tests", index), message, "add type: ...")


def _fields(config: Config, pipeline: PipelineSection) -> Mapping[str, list[EventField]] | None:
    """Field name to its definitions in the contracts of the pipeline's events."""
    found: dict[str, list[EventField]] = {}
    for pattern in pipeline.events:
        contracts = [contract for event, contract in config.events.items() if fnmatchcase(event, pattern)]
        if not contracts:
            return None
        for contract in contracts:
            for name, field in contract.fields.items():
                found.setdefault(name, []).append(field)
    return found


def _pipeline(
    path: KeyPath, pipeline: PipelineSection, fields: Mapping[str, list[EventField]] | None
) -> Iterator[Remark]:
    later = {name for step in pipeline.steps for name in _made(step)}
    scope = _Scope(fields, {"event", "meta"}, later, set(), Absences(fields))
    for index, step in enumerate(pipeline.steps):
        yield from _step((*path, "steps", index), step, scope)
        for name in _made(step):
            scope.roots.add(name)
            scope.later.discard(name)
        if step.enrich_entity is not None and step.enrich_entity.missing == "continue":
            scope.absences.row(step.enrich_entity.name)
    for index, branch in enumerate(pipeline.branches or ()):
        if branch.when is not None:
            yield from _expression((*path, "branches", index, "when"), branch.when, scope)
    for name, destination in pipeline.destinations.items():
        here = (*path, "destinations", name)
        if not isinstance(destination, TableDestination):
            for key, value in destination.fields.items():
                yield from _value((*here, key), value, scope)
            continue
        if destination.version is not None:
            yield from _value((*here, "version"), destination.version, scope)
        for column, value in (destination.columns or {}).items():
            at = (*here, "columns", column)
            yield from _value(at, value, scope)
            yield from _float(at, value, scope)


def _made(step: StepSection) -> list[str]:
    return [step.enrich_entity.name] if step.enrich_entity is not None else list(step.set or ())


def _step(path: KeyPath, step: StepSection, scope: _Scope) -> Iterator[Remark]:
    if step.enrich_entity is not None:
        yield from _value((*path, "enrich.entity", "key"), step.enrich_entity.key, scope)
    if step.upsert_entity is not None:
        here = (*path, "upsert.entity")
        yield from _value((*here, "key"), step.upsert_entity.key, scope)
        for name, value in (step.upsert_entity.fields or {}).items():
            yield from _value((*here, "fields", name), value, scope)
    if step.filter is not None:
        yield from _expression((*path, "filter"), step.filter, scope)
    for name, expression in (step.set or {}).items():
        yield from _expression((*path, "set", name), expression, scope)
        if has_arithmetic(expression):
            scope.reckoned.add(name)
    for index, field in enumerate(step.redact or ()):
        near = nearest(field, scope.fields) if scope.fields and field not in scope.fields else ""
        if near:
            yield Remark("warning", (*path, "redact", index), f"the contract has no field {field}", near)


def _expression(path: KeyPath, expression: str, scope: _Scope) -> Iterator[Remark]:
    try:
        names = expression_names(expression)
    except ConfigError as error:
        yield Remark("error", path, str(error).replace("\n  fix: ", "; "))
        return
    yield from _names(path, names, scope)
    yield from check_comparisons(path, expression, scope.fields or {})
    yield from scope.absences.check(path, expression)


def _value(path: KeyPath, value: Any, scope: _Scope) -> Iterator[Remark]:
    try:
        names = value_names(value)
    except ConfigError as error:
        yield Remark("error", path, str(error).replace("\n  fix: ", "; "))
        return
    yield from _names(path, names, scope)
    if isinstance(value, str) and is_expression(value):
        yield from check_comparisons(path, value, scope.fields or {})
        yield from scope.absences.check(path, value)
    for text in _templates(value):
        yield from scope.absences.check_template(path, text)
    if isinstance(value, str) and not is_expression(value) and "{{" not in value:
        for name in paths_in_text(value):
            if name.partition(".")[0] in scope.roots:
                message = f"${name} inside a text stays as it is written"
                fix = f"write {{{{ {name} }}}} for its value, or $$ for a dollar"
                yield Remark("warning", path, message, fix)


def _templates(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if "{{" in value and not is_expression(value):
            yield value
    elif isinstance(value, dict | list | tuple):
        for inside in value.values() if isinstance(value, dict) else value:
            yield from _templates(inside)


def _names(path: KeyPath, names: frozenset[str], scope: _Scope) -> Iterator[Remark]:
    for name in sorted(names):
        root, _, rest = name.partition(".")
        field, _, below = rest.partition(".")
        if root in scope.later:
            yield Remark("error", path, f"${root} is made by a later step", "move that step up")
        elif root not in scope.roots:
            fix = nearest(root, scope.roots) or f"there is: {', '.join(f'${r}' for r in sorted(scope.roots))}"
            yield Remark("error", path, f"there is no ${root} here", fix)
        elif root == "meta" and field and field not in META_FIELDS:
            fix = nearest(field, META_FIELDS) or f"there is: {', '.join(META_FIELDS)}"
            yield Remark("error", path, f"$meta has no {field}", fix)
        elif root == "event" and field and scope.fields is not None:
            yield from _field(path, field, below, scope.fields)


def _field(path: KeyPath, field: str, below: str, fields: Mapping[str, list[EventField]]) -> Iterator[Remark]:
    if field not in fields:
        fix = nearest(field, fields) or f"add it to the contract, such as {field}: any?"
        yield Remark("error", path, f"the event's contract has no field {field}", fix)
    elif below and all(one.type in _LEAVES for one in fields[field]):
        yield Remark("error", path, f"{field} is a {fields[field][0].type}: it has no {below} inside")


def _float(path: KeyPath, value: Any, scope: _Scope) -> Iterator[Remark]:
    """Arithmetic is float64: where it feeds a numeric column, the exact decimal is lost."""
    if not is_expression(value):
        return
    try:
        reckoned = {name for name in expression_names(value) if name in scope.reckoned}
    except ConfigError:
        return
    if reckoned or has_arithmetic(value):
        level: Level = "warning"
        message = "is reckoned in float64: a numeric column loses its exact decimals"
        yield Remark(level, path, message, "map the field itself, or reckon in SQL (a generated column)")
