"""Lint of expressions, templates and values: do their names exist, and can their comparisons be true?"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from bridge.config.contract import EventField
from bridge.config.known import EventFields, Kind, Roots
from bridge.config.lint_columns import ColumnLint
from bridge.config.lint_comparisons import check_operators
from bridge.config.lint_templates import check_template_operators
from bridge.config.lint_values import (
    Absences,
    expression_names,
    has_arithmetic,
    is_expression,
    paths_in_text,
    value_names,
)
from bridge.config.model import Config
from bridge.config.pipeline import PipelineSection
from bridge.config.snapshot import UNKNOWN, Columns, Facts
from bridge.errors import ConfigError
from bridge.expressions.tree import tree_of
from bridge.planning.column_fit import Group
from bridge.problem import KeyPath, Level, Remark, nearest

_KINDS: dict[Group, Kind] = {
    "number": "number",
    "boolean": "boolean",
    "text": "text",
    "uuid": "text",
    "moment": "time",
    "time": "time",
    "array": "array",
}
META_FIELDS = ("id", "type", "key", "seq", "occurred_at", "idempotency_key", "headers", "source")
SURE: Level = "error"
_DIGITS = re.compile(r"\d+")
_LEAVES = {"string", "number", "integer", "boolean", "timestamp"}


def check_expressions(config: Config, facts: Facts = UNKNOWN) -> Iterator[Remark]:
    """All findings in the pipelines' expressions, templates and values. facts: what is known of the servers."""
    for name, pipeline in config.pipelines.items():
        yield from _pipeline(("pipelines", name), name, config, facts)
        for index, case in enumerate(config.tests):
            many = len(pipeline.events) > 1 or any(set(event) & set("*?[") for event in pipeline.events)
            if case.pipeline == name and case.type is None and many:
                message = "the pipeline takes several event types: the test must name one"
                yield Remark("error", ("tests", index), message, "add type: ...", name="untyped-test")


def event_fields(config: Config, pipeline: PipelineSection) -> EventFields | None:
    """The fields of the pipeline's events; None where an event has no contract, and anything may come."""
    found: dict[str, Mapping[str, EventField]] = {}
    for pattern in pipeline.events:
        contracts = {
            event: contract.fields for event, contract in config.events.items() if fnmatchcase(event, pattern)
        }
        if not contracts:
            return None
        found.update(contracts)
    return EventFields(pipeline.events, found)


def _pipeline(path: KeyPath, name: str, config: Config, facts: Facts) -> Iterator[Remark]:
    pipeline = config.pipelines[name]
    fields = event_fields(config, pipeline)
    scope = _Scope(fields, {name for step in pipeline.steps for name in step.makes})
    for index, step in enumerate(pipeline.steps):
        here = (*path, "steps", index, step.word)
        yield from step.lint(here, scope)
        scope.made(step.makes)
        there = step.looks_up is None or step.looks_up in config.entities
        lookup = step.spec(config.entities).lookup if there else None
        if lookup is not None and lookup.kept is not None:
            scope.kept(lookup.as_name, entity_fields(config, lookup.kept))
        elif lookup is not None and (columns := facts.lookup(lookup.source, lookup.sql)) is not None:
            scope.row(lookup.as_name, columns)
        elif lookup is not None and facts.written:
            yield _unknown(here, lookup.as_name)
    for index, branch in enumerate(pipeline.branches or ()):
        if branch.when is not None:
            yield from scope.expression((*path, "branches", index, "when"), branch.when)
    for key, destination in pipeline.destinations.items():
        place = (*path, "destinations", key)
        known = facts.table(destination.connection, destination.written_table)
        table = ColumnLint(key, known, fields, scope.values, scope.rows) if known else None
        for at, value, column in destination.values():
            here = (*place, *at)
            yield from scope.value(here, value)
            if column:
                yield from scope.check_float(here, value)
            if column and table is not None:
                yield from table.check(here, str(at[-1]), value)
        if table is not None and destination.by_name:
            yield from table.default(place)
        if table is None and facts.written and destination.written_table is not None:
            yield _unknown(place, f"the table of {key}")


def _unknown(path: KeyPath, what: str) -> Remark:
    message = f"the snapshot beside this file does not know {what} as it is here"
    return Remark("warning", path, message, "bridge doctor --snapshot", key=True, name="old-snapshot")


def entity_fields(config: Config, entity: str) -> frozenset[str] | None:
    """What events say of an entity that they maintain; None where that may be anything."""
    found: set[str] = set()
    for pipeline in config.pipelines.values():
        for step in pipeline.steps:
            if step.keeps == entity:
                fields, said = event_fields(config, pipeline), step.says
                if said is not None:
                    found.update(said)
                elif fields is None or not fields.total:
                    return None
                else:
                    found.update(fields.names())
    return frozenset(found)


class _Scope:
    """What an expression at one place of a pipeline can name; asked step by step, in their order (steps/step.py)."""

    def __init__(self, fields: EventFields | None, later: set[str]) -> None:
        """fields: None where some event has no contract, and anything may come. later: names that steps make."""
        self._fields = fields
        self.values = Roots(fields)
        self.rows: dict[str, Columns] = {}  # of lookups
        self._kept: dict[str, Collection[str]] = {}  # of entities that events maintain
        self._roots = {"event", "meta"}
        self._later = later
        self._computed: set[str] = set()  # names for the results of arithmetic
        self._absences = Absences(fields)

    @property
    def fields(self) -> Collection[str] | None:
        return None if self._fields is None else self._fields.names()

    def made(self, names: Iterable[str]) -> None:
        """The step that makes these names is past."""
        self._roots.update(names)
        self._later.difference_update(names)

    def row(self, name: str, columns: Columns) -> None:
        """`$name` is a row with these columns."""
        self.rows[name] = columns
        self.values.row(name, {column: _KINDS.get(one.group, "") for column, one in columns.items()})

    def kept(self, name: str, fields: Collection[str] | None) -> None:
        """`$name` is what events say of an entity. fields: None if that may be anything."""
        if fields:
            self._kept[name] = fields

    def may_lack(self, name: str) -> None:
        """`$name` is a row that may not have been found: each of its fields is null then."""
        self._absences.row(name)

    def expression(self, path: KeyPath, expression: str, *, makes: str = "") -> Iterator[Remark]:
        """What is wrong with an expression. makes: the name that its value gets."""
        if makes and has_arithmetic(expression):
            self._computed.add(makes)
        try:
            names = expression_names(expression)
        except ConfigError as error:
            yield Remark("error", path, str(error).replace("\n  fix: ", "; "), name="syntax")
            return
        yield from self._names(path, names)
        yield from self._operators(path, expression, makes)
        yield from self._absences.check(path, expression)

    def _operators(self, path: KeyPath, expression: str, makes: str = "") -> Iterator[Remark]:
        node = tree_of(expression)
        if node is not None:
            yield from check_operators(path, node, self.values, self._fields)
        if makes:
            self.values.make(makes, node)

    def value(self, path: KeyPath, value: Any) -> Iterator[Remark]:
        """What is wrong with a value source."""
        try:
            names = value_names(value)
        except ConfigError as error:
            yield Remark("error", path, str(error).replace("\n  fix: ", "; "), name="syntax")
            return
        yield from self._names(path, names)
        if isinstance(value, str) and is_expression(value):
            yield from self._operators(path, value)
            yield from self._absences.check(path, value)
        for text in _templates(value):
            yield from self._absences.check_template(path, text)
            yield from check_template_operators(path, text, self._roots, self.values, self._fields)
        for text in _literals(value):
            yield from self._literal(path, text)

    def _literal(self, path: KeyPath, text: str) -> Iterator[Remark]:
        """What is only text, and was hardly meant so."""
        for name in paths_in_text(text):
            if name.partition(".")[0] in self._roots:
                message = f"${name} inside text is not replaced"
                fix = f"write {{{{ {name} }}}} for its value, or $$ for a dollar"
                yield Remark("warning", path, message, fix, name="dollar-in-text")
        if self._known_path(text):
            message = f"{text} is only this text, the same for every event"
            yield Remark("warning", path, message, f"write ${text} for its value", name="missing-dollar")
        if re.search(r"\{%.*%\}", text, re.DOTALL):
            message = "{% ... %} is only text here: a template has {{ ... }}"
            fix = "write the words as {{ 'one' if event.used > 1 else 'other' }}"
            yield Remark("warning", path, message, fix, name="no-template")

    def _known_path(self, text: str) -> bool:
        """Would `$` before this text make it a value that is known to be there?"""
        root, _, field = text.partition(".")
        if root == "meta":
            return field in META_FIELDS
        known = (self.fields or ()) if root == "event" else self.rows.get(root, ())
        return field in known or field in self._kept.get(root, ())

    def check_float(self, path: KeyPath, value: Any) -> Iterator[Remark]:
        """Arithmetic is float64: a numeric column loses the exact decimal."""
        if not is_expression(value):
            return
        try:
            computed = expression_names(value) & self._computed
        except ConfigError:
            return
        if computed or has_arithmetic(value):
            message = "is computed in float64: a numeric column loses its exact decimals"
            fix = "map the field itself, or compute in SQL (a generated column)"
            yield Remark("warning", path, message, fix, name="float64")

    def _names(self, path: KeyPath, names: frozenset[str]) -> Iterator[Remark]:
        for name in sorted(names):
            root, _, rest = name.partition(".")
            field, _, below = rest.partition(".")
            if root in self._later:
                yield Remark(
                    "error",
                    path,
                    f"${root} is defined by a later step",
                    "move that step up",
                    name="later-name",
                )
            elif root not in self._roots:
                known = ", ".join(f"${each}" for each in sorted(self._roots))
                fix = nearest(root, self._roots) or f"there is: {known}"
                yield Remark("error", path, f"there is no ${root} here", fix, name="unknown-name")
            elif root == "meta" and field and field not in META_FIELDS:
                fix = nearest(field, META_FIELDS) or f"there is: {', '.join(META_FIELDS)}"
                yield Remark("error", path, f"$meta has no {field}", fix, name="unknown-meta")
            elif field and field not in self.rows.get(root, [field]):
                columns = self.rows[root]
                fix = nearest(field, columns) or f"its sql selects: {', '.join(columns)}"
                message = f"the lookup of {root} has no column {field}: it would be null for every event"
                yield Remark("error", path, message, fix, name="lookup-column")
            elif field and field not in self._kept.get(root, [field]):
                near = nearest(field, self._kept[root])
                fix = near or f"events say: {', '.join(sorted(self._kept[root]))}"
                message = f"no upsert.entity says {field} of {root}: it is null"
                yield Remark("error" if near else "warning", path, message, fix, name="entity-field")
            elif root == "event" and field and self._fields is not None:
                yield from _field(path, field, below, self._fields)


def _templates(value: Any) -> Iterator[str]:
    return (text for text in _texts(value) if "{{" in text)


def _literals(value: Any) -> Iterator[str]:
    return (text for text in _texts(value) if "{{" not in text)


def _texts(value: Any) -> Iterator[str]:
    """The texts in a value that are no expressions."""
    if isinstance(value, str):
        if not is_expression(value):
            yield value
    elif isinstance(value, dict | list | tuple):
        for inside in value.values() if isinstance(value, dict) else value:
            yield from _texts(inside)


def _misspelt(field: str, known: Collection[str]) -> bool:
    """Is it surely one of these? address3 is not address1: another number is another field."""
    near = get_close_matches(field, known, n=1, cutoff=0.8)
    return bool(near) and _DIGITS.sub("", near[0]) != _DIGITS.sub("", field)


def _field(path: KeyPath, field: str, below: str, fields: EventFields) -> Iterator[Remark]:
    known = fields.names()
    if field not in known:
        near = nearest(field, known)
        fix = near or f"add it to the contract, such as {field}: any?"
        if fields.total:
            message, level = f"the event's contract has no field {field}", SURE
        else:  # an event that matches the pattern and has no contract may bring it
            message = f"no contract of {', '.join(fields.patterns)} has a field {field}"
            level = SURE if _misspelt(field, known) else "warning"
        yield Remark(level, path, message, fix, name="unknown-field")
    elif below and all(one.type in _LEAVES for one in fields.of(field)):
        message = f"{field} is a {fields.of(field)[0].type} and has no {below}"
        yield Remark("error", path, message, name="field-of-value")
