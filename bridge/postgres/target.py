"""The target's connection: whole transactions as one pipeline of prepared statements, sent without waiting.

A transaction is `begin`, its statements and `commit` in one flight with one answer to wait for. Columns travel as
binary arrays: 4 us a row, where psycopg's adaptation of a list costs 86. Binary form of an array: dimensions,
has-null flag, element type oid, then per dimension length and lower bound, then each element as length and bytes,
-1 for NULL (array_recv in src/backend/utils/adt/arrayfuncs.c).
"""

from __future__ import annotations

import time
from binascii import Error, unhexlify
from collections import deque
from collections.abc import Callable, Sequence
from struct import Struct, pack
from typing import NamedTuple

import psycopg
from psycopg import pq
from psycopg.errors import error_from_result
from psycopg.pq.abc import PGresult

from bridge.errors import Retry
from bridge.postgres import wire
from bridge.postgres.advice import LOST
from bridge.postgres.connect import connect_pq
from bridge.postgres.profiles import TARGET
from bridge.postgres.safe_error import safe_message

_HEAD = Struct("!iiIii").pack
_NULL = b"\xff\xff\xff\xff"
_LENGTHS = [length.to_bytes(4, "big") for length in range(4096)]
_EMPTY = Struct("!iiI").pack
_ONE_OF_EIGHT = Struct("!iiIiiiQ").pack

TEXT = 25
UUID = 2950
XID8 = 5069
PG_LSN = 3220


_ONE = _HEAD(1, 0, TEXT, 1, 1)
_ONE_NULL = _HEAD(1, 1, TEXT, 1, 1) + _NULL


def text_array(values: Sequence[bytes | None]) -> bytes:
    """text[]: elements are UTF-8 bytes as they are."""
    if not values:
        return _EMPTY(0, 0, TEXT)
    if len(values) == 1:
        (value,) = values
        return _ONE_NULL if value is None else _ONE + len(value).to_bytes(4, "big") + value
    if None in values:
        return _HEAD(1, 1, TEXT, len(values), 1) + b"".join(map(_element, values))
    lengths = list(map(len, values))  # type: ignore[arg-type]  # there is no None among them
    longest = max(lengths)
    if longest == min(lengths):
        length = longest.to_bytes(4, "big")
        return _HEAD(1, 0, TEXT, len(values), 1) + length + length.join(values)  # type: ignore[arg-type]
    parts: list[bytes] = [_HEAD(1, 0, TEXT, len(values), 1)] * (2 * len(values) + 1)
    if longest < len(_LENGTHS):
        parts[1::2] = map(_LENGTHS.__getitem__, lengths)
    else:
        parts[1::2] = [length.to_bytes(4, "big") for length in lengths]
    parts[2::2] = values  # type: ignore[assignment]
    return b"".join(parts)


def _element(value: bytes | None) -> bytes:
    return _NULL if value is None else len(value).to_bytes(4, "big") + value


_SIXTEEN = b"00000010"  # an element's length, in hex as the elements are until all are made binary at once


def uuid_array(values: Sequence[bytes | None]) -> bytes | None:
    """uuid[], or None if a value is not a UUID as Postgres prints it; then the server parses the text and reports
    errors. Parsing 36 digits costs the server more than this function costs us."""
    if None in values or set(map(len, values)) != {36}:  # type: ignore[arg-type]  # there is no None among them
        return None
    text = b"".join(values)  # type: ignore[arg-type]
    digits = (_SIXTEEN + _SIXTEEN.join(values)).replace(b"-", b"")  # type: ignore[arg-type]
    dashes = {text[place::36].count(b"-") for place in (8, 13, 18, 23)}
    if dashes != {len(values)} or len(digits) != 40 * len(values):
        return None
    try:
        return _HEAD(1, 0, UUID, len(values), 1) + unhexlify(digits)
    except Error:
        return None


def eight_byte_array(oid: int, values: Sequence[int]) -> bytes:
    """xid8[] or pg_lsn[]: elements are unsigned 64-bit integers."""
    if not values:
        return _EMPTY(0, 0, oid)
    if len(values) == 1:
        return _ONE_OF_EIGHT(1, 0, oid, 1, 1, 8, values[0])
    elements = [8] * (2 * len(values))
    elements[1::2] = values
    return _HEAD(1, 0, oid, len(values), 1) + pack("!" + "iQ" * len(values), *elements)


_TEXT, _BINARY = [0] * 65536, [1] * 65536  # formats of at most as many parameters as the protocol has
_SILENCE_SECONDS = 90.0  # beyond TARGET's statement_timeout: nobody is there
_OK = (int(pq.ExecStatus.TUPLES_OK), int(pq.ExecStatus.COMMAND_OK))
_SYNC = int(pq.ExecStatus.PIPELINE_SYNC)

ResultRows = list[list[tuple[bytes | None, ...]]]
"""The rows of each sent statement, values as text."""


class Statement(NamedTuple):
    """SQL with its parameters: bytes in text format, or an encoded array where `binary`."""

    text: bytes
    parameters: Sequence[bytes | None] = ()
    binary: bool = False


BEGIN = Statement(b"begin")
COMMIT = Statement(b"commit")
ROLLBACK = Statement(b"rollback")
IMMEDIATE = Statement(b"set constraints all immediate")
DEFERRED = Statement(b"set constraints all deferred")
ROLE_PATH = Statement(b"set local search_path to default")
"""Before what fires the customer's triggers: they find what they find for any other client of the role. The statements
that follow qualify every name."""
OUR_PATH = Statement(b"set local search_path to ''")
"""Before the bridge's own statements, as the session has it."""

_PREPARED_AT_MOST = 128 << 10
"""Bytes of SQL that the server keeps prepared; it needs about sixty times as much memory for them. A mapping whose
events have many sets of fields makes a statement for each set."""


class Refused(Exception):
    """A statement failed, and its transaction was rolled back. statement: its index in the flight."""

    def __init__(self, statement: int, error: psycopg.Error) -> None:
        super().__init__(error.sqlstate)
        self.statement = statement
        self.error = error

    @property
    def sqlstate(self) -> str:
        return self.error.sqlstate or ""


class TargetLink:
    """One connection in pipeline mode. send() returns at once; settle() waits for everything that was sent."""

    def __init__(self, dsn: str, application_name: str) -> None:
        self._connection = connect_pq(dsn, TARGET, application_name)
        self._connection.enter_pipeline_mode()
        self.descriptor = self._connection.socket
        self._names: dict[bytes, bytes] = {}  # SQL -> prepared statement's name
        self._prepared = 0  # so far
        self._prepared_bytes = 0  # of SQL, now
        self._stale = False  # the server may have more than _names says
        self._expected: deque[tuple[str, bytes]] = deque()  # ("prepare" | "run" | "sync", SQL)
        self.busy = False
        """An answer is not complete yet."""
        self._rows: ResultRows = []
        self.affected: list[int] = []
        """Rows that each statement of the last flight says it wrote."""
        self._error: Refused | None = None
        self._statement = 0
        self._want_write = False
        self._heard = 0.0  # when the last answer, or our question, went over the link

    def check_heard(self) -> None:
        """Raise Retry if an answer is due and nothing has arrived for longer than a statement may take."""
        if self._expected and time.monotonic() - self._heard > _SILENCE_SECONDS:
            raise Retry(
                f"the target has not answered for {_SILENCE_SECONDS:.0f} s: the link is dead",
                reason="target_lost",
            )

    @property
    def wants_write(self) -> bool:
        return self._want_write

    def send(self, statements: Sequence[Statement]) -> None:
        """Put statements into the pipeline, followed by a sync."""
        connection = self._connection
        self._rows, self._error, self._statement = [], None, 0
        self.affected = []
        if self._stale and not self.in_transaction:
            self._forget_all()
        failed = connection.transaction_status == pq.TransactionStatus.INERROR
        for text, parameters, binary in statements:
            name = self._names.pop(text, None)
            if name is None:
                if not failed:
                    self._forget()
                self._prepared += 1
                self._prepared_bytes += len(text)
                name = b"s%d" % self._prepared
                connection.send_prepare(name, text)
                self._expected.append(("prepare", text))
            self._names[text] = name  # the one that was used last is last
            if parameters:
                formats = _BINARY if binary else _TEXT
                connection.send_query_prepared(name, parameters, formats[: len(parameters)])
            else:
                connection.send_query_prepared(name, None)
            self._expected.append(("run", text))
        self._heard = time.monotonic()
        connection.pipeline_sync()
        self._expected.append(("sync", b""))
        self.busy = True
        self._want_write = bool(connection.flush())

    def _forget(self) -> None:
        """Of the prepared statements, those that were not used for the longest time. Not in a transaction that has
        failed: the server would refuse to."""
        while self._prepared_bytes > _PREPARED_AT_MOST:
            text, name = next(iter(self._names.items()))
            del self._names[text]
            self._prepared_bytes -= len(text)
            self._connection.send_query_params(b"deallocate " + name, None)
            self._expected.append(("forget", name))

    def _forget_all(self) -> None:
        """After a flight that failed before a statement of its own was forgotten: which ones are there is not known."""
        self._names, self._prepared_bytes, self._stale = {}, 0, False
        self._connection.send_query_params(b"deallocate all", None)
        self._expected.append(("forget", b""))

    def pump(self) -> bool:
        """Process received data. True: the answer is complete."""
        if not self.busy:
            return True
        connection = self._connection
        if self._want_write:
            self._want_write = bool(connection.flush())
        wire.read(connection)
        between = False  # after the last result of a statement comes one None; two mean: no more for now
        heard = False
        while self._expected and not connection.is_busy():
            result = connection.get_result()
            if result is not None:
                heard = True
                self._take(result)
            elif between:
                break
            between = result is None
        if heard:
            self._heard = time.monotonic()
        self.busy = bool(self._expected)
        return not self.busy

    def _take(self, result: PGresult) -> None:
        kind, text = self._expected[0]
        status = result.status
        if status in _OK and kind != "sync":
            self._expected.popleft()
            if kind == "run":
                self._note(result)
            return
        if status == _SYNC:
            self._expected.popleft()
            return
        if kind == "sync":  # an error at the very end, from a deferred constraint
            self._error = self._error or Refused(self._statement, error_from_result(result))
            return
        self._expected.popleft()
        if status == pq.ExecStatus.FATAL_ERROR:
            self._error = self._error or Refused(self._statement, error_from_result(result))
            if not self._error.sqlstate:
                raise Retry("the connection to the target was lost", reason="target_lost", hint=LOST)
            if (
                self._error.error.diag.severity_nonlocalized == "FATAL"
            ):  # its last words; then the link is gone
                said = safe_message(self._error.error)
                raise Retry(f"the target ended the session: {said}", reason="target_lost", hint=LOST)
        if kind == "prepare" and self._names.pop(text, None) is not None:
            self._prepared_bytes -= len(text)
        elif kind == "forget":
            self._stale = True
        elif kind == "run":
            self._note(result)

    def _note(self, result: PGresult) -> None:
        self._statement += 1
        self.affected.append(result.command_tuples or 0)
        rows = range(result.ntuples)
        width = range(result.nfields) if rows else ()
        self._rows.append([tuple(result.get_value(row, n) for n in width) for row in rows])

    def outcome(self) -> ResultRows:
        """The rows of each statement, after pump() returned True. Raises Refused."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._rows

    def settle(self, wait: Callable[[], None]) -> ResultRows:
        """Wait until the answer is complete; `wait` blocks until there is something to read or write."""
        while not self.pump():
            wait()
        return self.outcome()

    def run(
        self, statements: Sequence[Statement], wait: Callable[[], None]
    ) -> list[list[tuple[bytes | None, ...]]]:
        self.send(statements)
        return self.settle(wait)

    def run_alone(self, *statements: Statement) -> ResultRows:
        """The same, waiting only for this link. Raises Refused, and Retry if the link is dead."""
        return self.run(statements, self._wait)

    def _wait(self) -> None:
        wire.wait([self.descriptor], [self.descriptor] if self._want_write else [], 1.0)
        self.check_heard()

    @property
    def in_transaction(self) -> bool:
        return self._connection.transaction_status != pq.TransactionStatus.IDLE

    def close(self) -> None:
        self._connection.finish()
