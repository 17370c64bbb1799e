"""Anything but a table: a message of the vendor that stands behind the connection, at least once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from pydantic import ConfigDict, ValidationError

from bridge.config.connection import AnyConnection
from bridge.config.destinations.destination import DestinationSection, Value
from bridge.config.noise import Rate, SinkDigest, SinkQuiet
from bridge.errors import ConfigError
from bridge.planning.rows import Literal, classify
from bridge.planning.spec import SinkSpec
from bridge.problem import KeyPath, Level, Remark, nearest, suggestion
from bridge.quantity import Duration
from bridge.sinks.joining import DIGEST
from bridge.sinks.model import SINKS, SinkConnection, is_reference


class SinkDestination(DestinationSection):
    """A sink: at least once, always with the same id. The other keys depend on the vendor; each is a value."""

    model_config = ConfigDict(extra="allow")

    connection: str
    """The name of a sink's connection."""
    max_age: Duration = timedelta(hours=24)
    """An undelivered message older than this becomes a dead letter."""
    timeout: Duration = timedelta(seconds=10)
    """How long one attempt may take."""
    digest: SinkDigest | None = None
    """Several messages as one: `{ by: $event.customer_id, every: 15m, max: 50 }`."""
    throttle: Rate | None = None
    """At most so many messages to one recipient: `5/h`. The others wait, up to max_age."""
    quiet: SinkQuiet | None = None
    """Hours in which nothing is sent: `{ from: "22:00", to: "07:00", time_zone: Europe/Berlin }`."""

    @property
    def fields(self) -> Mapping[str, Any]:
        """The vendor's keys, as written."""
        return self.__pydantic_extra__ or {}

    @classmethod
    def fits(cls, kind: str | None) -> bool:
        return kind not in ("postgres", "nats")

    @classmethod
    def usual(cls, kind: str | None) -> bool:
        return kind not in ("postgres", "nats")

    def spec(self, name: str, connection: AnyConnection) -> SinkSpec:
        message = SINKS[connection.type].message
        return SinkSpec(
            name=name,
            connection=self.connection,
            kind=connection.type,
            fields={**message.given, **self.fields, **({DIGEST: self.digest.by} if self.digest else {})},
            markup=message.markup(self.fields),
            max_age_seconds=self.max_age.total_seconds(),
            timeout_seconds=self.timeout.total_seconds(),
            digest=(self.digest.every.total_seconds(), self.digest.max) if self.digest else None,
            throttle=self.throttle,
            quiet=(self.quiet.begin, self.quiet.to, self.quiet.time_zone) if self.quiet else None,
        )

    def values(self) -> Iterator[Value]:
        for key, value in self.fields.items():
            yield Value((key,), value)
        if self.digest is not None:
            yield Value(("digest", "by"), self.digest.by)

    def lint(self, path: KeyPath, connection: AnyConnection | None) -> Iterator[Remark]:
        if not isinstance(connection, SinkConnection):
            return
        written = {key: value for key, value in self.fields.items() if value is not None}
        for group in connection.needs():
            if not written.keys() & set(group):
                message = f"has neither {' nor '.join(group)}: no message could be sent"
                yield Remark(
                    "error", path, message, f"add {' or '.join(group)}", key=True, name="empty-message"
                )
        for key in connection.idle():
            if key in written:
                message = f"has no effect: connection {self.connection} writes to its own place only"
                yield Remark(
                    "error", (*path, key), message, "use a connection with a token", key=True, name="idle-key"
                )
        for key, known in connection.names().items():
            named = written.get(key)
            for name in named if isinstance(named, dict) else ():
                if name not in known:
                    message = f"the connection does not define the type of {name}"
                    fix = nearest(name, known) or f"add it to the {key} of connection {self.connection}"
                    yield Remark(
                        "error", (*path, key, name), message, fix, key=True, name="undefined-property"
                    )
        yield from _literals(path, written, connection)
        yield from self._noise(path, connection)

    def _noise(self, path: KeyPath, connection: SinkConnection) -> Iterator[Remark]:
        if self.digest is not None and not connection.message.joins:
            message = f"a {connection.type} message cannot stand for several events"
            yield Remark(
                "error",
                (*path, "digest"),
                message,
                "leave digest out, or use throttle",
                key=True,
                name="no-digest",
            )
        waits: dict[str, tuple[Level, timedelta]] = {
            "digest": (
                "error",
                self.digest.every if self.digest else timedelta(0),
            ),  # the first of each waits it out
            "quiet": ("warning", self.quiet.longest if self.quiet else timedelta(0)),
        }
        for key, (level, longest) in waits.items():
            if longest >= self.max_age:
                message = "a message could wait longer than max_age, and become a dead letter unsent"
                yield Remark(
                    level, (*path, key), message, "make max_age longer", key=True, name="waits-too-long"
                )

    @classmethod
    def check_names(
        cls, path: KeyPath, written: Mapping[str, Any], kinds: Mapping[str, str]
    ) -> Iterator[Remark]:
        """A vendor's keys are told by name here; their values are judged when they are rendered."""
        kind = kinds[written["connection"]]
        if written.get("table") is not None:
            databases = [name for name, each in kinds.items() if each == "postgres"]
            message = f"is a {kind} connection: a table needs a postgres one"
            hint = suggestion(written["connection"], databases)
            yield Remark("error", (*path, "connection"), message, hint)
        elif kind in SINKS:
            yield from _message(path, written, kind)


def _message(path: KeyPath, written: Mapping[str, Any], kind: str) -> Iterator[Remark]:
    model = SINKS[kind].message
    known = {*model.model_fields, *SinkDestination.model_fields}
    one = f"{'an' if kind[0] in 'aeiou' else 'a'} {kind} message"
    for key, value in written.items():
        if key not in known:
            yield Remark("error", (*path, key), f"is not a key of {one}", suggestion(key, known), key=True)
        if key in model.literal and isinstance(value, str) and ("{{" in value or value.startswith("$")):
            yield Remark(
                "error", (*path, key), "must be a literal, because it decides how values are escaped"
            )
    for name, field in model.model_fields.items():
        if field.is_required() and name not in written and name not in model.given:
            yield Remark("error", path, f"`{name}` is missing: {one} needs it", key=True)


def _literals(path: KeyPath, written: Mapping[str, Any], connection: SinkConnection) -> Iterator[Remark]:
    """The vendor model's errors for values that are the same for every event."""
    literals = {key: value for key, value in written.items() if _is_literal(value)}
    try:
        connection.message.model_validate(literals)
    except ValidationError as error:
        for problem in error.errors():
            place = problem["loc"][:1]
            if place and place[0] in literals:
                words = str(problem["msg"]).removeprefix("Value error, ")
                yield Remark(
                    "error", (*path, place[0]), words[:1].lower() + words[1:], name="invalid-message"
                )


def _is_literal(value: Any) -> bool:
    if isinstance(value, str) and is_reference(value):
        return False
    try:
        return isinstance(classify(value), Literal)
    except ConfigError:
        return False
