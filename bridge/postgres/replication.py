"""The replication stream: a slot's changes over COPY BOTH, on psycopg's `pq` layer (psycopg has no replication
client).

It reads messages into the decoder and writes status updates; its callers decide when to read and what to confirm.
PostgreSQL manual, 53.4 Streaming Replication Protocol.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from struct import Struct
from typing import LiteralString, Protocol

from psycopg import pq
from psycopg.pq.abc import PGconn, PGresult

from bridge.errors import BridgeError, CannotConnect, Halt, Retry, StandBy, Verdict, verdict_of
from bridge.postgres import wire
from bridge.postgres.connect import connect_pq
from bridge.postgres.profiles import STREAM
from bridge.protocol.events import Lsn, format_lsn

LIFE: LiteralString = (
    "select (select system_identifier::text from pg_control_system())"
    " || '/' || (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint"
)
"""Which run of the server this is: of a copy, of one that was promoted or started again, it is another."""

_STATUS = Struct("!cQQQQB").pack
_POSTGRES_EPOCH_SECONDS = 946_684_800
_MESSAGES = 1000  # taken from libpq's buffer,
_BYTES = 128 << 10  # or held, before the decoder is fed


# Preflight finds out: the slot or publication is gone; or the slot's name was taken, in another database it may be.
_LOOK_AGAIN = {"42704": "slot_lost", "55000": "slot_lost", "42710": "slot_taken"}

_MENDS = {
    "42501": (
        "replication",
        "bridge doctor asks the server why, and prints the statement that this service allows",
    ),
    "53400": (
        "no_free_slot",
        "drop an unused slot (select slot_name, active from pg_replication_slots), or raise "
        "max_replication_slots and restart the source",
    ),
}


PLUGIN = "output_plugin_libraries"
PLUGIN_FIX = (
    "alter system set output_plugin_libraries = 'pgoutput', 'test_decoding';   -- or add pgoutput to what is there\n"
    "select pg_reload_conf();"
)


def plugin_refused(result: PGresult) -> str:
    """What the server said, if it does not trust pgoutput (PostgreSQL 18.6, 17.11, 16.15); empty: another error."""
    fields = (pq.DiagnosticField.MESSAGE_PRIMARY, pq.DiagnosticField.MESSAGE_HINT)
    primary, hint = ((result.error_field(field) or b"").decode(errors="replace") for field in fields)
    return primary if PLUGIN in hint else ""  # the setting's name is there in every language


def quoted(name: str) -> str:
    """Quote a slot or publication name for a replication command; the configuration restricts both."""
    return '"' + name.replace('"', '""') + '"'


def _fail(result: PGresult | None, connection: PGconn, doing: str) -> BridgeError:
    """The BridgeError for a failed replication command."""
    if result is None:
        return CannotConnect(f"the source closed the connection while {doing}")
    state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
    primary = (result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"").decode(errors="replace")
    text = f"{doing}: {primary or connection.get_error_message()}"
    if state == "55006":
        return StandBy(text)
    if state in _LOOK_AGAIN:
        return Retry(text, reason=_LOOK_AGAIN[state])
    refused = plugin_refused(result)
    if fix := (PLUGIN, PLUGIN_FIX) if refused else _MENDS.get(state):
        return Halt(f"{doing}: {refused}" if refused else text, reason=fix[0], hint=fix[1])
    if verdict_of(state or None) is Verdict.RETRY:
        return Retry(text)
    return Halt(f"{text} (SQLSTATE {state})", reason="replication_command")


def command(connection: PGconn, text: str, doing: str) -> list[list[bytes | None]]:
    """Run one replication command and return its rows."""
    result = connection.exec_(text.encode())
    if result.status not in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
        raise _fail(result, connection, doing)
    return [[result.get_value(row, n) for n in range(result.nfields)] for row in range(result.ntuples)]


def open_replication(dsn: str, stream: str) -> PGconn:
    """A walsender's connection. Raises CannotConnect."""
    connection = connect_pq(dsn, STREAM, stream, replication="database")
    if connection.parameter_status(b"server_encoding") == b"SQL_ASCII":
        # Such a server converts nothing, but would end every stream at the first byte that is not UTF-8.
        command(connection, "SET client_encoding = 'SQL_ASCII'", "setting the encoding")
    return connection


class Reader(Protocol):
    """Who takes the messages."""

    @property
    def behind(self) -> bool:
        """It wants no more for now."""

    def feed(self, messages: Sequence[bytes]) -> None: ...


class ReplicationStream:
    """One START_REPLICATION. `pump` moves bytes; `confirm` and `status` answer."""

    def __init__(
        self, dsn: str, stream: str, slot: str, publication: str, start: Lsn, *, life: str | None = None
    ) -> None:
        """life: the run of the server that must be read; None: any. Raises Retry where it is another."""
        self._connection = open_replication(dsn, stream)
        self.descriptor = self._connection.socket
        # Nothing of it is inside of OpenSSL or a GSS library, where poll() does not see it.
        self._plain = not self._connection.ssl_in_use and not self._connection.used_gssapi
        self._received = start
        self.confirmed = Lsn(0)
        self.last_heard = time.monotonic()
        self.last_status = 0.0
        doing = f"starting replication from slot {slot}"
        try:
            if life is not None:
                self._require(life)
            self._start(slot, publication, start, doing)
        except BaseException:
            self._connection.finish()
            raise

    def _require(self, life: str) -> None:
        rows = command(self._connection, LIFE, "asking which server this is")
        if (rows[0][0] or b"").decode() != life:
            raise Retry("the source was started again, or is another one", reason="source_restarted")

    def _start(self, slot: str, publication: str, start: Lsn, doing: str) -> None:
        connection = self._connection
        literal = quoted(publication).replace("'", "''")
        connection.send_query(
            (
                f"START_REPLICATION SLOT {quoted(slot)} LOGICAL {format_lsn(start)} "
                f"(proto_version '1', publication_names '{literal}')"
            ).encode()
        )
        end = wire.deadline(60)
        while connection.flush() or connection.is_busy():
            if time.monotonic() > end:
                raise Retry(f"{doing}: no answer in 60 s")
            wire.wait([self.descriptor], [], 1.0)
            wire.consume(connection)
        result = connection.get_result()
        if result is None or result.status != pq.ExecStatus.COPY_BOTH:
            raise _fail(result, connection, doing)

    def pump(self, reader: Reader) -> bool:
        """Read what has arrived until nothing is left or the reader is behind. True: there may be more at once."""
        connection, get = self._connection, self._connection.get_copy_data
        messages: list[bytes] = []
        held, read, more = 0, False, True
        while True:
            size, append, before = 0, messages.append, len(messages)
            for _ in range(_MESSAGES):
                size, view = get(1)
                if size <= 0:
                    break
                append(bytes(view))
                held += size
            if read and self._plain:
                more = len(messages) > before  # a part of one: the next poll tells of the rest
            if messages and (size or held >= _BYTES or not more):
                reader.feed(messages)
                messages, held = [], 0
            if size < 0:
                raise self._ended()
            if reader.behind:
                return True
            if size > 0:
                read = False
                continue
            if not more:
                return False
            read = True
            if self._plain:
                connection.consume_input()
            else:
                more = wire.consume(connection)

    def _ended(self) -> BridgeError:
        result = self._connection.get_result()
        failed = result is not None and result.status == pq.ExecStatus.FATAL_ERROR
        return _fail(result if failed else None, self._connection, "streaming")

    def status(self, received: Lsn, *, reply: bool = False) -> None:
        """Send a standby status update. received: the received position; flushed is the confirmed position."""
        self._received = max(self._received, received, self.confirmed)
        now = time.time()
        clock = int((now - _POSTGRES_EPOCH_SECONDS) * 1_000_000)
        message = _STATUS(b"r", self._received, self.confirmed, self.confirmed, clock, reply)
        self._connection.put_copy_data(message)
        self._connection.flush()
        self.last_status = time.monotonic()

    def confirm(self, lsn: Lsn) -> None:
        """From now on, report that everything up to here is durable. Never decreases."""
        if lsn > self.confirmed:
            self.confirmed = lsn
            self.status(lsn)

    def close(self) -> None:
        """Close the stream in order, so that the slot is free at once; a dead link is just closed."""
        try:
            self._connection.put_copy_end()
            self._connection.flush()
        except Exception:  # noqa: S110  the link may be gone; finish() is what counts
            pass
        self._connection.finish()
