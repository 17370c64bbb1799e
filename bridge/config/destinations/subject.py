"""A subject of a nats connection: events for others, at least once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from bridge.config.connection import AnyConnection
from bridge.config.destinations.destination import DestinationSection, Value
from bridge.errors import ConfigError
from bridge.planning.publication import HEADER_NAME, subject_problem
from bridge.planning.rows import Literal, classify
from bridge.planning.spec import SubjectSpec
from bridge.problem import KeyPath, Remark, suggestion
from bridge.section import Text

OWN_HEADERS = ("nats-", "bridge-")
"""Headers of JetStream (a deduplication's id, expectations, a lifetime) and of the bridge."""


class SubjectDestination(DestinationSection):
    """A subject of NATS JetStream: at least once, always with the same id."""

    mark: ClassVar[str] = "subject"

    connection: str
    """The name of a nats connection."""
    subject: Text
    """The subject, a value: orders.placed, or orders.{{ event.region }}. A JetStream stream has to take it."""
    headers: dict[str, Any] | None = None
    """Header to value, beside those that every message has. What is null is left out."""
    payload: Any = "$event"
    """The payload, a value; JSON unless it is a text."""

    @classmethod
    def fits(cls, kind: str | None) -> bool:
        return kind == "nats"

    @classmethod
    def usual(cls, kind: str | None) -> bool:
        return kind == "nats"

    def spec(self, name: str, connection: AnyConnection) -> SubjectSpec:
        return SubjectSpec(name, self.connection, self.subject, self.headers or {}, self.payload)

    def values(self) -> Iterator[Value]:
        yield Value(("subject",), self.subject)
        for name, value in (self.headers or {}).items():
            yield Value(("headers", name), value)
        yield Value(("payload",), self.payload)

    def told(self) -> Iterator[str]:
        yield f"To the subject `{self.subject}`."

    def lint(self, path: KeyPath, connection: AnyConnection | None) -> Iterator[Remark]:
        try:
            written = classify(self.subject)
        except ConfigError:
            written = None  # lint of expressions has it
        if isinstance(written, Literal) and "${" not in self.subject:
            problem = subject_problem(str(written.value))
            if problem is not None:
                yield Remark("error", (*path, "subject"), f"the subject {problem}", name="invalid-message")
        for name in self.headers or {}:
            at = (*path, "headers", name)
            if not HEADER_NAME.fullmatch(name):
                yield Remark(
                    "error",
                    at,
                    "is not a header's name: letters, digits, - and _",
                    key=True,
                    name="invalid-message",
                )
            elif name.lower().startswith(OWN_HEADERS):
                message = "is a header of JetStream or of the bridge, which sets it itself"
                yield Remark("error", at, message, "use another name", key=True, name="invalid-message")

    @classmethod
    def check_names(
        cls, path: KeyPath, written: Mapping[str, Any], kinds: Mapping[str, str]
    ) -> Iterator[Remark]:
        if written.get("table") is not None:
            databases = [name for name, each in kinds.items() if each == "postgres"]
            message = "is a nats connection: a table needs a postgres one"
            yield Remark(
                "error", (*path, "connection"), message, suggestion(written["connection"], databases)
            )
