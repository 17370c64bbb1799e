"""Lint of what destinations say to sinks: without it, each message would be a dead letter, or go elsewhere.

Apart from the names (names.py), which need no connection: here the vendor's own models judge what is literal.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from bridge.config.model import Config
from bridge.config.pipeline import SinkDestination
from bridge.config.problem import KeyPath, Remark, nearest
from bridge.core.source import Literal, classify
from bridge.errors import ConfigError
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
