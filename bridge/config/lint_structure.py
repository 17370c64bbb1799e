"""Lint of what leads where: connections, events, branches, parts that nothing uses. What a step or a destination says
is judged by the module of its kind.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from ipaddress import ip_address
from urllib.parse import urlsplit

from bridge.config.connection import Libpq, PostgresConnection, split_table, unqualified
from bridge.config.model import Config
from bridge.config.nats import NatsConnection
from bridge.config.pipeline import PipelineSection
from bridge.config.several import each_source, source_sections
from bridge.problem import KeyPath, Level, Remark, nearest


def check_structure(config: Config) -> Iterator[Remark]:
    """All findings in the structure of a configuration whose names exist."""
    yield from _connections(config)
    yield from _log(config)
    yield from _events(config)
    yield from _entities(config)
    yield from _webhooks(config)
    for path, section in source_sections(config).items():
        if split_table(section.table) is None:
            yield unqualified((*path, "table"), section.table)
    for one in each_source(config) if config.sources else ():
        if not one.pipelines:
            yield Remark(
                "warning",
                ("sources", one.source_name),
                "no pipeline takes events of this source: nobody reads it",
                "remove it, or name it in the `sources` of a pipeline",
                key=True,
                name="unused-source",
            )
    for name, pipeline in config.pipelines.items():
        path = ("pipelines", name)
        yield from _branches(path, pipeline)
        yield from _optional_keys(path, config, pipeline)
        for key, destination in pipeline.destinations.items():
            connection = config.connections.get(destination.connection)
            yield from destination.lint((*path, "destinations", key), connection)


def _log(config: Config) -> Iterator[Remark]:
    """What `scale.log` needs, and what it changes nothing for."""
    scale = config.scale
    if scale is None or scale.log is None:
        return
    connection, path = config.connections.get(scale.log), ("scale", "log")
    if not isinstance(connection, NatsConnection):
        logs = [name for name, one in config.connections.items() if isinstance(one, NatsConnection)]
        what = "there is no such connection" if connection is None else "it is not one of type nats"
        add = f"connections: {{ {scale.log}: {{ type: nats, servers: [nats://localhost:4222] }} }}"
        yield Remark("error", path, f"{scale.log}: {what}", nearest(scale.log, logs) or add)
    for at, section in source_sections(config).items():
        if section.columns is not None and section.columns.xid is None:
            yield Remark(
                "error",
                (*at, "columns"),
                "has no xid, and scale.log needs it: partitions find their place in the table by it",
                "bridge doctor prints the column to add; or leave scale.log out",
            )
        if section.capture == "poll":
            yield Remark(
                "warning",
                (*at, "capture"),
                "poll: no relay reads this source, and scale.log only divides its work",
                "capture: slot, or auto",
                name="log-without-slot",
            )


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
    if config.scale is not None and config.scale.log is not None:
        used.add(config.scale.log)
    for path, section in source_sections(config).items():
        yield from _tls((*path, "dsn"), section)
    seen: dict[str, str] = {}
    for name, connection in config.connections.items():
        path = ("connections", name)
        if name not in used:
            yield Remark(
                "warning",
                path,
                "no pipeline uses this connection",
                "remove it",
                key=True,
                name="unused-connection",
            )
        if isinstance(connection, NatsConnection):
            yield from _nats_tls(path, connection)
        if not isinstance(connection, PostgresConnection):
            continue
        yield from _tls((*path, "dsn"), connection)
        where = connection.place()
        if where in seen:
            message = f"is the same database as {seen[where]}: each would have its own slot and ledger row"
            yield Remark(
                "warning", path, message, f"use {seen[where]} for both", key=True, name="same-database"
            )
        if where:
            seen[where] = name


def _tls(path: KeyPath, connection: Libpq) -> Iterator[Remark]:
    parameters = connection.parameters()
    remote = [host for host in parameters.get("host", "").split(",") if host and not _is_local(host)]
    mode = parameters.get("sslmode", "prefer")
    if remote and mode != "verify-full":
        message = f"sslmode is {mode}, which does not verify the identity of another host"
        yield Remark(
            "warning",
            path,
            message,
            "set sslmode: verify-full, and sslrootcert where it needs one",
            name="weak-tls",
        )


def _nats_tls(path: KeyPath, connection: NatsConnection) -> Iterator[Remark]:
    plain = [server for server in connection.servers if server.startswith("nats://")]
    remote = [server for server in plain if not _is_local(urlsplit(server).hostname or "")]
    if connection.tls is None and remote:
        yield Remark(
            "warning",
            path,
            "has no tls: events and the login go to another host in clear text",
            "add tls: { ca: <the authority's file> }, or tls: {} for an authority that this machine trusts",
            key=True,
            name="weak-tls",
        )


def _is_local(host: str) -> bool:
    if host.startswith(("/", "@")) or host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _events(config: Config) -> Iterator[Remark]:
    taken: set[str] = set()
    patterns = [pattern for pipeline in config.pipelines.values() for pattern in pipeline.events]
    orphans = [event for event in config.events if not any(fnmatchcase(event, one) for one in patterns)]
    for name, pipeline in config.pipelines.items():
        for index, pattern in enumerate(pipeline.events):
            matched = [event for event in config.events if fnmatchcase(event, pattern)]
            taken.update(matched)
            if not matched:
                near = nearest(pattern, config.events)
                message = f"no event under `events` matches {pattern}: its payloads are not checked"
                level: Level = "error" if _meant(pattern, orphans) else "warning"
                path: KeyPath = ("pipelines", name, "event")
                path = (*path, index) if len(pipeline.events) > 1 else path
                fix = near or "add its contract under events"
                yield Remark(level, path, message, fix, name="unknown-event")
    for event in config.events:
        if event not in taken:
            yield Remark(
                "warning", ("events", event), "no pipeline takes this event", key=True, name="unused-event"
            )


def _meant(written: str, orphans: Sequence[str]) -> bool:
    """Is this an orphan misspelt? An event without a contract is nothing wrong: only where a contract of nearly the
    same name is taken by no pipeline was it surely meant."""
    return bool(get_close_matches(written, orphans, n=1, cutoff=0.9))


def _entities(config: Config) -> Iterator[Remark]:
    steps = [step for pipeline in config.pipelines.values() for step in pipeline.steps]
    upserted = {step.keeps for step in steps}
    enriched = {step.looks_up for step in steps}
    for name, entity in config.entities.items():
        path = ("entities", name)
        if name not in enriched:
            fix = f"enrich.entity: {{ entity: {name}, key: ... }}, or remove it"
            yield Remark("warning", path, "no enrich.entity looks it up", fix, key=True, name="unused-entity")
        if entity.kept_by is not None and name not in upserted:
            fix = (
                f"add upsert.entity: {{ entity: {name}, key: ... }} to the pipeline whose events "
                "have its fields"
            )
            yield Remark(
                "warning", path, "no upsert.entity maintains it", fix, key=True, name="unkept-entity"
            )


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
            yield Remark(
                "warning", ("ingress", "webhooks", name), message, fix, key=True, name="unused-webhook"
            )


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
            yield Remark(
                "error",
                (*path, "branches", index),
                message,
                f"put it before `{last}`",
                name="unreachable-branch",
            )
            continue
        reached.update(branch.to)
        if branch.when is None or branch.when.strip() == "true":
            last = branch.name
    for name in pipeline.destinations:
        if name not in reached:
            at = (*path, "destinations", name)
            yield Remark(
                "warning",
                at,
                "no branch leads to it",
                f"add it to a branch's to: [{name}]",
                key=True,
                name="unreached-destination",
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
                    yield Remark(
                        "warning",
                        at,
                        message,
                        f"let {event} require the field, or use another key",
                        name="nullable-key",
                    )
                    break
