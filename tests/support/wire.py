"""Enough of the frontend/backend protocol to see a COMMIT go by (PostgreSQL manual, chapter 54).

Apart from the proxy because it has no socket: bytes in, messages and transaction boundaries out. Each
Sync or simple Query is one exchange, answered by exactly one ReadyForQuery, pipelined or not.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

_NEGOTIATION = (80877103, 80877104)  # SSLRequest, GSSENCRequest: answered by one byte, then a real startup
Predicate = Callable[[bytes], bool]


class Messages:
    """Cuts a stream of typed messages: one byte type, four bytes length (itself included), body."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """(type, whole message) for each one complete."""
        self._rest += data
        while len(self._rest) >= 5:
            length = 1 + int(struct.unpack_from("!I", self._rest, 1)[0])
            if len(self._rest) < length:
                return
            message, self._rest = self._rest[:length], self._rest[length:]
            yield message[:1], message


class Startup:
    """Lets the untyped messages at the start of a client's stream through and says when they are over."""

    def __init__(self) -> None:
        self._rest = b""
        self.negotiations = 0  # one-byte answers the server owes

    def feed(self, data: bytes) -> bytes | None:
        """None while still starting; then the bytes that follow the startup message."""
        self._rest += data
        while len(self._rest) >= 8:
            length, code = struct.unpack_from("!II", self._rest)
            if len(self._rest) < length:
                return None
            self._rest = self._rest[length:]
            if code in _NEGOTIATION:
                self.negotiations += 1
                continue
            return self._rest
        return None


@dataclass(slots=True)
class Exchange:
    """What a client asked for up to one Sync (or in one simple Query)."""

    matched: bool = False  # something the predicate looks for was in it


@dataclass(slots=True)
class Conversation:
    """One connection: which exchange the server is answering, and whether a transaction just committed."""

    predicate: Predicate
    _asked: Exchange = field(default_factory=Exchange)
    _unanswered: deque[Exchange] = field(default_factory=deque)
    _statements: dict[bytes, bytes] = field(default_factory=dict)  # prepared statement name -> its SQL
    _matched: bool = False  # in the open transaction, answered so far
    _failed: bool = False
    _tag: bytes = b""

    def ask(self, kind: bytes, message: bytes) -> None:
        """A client message passes."""
        body = message[5:]
        if kind == b"Q":
            self._asked.matched |= self.predicate(body)
        elif kind == b"P":
            name, query = body.split(b"\0", 2)[:2]
            self._statements[name] = query
        elif kind == b"B":
            _, name = body.split(b"\0", 2)[:2]
            self._asked.matched |= self.predicate(self._statements.get(name, b"")) or self.predicate(body)
        if kind in (b"Q", b"S"):
            self._unanswered.append(self._asked)
            self._asked = Exchange()

    @property
    def suspect(self) -> bool:
        """The answer under way may be that of a commit the predicate looks for: hold it back."""
        return self._matched or bool(self._unanswered and self._unanswered[0].matched)

    def answer(self, kind: bytes, message: bytes) -> bool | None:
        """A server message passes. At ReadyForQuery: did a matched transaction just commit? Else None."""
        if kind == b"C":
            self._tag = message[5:-1]
        elif kind == b"E":
            self._failed = True
        if kind != b"Z":
            return None
        exchange = self._unanswered.popleft() if self._unanswered else Exchange()
        self._matched |= exchange.matched
        idle = message[5:6] == b"I"
        committed = idle and self._matched and not self._failed and self._tag != b"ROLLBACK"
        if idle:
            self._matched = False
        self._failed, self._tag = False, b""
        return committed
