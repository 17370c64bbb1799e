"""Messages of a log: one event as a subject, headers and a payload. Rendered when the event is planned; whoever
publishes them awaits every acknowledgement before the event counts as applied (stream/published.py).

Subjects: NATS documentation, "Subject-Based Messaging". Headers: NATS/1.0, as HTTP/1.1 has them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bridge.errors import UnitFailure
from bridge.expressions.document import exact_json, json_text
from bridge.expressions.expression import Expression
from bridge.planning.rows import Literal, Rows, classify, names_of, values_of
from bridge.planning.spec import SubjectSpec
from bridge.protocol.events import Event

MAX_SUBJECT = 1024
"""Bytes. The server takes a control line of 4096, with the reply subject and the sizes on it."""
MAX_HEADERS = 32 * 1024

_SUBJECT = re.compile(r"[^\s.*>\x00-\x20\x7f]+(?:\.[^\s.*>\x00-\x20\x7f]+)*")
RESERVED = ("$", "_INBOX.")
"""Subjects of the server itself, and of answers."""
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_PLAIN = re.compile(rb"[\x21-\x24\x26-\x7e](?:[\x20-\x24\x26-\x7e]*[\x21-\x24\x26-\x7e])?")
"""What a header's value can be without an escape: printable ASCII but %, and no blank at an end."""


class SubjectFailure(UnitFailure):
    """The subject or a header that an event makes cannot be sent."""

    code = "subject"


@dataclass(frozen=True, slots=True)
class Publication:
    """One message. headers: as they are sent, a line each, without those that name the unit."""

    pipeline: str
    destination: str
    event: Event
    subject: str
    headers: bytes
    payload: bytes

    def shown(self) -> dict[str, Any]:
        """For a person and for tests: the subject, the headers as they are sent, the payload."""
        lines = (line.partition(b": ") for line in self.headers.splitlines())
        text = self.payload.decode(errors="replace")
        try:
            payload = exact_json(text)
        except UnitFailure:
            payload = text
        headers = {name.decode(): value.decode() for name, _, value in lines}
        return {"subject": self.subject, "headers": headers, "payload": payload}


def subject_problem(subject: str) -> str | None:
    """Why nothing can be published to this subject; None: it can."""
    if not subject:
        return "is empty"
    if subject.startswith(RESERVED):
        return "begins with $ or _INBOX., which are the server's own"
    if not _SUBJECT.fullmatch(subject):
        return "must be words with dots between them, without blanks, * and >"
    return f"is longer than {MAX_SUBJECT} bytes" if len(subject.encode()) > MAX_SUBJECT else None


def header_value(value: Any) -> bytes:
    """A header's value, in ASCII: what is not printable, and %, percent-encoded (RFC 3986, 2.1)."""
    text = value if isinstance(value, bytes) else _text(value)
    if _PLAIN.fullmatch(text):
        return text
    escaped = b"".join(
        b"%c" % byte if 0x20 <= byte < 0x7F and byte != 0x25 else b"%%%02X" % byte for byte in text
    )
    blank = len(escaped) - len(escaped.lstrip(b" "))
    tail = len(escaped) - len(escaped.rstrip(b" ")) if escaped.strip(b" ") else 0
    return b"%20" * blank + escaped.strip(b" ") + b"%20" * tail


def _text(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else json_text(value)


class Subject:
    """A destination of type nats, compiled."""

    def __init__(self, pipeline: str, spec: SubjectSpec) -> None:
        self.pipeline = pipeline
        self.spec = spec
        self.subject = classify(spec.subject)
        self.payload = classify(spec.payload)
        self.headers = {name.encode(): classify(value) for name, value in spec.headers.items()}
        values = (self.subject, *self.headers.values())
        whole = isinstance(self.payload, Expression) and self.payload.plain_path == ("event",)
        reads = [names_of(value) for value in (values if whole else (*values, self.payload))]
        self.reads = frozenset().union(*reads)

    def publications(self, rows: Rows) -> list[Publication]:
        """The message of every row. Raises SubjectFailure."""
        subjects, headers = self._subjects(rows), self._header_lines(rows)
        return [
            Publication(self.pipeline, self.spec.name, event, subject, lines, payload)
            for event, subject, lines, payload in zip(
                rows.events, subjects, headers, self._payloads(rows), strict=True
            )
        ]

    def _subjects(self, rows: Rows) -> Sequence[str]:
        subjects = [
            value if isinstance(value, str) else _text(value).decode()
            for value in values_of(self.subject, rows)
        ]
        for subject in set(subjects):
            if (why := subject_problem(subject)) is not None:
                raise SubjectFailure(f"the subject {why}")
        return subjects

    def _header_lines(self, rows: Rows) -> list[bytes]:
        lines: list[list[bytes]] = [[] for _ in rows.events]
        for name, source in self.headers.items():
            for own, value in zip(lines, values_of(source, rows), strict=True):
                if value is not None:
                    own.append(b"%s: %s\r\n" % (name, header_value(value)))
        joined = [b"".join(own) for own in lines]
        if max(map(len, joined), default=0) > MAX_HEADERS:
            raise SubjectFailure(f"the headers are longer than {MAX_HEADERS} bytes")
        return joined

    def _payloads(self, rows: Rows) -> Sequence[bytes]:
        if isinstance(self.payload, Expression) and self.payload.plain_path == ("event",):
            return list(rows.payloads())
        return [_document(value) for value in values_of(self.payload, rows)]


def _document(value: Any) -> bytes:
    """JSON; a text of a template stands for itself."""
    if isinstance(value, str):
        return value.encode()
    return json_text(value)


def literal_part(subject: str) -> str:
    """A wildcard that takes whatever a subject of the configuration becomes: `orders.{{ event.region }}` is
    `orders.>`; `orders.placed` itself."""
    if isinstance(classify(subject), Literal):
        return subject
    whole = subject.partition("{{")[0] if "{{" in subject else ""
    words = whole.split(".")[:-1]
    return ".".join([*words, ">"])
