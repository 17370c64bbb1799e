"""What is wrong, or likely to be, in a configuration that may load: each finding with its place and its fix.

Offline: nothing is connected to, and a variable that is not set here is only a warning. What leads where
(connections, branches, unused parts) is checked here; what a step or a destination says, by the module of its kind;
expressions, in lint_expressions.py and lint_values.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from ipaddress import ip_address
from pathlib import Path

from bridge.config.connection import Libpq, PostgresConnection, split_table, unqualified
from bridge.config.document import Document, read
from bridge.config.lint_expressions import check_expressions
from bridge.config.load import build
from bridge.config.model import Config
from bridge.config.pipeline import PipelineSection
from bridge.problem import InvalidConfig, KeyPath, Level, Position, Remark, format_path, nearest


def check_structure(config: Config) -> Iterator[Remark]:
    """All findings in the structure of a configuration whose names exist."""
    yield from _connections(config)
    yield from _events(config)
    yield from _entities(config)
    yield from _webhooks(config)
    if split_table(config.source.table) is None:
        yield unqualified(("source", "table"), config.source.table)
    for name, pipeline in config.pipelines.items():
        path = ("pipelines", name)
        yield from _branches(path, pipeline)
        yield from _optional_keys(path, config, pipeline)
        for key, destination in pipeline.destinations.items():
            connection = config.connections.get(destination.connection)
            yield from destination.lint((*path, "destinations", key), connection)


def _connections(config: Config) -> Iterator[Remark]:
    used = {
        destination.connection
        for pipeline in config.pipelines.values()
        for destination in pipeline.destinations.values()
    }
    used |= {
        step.asks
        for pipeline in config.pipelines.values()
        for step in pipeline.steps
        if step.asks is not None
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
            message = f"is the same database as {seen[where]}: each would have its own slot and ledger row"
            yield Remark("warning", path, message, f"use {seen[where]} for both", key=True)
        if where:
            seen[where] = name


def _tls(path: KeyPath, connection: Libpq) -> Iterator[Remark]:
    parameters = connection.parameters()
    remote = [host for host in parameters.get("host", "").split(",") if host and not _is_local(host)]
    mode = parameters.get("sslmode", "prefer")
    if remote and mode != "verify-full":
        message = f"sslmode is {mode}, which does not verify the identity of another host"
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
                message = f"no event under `events` matches {pattern}: its payloads are not checked"
                level: Level = "error" if near else "warning"
                path: KeyPath = ("pipelines", name, "event")
                path = (*path, index) if len(pipeline.events) > 1 else path
                yield Remark(level, path, message, near or "add its contract under events")
    for event in config.events:
        if event not in taken:
            yield Remark("warning", ("events", event), "no pipeline takes this event", key=True)


def _entities(config: Config) -> Iterator[Remark]:
    steps = [step for pipeline in config.pipelines.values() for step in pipeline.steps]
    upserted = {step.keeps for step in steps}
    enriched = {step.looks_up for step in steps}
    for name, entity in config.entities.items():
        path = ("entities", name)
        if name not in enriched:
            fix = f"enrich.entity: {{ entity: {name}, key: ... }}, or remove it"
            yield Remark("warning", path, "no enrich.entity looks it up", fix, key=True)
        if entity.kept_by is not None and name not in upserted:
            fix = (
                f"add upsert.entity: {{ entity: {name}, key: ... }} to the pipeline whose events "
                "have its fields"
            )
            yield Remark("warning", path, "no upsert.entity maintains it", fix, key=True)


def _webhooks(config: Config) -> Iterator[Remark]:
    """A webhook whose events no pipeline takes; if an expression makes the type, nothing is reported."""
    taken = [event for pipeline in config.pipelines.values() for event in pipeline.events]
    for name, webhook in (config.ingress.webhooks if config.ingress is not None else {}).items():
        written = f"{name}.{{{{" if webhook.type is None else str(webhook.type)
        if written.startswith("$") and not written.startswith("$$"):
            continue
        start, template, _ = written.partition("{{")
        if not any(_may_take(event, start, exactly=not template) for event in taken):
            types = f"{start}*" if template else start
            message = f"no pipeline takes its events, {types}"
            fix = f"add a pipeline with event: '{types}'"
            yield Remark("warning", ("ingress", "webhooks", name), message, fix, key=True)


def _may_take(event: str, start: str, *, exactly: bool) -> bool:
    """Can a pipeline's `event` take a type that begins with `start` (or equals it)?"""
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
            message = f"is unreachable: `{last}` before it matches everything"
            yield Remark("error", (*path, "branches", index), message, f"put it before `{last}`")
            continue
        reached.update(branch.to)
        if branch.when is None or branch.when.strip() == "true":
            last = branch.name
    for name in pipeline.destinations:
        if name not in reached:
            at = (*path, "destinations", name)
            yield Remark(
                "warning", at, "no branch leads to it", f"add it to a branch's to: [{name}]", key=True
            )


def _optional_keys(path: KeyPath, config: Config, pipeline: PipelineSection) -> Iterator[Remark]:
    """A key that events may lack: NULL equals no key."""
    types = [name for name in config.events if any(fnmatchcase(name, one) for one in pipeline.events)]
    for name, destination in pipeline.destinations.items():
        for key in destination.identity():
            source = str(key.value)
            fields = [
                (event, config.events[event].fields.get(source.removeprefix("$event."))) for event in types
            ]
            for event, field in fields:
                if source.startswith("$event.") and field and (field.nullable or not field.required):
                    message = (
                        f"is NULL for an event without {source}: it adds a row each time, or is a dead letter where "
                        "the column is NOT NULL"
                    )
                    at = (*path, "destinations", name, *key.at)
                    yield Remark("warning", at, message, f"let {event} require the field, or use another key")
                    break


@dataclass(frozen=True, slots=True)
class LintFinding:
    """One finding of lint. `fix`: the fix, if one is known."""

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
    """Every finding of the file at `path`, in the file's order. Raises InvalidConfig if it cannot be opened or read."""
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
    for remark in (*check_structure(config), *check_expressions(config)):
        position = document.position(remark.path, key=remark.key)
        yield LintFinding(remark.level, position, remark.path, remark.message, remark.fix)
