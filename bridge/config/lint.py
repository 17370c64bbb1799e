"""What is wrong, or likely to be, in a configuration that may load: each finding with its place and its fix.

Offline: nothing is connected to, and a variable that is not set here is only a warning. What leads where
(connections, tables, keys, branches, unused parts) is checked here, and what destinations say to sinks, judged by
the vendor's own models; expressions are checked in lint_expressions.py and lint_values.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bridge.config.connection import Libpq, PostgresConnection
from bridge.config.document import Document, read
from bridge.config.lint_expressions import check_expressions
from bridge.config.load import build
from bridge.config.model import Config
from bridge.config.pipeline import PipelineSection, SinkDestination, TableDestination, split_table
from bridge.config.problem import InvalidConfig, KeyPath, Level, Position, Remark, format_path, nearest
from bridge.errors import ConfigError
from bridge.planning.rows import Literal, classify
from bridge.sinks.model import SinkConnection, is_reference


def check_messages(config: Config) -> Iterator[Remark]:
    """Every remark about the keys of sinks' destinations."""
    for pipeline_name, pipeline in config.pipelines.items():
        for name, destination in pipeline.destinations.items():
            connection = config.connections.get(destination.connection)
            if isinstance(destination, SinkDestination) and isinstance(connection, SinkConnection):
                yield from _message(
                    ("pipelines", pipeline_name, "destinations", name), destination, connection
                )


def _message(path: KeyPath, destination: SinkDestination, connection: SinkConnection) -> Iterator[Remark]:
    written = {key: value for key, value in destination.fields.items() if value is not None}
    for group in connection.needs():
        if not written.keys() & set(group):
            message = f"has neither {' nor '.join(group)}: no message could be sent"
            fix = f"add {' or '.join(group)}"
            yield Remark("error", path, message, fix, key=True)
    for key in connection.idle():
        if key in written:
            message = f"does nothing: connection {destination.connection} writes to one place, its own"
            yield Remark("error", (*path, key), message, "use a connection that can choose", key=True)
    for key, known in connection.names().items():
        named = written.get(key)
        for name in named if isinstance(named, dict) else ():
            if name not in known:
                message = f"the connection does not say which type {name} has"
                fix = nearest(name, known) or f"add it to the {key} of connection {destination.connection}"
                yield Remark("error", (*path, key, name), message, fix, key=True)
    yield from _literals(path, written, connection)


def _literals(path: KeyPath, written: dict[str, Any], connection: SinkConnection) -> Iterator[Remark]:
    """What the vendor's model says of the values that are the same for every event."""
    literals = {key: value for key, value in written.items() if _is_literal(value)}
    try:
        connection.message.model_validate(literals)
    except ValidationError as error:
        for problem in error.errors():
            place = problem["loc"][:1]
            if place and place[0] in literals:
                words = str(problem["msg"]).removeprefix("Value error, ")
                yield Remark("error", (*path, place[0]), words[:1].lower() + words[1:])


def _is_literal(value: Any) -> bool:
    if isinstance(value, str) and is_reference(value):
        return False
    try:
        return isinstance(classify(value), Literal)
    except ConfigError:
        return False


def check_structure(config: Config) -> Iterator[Remark]:
    """Every remark about the shape of a configuration whose names meet."""
    yield from _connections(config)
    yield from _events(config)
    yield from _entities(config)
    yield from _webhooks(config)
    if split_table(config.source.table) is None:
        yield _unqualified(("source", "table"), config.source.table)
    for name, pipeline in config.pipelines.items():
        path = ("pipelines", name)
        yield from _branches(path, pipeline)
        for key, destination in pipeline.destinations.items():
            if isinstance(destination, TableDestination):
                yield from _table((*path, "destinations", key), destination)


def _connections(config: Config) -> Iterator[Remark]:
    used = {
        destination.connection
        for pipeline in config.pipelines.values()
        for destination in pipeline.destinations.values()
    }
    used |= {
        step.enrich_entity.source
        for pipeline in config.pipelines.values()
        for step in pipeline.steps
        if step.enrich_entity is not None
    }
    used |= {entity.source for entity in config.entities.values()}
    yield from _tls(("source", "dsn"), config.source)
    seen: dict[str, str] = {}
    for name, connection in config.connections.items():
        path = ("connections", name)
        if name not in used:
            yield Remark("warning", path, "no pipeline uses this connection", "remove it", key=True)
        if not isinstance(connection, PostgresConnection):
            continue
        yield from _tls((*path, "dsn"), connection)
        where = connection.place()
        if where in seen:
            message = (
                f"is the same database as {seen[where]}: each would have a slot and a ledger row of its own"
            )
            yield Remark("warning", path, message, f"use {seen[where]} for both", key=True)
        if where:
            seen[where] = name


def _tls(path: KeyPath, connection: Libpq) -> Iterator[Remark]:
    parameters = connection.parameters()
    remote = [host for host in parameters.get("host", "").split(",") if host and not _is_local(host)]
    mode = parameters.get("sslmode", "prefer")
    if remote and mode != "verify-full":
        message = f"sslmode is {mode}, which does not prove who answers at another host"
        yield Remark("warning", path, message, "set sslmode: verify-full, and sslrootcert where it needs one")


def _is_local(host: str) -> bool:
    if host.startswith(("/", "@")) or host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _events(config: Config) -> Iterator[Remark]:
    taken: set[str] = set()
    for name, pipeline in config.pipelines.items():
        for index, pattern in enumerate(pipeline.events):
            matched = [event for event in config.events if fnmatchcase(event, pattern)]
            taken.update(matched)
            if not matched:
                near = nearest(pattern, config.events)
                message = f"no event under `events` is {pattern}: nothing checks what comes in"
                level: Level = "error" if near else "warning"
                path: KeyPath = ("pipelines", name, "event")
                path = (*path, index) if len(pipeline.events) > 1 else path
                yield Remark(level, path, message, near or "write its contract under events")
    for event in config.events:
        if event not in taken:
            yield Remark("warning", ("events", event), "no pipeline takes this event", key=True)


def _entities(config: Config) -> Iterator[Remark]:
    steps = [step for pipeline in config.pipelines.values() for step in pipeline.steps]
    upserted = {step.upsert_entity.entity for step in steps if step.upsert_entity is not None}
    enriched = {step.enrich_entity.entity for step in steps if step.enrich_entity is not None}
    for name, entity in config.entities.items():
        path = ("entities", name)
        if name not in enriched:
            fix = f"enrich.entity: {{ entity: {name}, key: ... }}, or remove it"
            yield Remark("warning", path, "no enrich.entity looks it up", fix, key=True)
        if entity.kept_by is not None and name not in upserted:
            fix = f"upsert.entity: {{ entity: {name}, key: ... }} in the pipeline of the events that say it"
            yield Remark("warning", path, "no upsert.entity keeps it", fix, key=True)


def _webhooks(config: Config) -> Iterator[Remark]:
    """A webhook whose events no pipeline can take; where an expression makes the type, nothing is known."""
    taken = [event for pipeline in config.pipelines.values() for event in pipeline.events]
    for name, webhook in (config.ingress.webhooks if config.ingress is not None else {}).items():
        written = f"{name}.{{{{" if webhook.type is None else str(webhook.type)
        if written.startswith("$") and not written.startswith("$$"):
            continue
        start, template, _ = written.partition("{{")
        if not any(_may_take(event, start, exactly=not template) for event in taken):
            types = f"{start}*" if template else start
            message = f"no pipeline takes its events, {types}: they would lead nowhere"
            fix = f"add a pipeline with event: '{types}'"
            yield Remark("warning", ("ingress", "webhooks", name), message, fix, key=True)


def _may_take(event: str, start: str, *, exactly: bool) -> bool:
    """Can a type that begins with `start` (or is it) be one that a pipeline's `event` takes?"""
    if exactly:
        return fnmatchcase(start, event)
    literal = re.split(r"[*?[]", event, maxsplit=1)[0]
    return literal.startswith(start) or (literal != event and start.startswith(literal))


def _branches(path: KeyPath, pipeline: PipelineSection) -> Iterator[Remark]:
    if pipeline.branches is None:
        return
    last: str | None = None
    reached: set[str] = set()
    for index, branch in enumerate(pipeline.branches):
        if last is not None:
            message = f"can never be reached: `{last}` before it takes everything"
            yield Remark("error", (*path, "branches", index), message, f"put it before `{last}`")
            continue
        reached.update(branch.to)
        if branch.when is None or branch.when.strip() == "true":
            last = branch.name
    for name in pipeline.destinations:
        if name not in reached:
            at = (*path, "destinations", name)
            yield Remark(
                "warning", at, "no branch leads to it", f"name it in a branch's to: [{name}]", key=True
            )


def _table(path: KeyPath, table: TableDestination) -> Iterator[Remark]:
    if split_table(table.table) is None:
        yield _unqualified((*path, "table"), table.table)
    if table.mode == "insert":
        for name in ("key", "version"):
            if getattr(table, name):
                fix = "say mode: upsert, or remove it"
                yield Remark(
                    "warning", (*path, name), f"`{name}` does nothing with mode: insert", fix, key=True
                )
        return
    if not table.key:
        fix = "name the columns of a unique index: key: [event_id]"
        yield Remark("error", (*path, "mode"), "an upsert needs `key`", fix)
        return
    columns = table.columns
    if columns is not None:
        for index, name in enumerate(table.key):
            if name not in columns:
                fix = nearest(name, columns) or "add it to columns"
                yield Remark("error", (*path, "key", index), f"key column {name} is not among `columns`", fix)
    identity = (
        "event_id" in table.key if columns is None else any(columns.get(k) == "$meta.id" for k in table.key)
    )
    if not identity and table.version is None:
        message = "is not the event's identity: a retried older event would write over a newer one"
        yield Remark("warning", (*path, "key"), message, "add version: $meta.seq", key=True)


def _unqualified(path: KeyPath, table: str) -> Remark:
    name = table.rpartition(".")[2] or "events"
    return Remark("error", path, "a table is named with its schema", f"write {'public.' + name}")


@dataclass(frozen=True, slots=True)
class LintFinding:
    """One thing lint has to say. `fix` is the mend, where one is known."""

    level: Level
    position: Position
    path: KeyPath
    message: str
    fix: str = ""

    def text(self, file: str) -> str:
        """`bridge.yaml:12:7: error: pipelines.hits: ...; did you mean ...?`"""
        where = f"{file}:{self.position.line}:{self.position.column}: {self.level}: "
        path = f"{format_path(self.path)}: " if self.path else ""
        return f"{where}{path}{self.message}{f'; {self.fix}' if self.fix else ''}"


def lint(path: Path, environ: Mapping[str, str]) -> list[LintFinding]:
    """Every finding of the file at `path`, in its order. InvalidConfig when it cannot be opened or read."""
    try:
        document = read(path, environ)
    except InvalidConfig as invalid:
        if invalid.unreadable:
            raise
        return [LintFinding("error", p.position, p.path, p.message, p.hint) for p in invalid.problems]
    return sorted(_findings(document), key=lambda finding: finding.position)


def _findings(document: Document) -> Iterator[LintFinding]:
    config = build(document, offline=True)
    for problem in document.problems:
        yield LintFinding("error", problem.position, problem.path, problem.message, problem.hint)
    for path, message in document.unset:
        yield LintFinding("warning", document.position(path), path, message)
    if config is None:
        return
    for remark in (*check_structure(config), *check_messages(config), *check_expressions(config)):
        position = document.position(remark.path, key=remark.key)
        yield LintFinding(remark.level, position, remark.path, remark.message, remark.fix)
