"""The settings of each use of a connection, as frozen values: settings of a role or a server cannot change the meaning
of what the bridge reads and writes.

connect.py applies them. The customer's own queries (enrichments) keep the search_path, the time zone, the order of day
and month and the money of the role, because they may depend on them. How their results are written is set.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

_ANSWER_MARGIN_SECONDS = 20.0
"""Added to statement_timeout: after that, the link is dead."""

_NAME_BYTES = 63
"""Postgres cuts an application_name there (NAMEDATALEN - 1)."""

_Settings = tuple[tuple[str, str], ...]


def fitted(name: str) -> str:
    """An application_name that Postgres does not cut: two long names that begin alike would be one."""
    if len(name.encode()) <= _NAME_BYTES:
        return name
    digest = sha256(name.encode()).hexdigest()[:8]
    return f"{name.encode()[: _NAME_BYTES - 9].decode(errors='ignore')}~{digest}"


def working(stream: str) -> str:
    """How the application_name of a session begins that has fenced this stream; the epoch follows."""
    return fitted(f"bridge/{stream}/")


@dataclass(frozen=True, slots=True)
class Profile:
    """name: the application_name; the caller fills in `{}`. where: the server's name in errors.

    statement_seconds: statement_timeout; 0: none. needs_session: refused behind a pooler in transaction mode, because
    it uses prepared statements, locks or LISTEN. durable: commits are flushed to disk even if synchronous_commit of the
    role is off. prepares: repeated statements are prepared.
    """

    name: str
    where: str
    settings: _Settings
    statement_seconds: int = 0
    needs_session: bool = False
    durable: bool = False
    prepares: bool = False
    connect_seconds: int | None = None  # per host; None: the dsn's connect_timeout

    def session_name(self, part: str) -> str:
        """The application_name."""
        return fitted(self.name.format(part))

    @property
    def answer_seconds(self) -> float | None:
        """Seconds until a silent link counts as dead; None: no limit."""
        return self.statement_seconds + _ANSWER_MARGIN_SECONDS if self.statement_seconds else None

    def _values(self) -> _Settings:
        return (*self.settings, ("statement_timeout", f"{self.statement_seconds}s"))

    def set_for_session(self, backend: int | None = None) -> str:
        """One statement. backend: a process id; in any other process it sets nothing and returns no row."""
        calls = [f"pg_catalog.set_config('{name}', '{value}', false)" for name, value in self._values()]
        calls.append(_NO_LIMIT.format("false"))
        if self.durable:
            calls.append(_DURABLE.format("false"))
        where = (
            "" if backend is None else f" where pg_catalog.pg_backend_pid() operator(pg_catalog.=) {backend}"
        )
        return f"select {', '.join(calls)}{where}"

    def set_in_transaction(self, mode: str = "") -> str:
        """Statements for the rest of the transaction. SET takes no snapshot, so the isolation level can still be
        chosen. mode: of this transaction, `read only`, an isolation level, ...; it takes precedence."""
        commands = [
            f"set local {name.replace('default_transaction_', 'transaction_')} = '{value}'"
            for name, value in self._values()
            if (name, value) != _MAY_WRITE  # a standby would refuse it, and it is read to find out what it is
        ]
        if mode:
            commands.append(f"set transaction {mode}")
        commands.append(f"select {_NO_LIMIT.format('true')}")
        if self.durable:
            commands.append(f"select {_DURABLE.format('true')}")
        return "; ".join(commands)


_MAY_WRITE = ("default_transaction_read_only", "off")
# Of 17 and later: a transaction in chunks may take longer than a role's limit.
_NO_LIMIT = (
    "case when pg_catalog.current_setting('transaction_timeout', true) is not null"
    " then pg_catalog.set_config('transaction_timeout', '0', {}) end"
)
_DURABLE = (
    "case pg_catalog.current_setting('synchronous_commit') when 'off'"
    " then pg_catalog.set_config('synchronous_commit', 'on', {}) end"
)

# What changes the meaning of names and operators or the text of values, what ends a session that only waits, and JIT,
# which slows short queries down.
_MEANING: _Settings = (
    ("search_path", ""),
    ("client_encoding", "UTF8"),
    ("datestyle", "ISO,YMD"),
    ("timezone", "UTC"),
    ("intervalstyle", "iso_8601"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("standard_conforming_strings", "on"),
    ("array_nulls", "on"),
    ("quote_all_identifiers", "off"),
    ("transform_null_equals", "off"),
    ("timezone_abbreviations", "Default"),
    ("xmloption", "content"),
    ("client_min_messages", "warning"),
    ("idle_session_timeout", "0"),
    ("jit", "off"),
)
# The text of money is the same by the stream and by the table. A target's columns read text as their server does.
_SENT: _Settings = (*_MEANING, ("lc_monetary", "C"))
# A row-security policy must not hide rows that are read, compared or written: the statement fails instead.
_UNFILTERED: _Settings = (*_MEANING, ("row_security", "off"))
_WRITES: _Settings = (
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_deferrable", "off"),
    _MAY_WRITE,
)
_READ_ONLY: _Settings = (
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "on"),
    ("default_transaction_deferrable", "off"),
)
_READS_SOURCE: _Settings = (*_SENT, ("row_security", "off"))
_SOURCE: _Settings = (*_READS_SOURCE, *_WRITES)
_WRITES_TARGET: _Settings = (*_UNFILTERED, ("synchronous_commit", "on"), *_WRITES)


# --- the source -------------------------------------------------------------------------------------------

SOURCE = Profile("bridge-source/{}", "the source", (*_SOURCE, ("lock_timeout", "5s")), statement_seconds=10)
"""Short statements: identity, registry, looks at the outbox."""

SOURCE_ROWS = Profile("bridge-source/{}", "the source", (*_SOURCE, ("lock_timeout", "5s")))
"""One long cursor over the outbox."""

UPKEEP = Profile("bridge-source/{}", "the source", (*_SOURCE, ("lock_timeout", "5s")), statement_seconds=60)
"""Pruning, a batch a statement."""

ENTITY = Profile(
    "bridge-source/entity/{}",
    "the source",
    (*_SOURCE, ("lock_timeout", "5s")),
    statement_seconds=10,
    durable=True,  # when the target has the batch, nothing writes it again
)
"""Writes entities."""

STREAM = Profile(
    "bridge-stream/{}",
    "the source for replication",
    (*_SENT, ("lock_timeout", "0")),
    needs_session=True,
)
"""A walsender's: the stream, slots, the timeline history."""

LISTEN = Profile("bridge-listen/{}", "the source", _SOURCE, needs_session=True)
"""Receives notifications."""

INGRESS = Profile(
    "bridge-ingress",
    "the source",
    (*_SOURCE, ("lock_timeout", "1s"), ("idle_in_transaction_session_timeout", "10s")),
    statement_seconds=10,
    durable=True,  # the answer 202 promises it
)
"""Inserts events."""

# --- a target ---------------------------------------------------------------------------------------------

TARGET = Profile(
    "{}",
    "the target",
    (
        *_WRITES_TARGET,
        ("lock_timeout", "10s"),
        ("idle_in_transaction_session_timeout", "120s"),
        ("tcp_keepalives_idle", "10"),
        ("tcp_keepalives_interval", "5"),
        ("tcp_keepalives_count", "3"),
    ),
    statement_seconds=60,
    needs_session=True,
)
"""The apply transaction: durable, unfiltered, never stuck."""

CATALOG = Profile(
    "{}",
    "the target",
    (*_UNFILTERED, ("lock_timeout", "5s")),
    statement_seconds=10,
    needs_session=True,
)
"""Questions to a target's catalog and ledger."""

DISPATCH = Profile(
    "bridge-dispatch/{}",
    "the ledger of the deliveries",
    (
        *_WRITES_TARGET,
        ("lock_timeout", "5s"),
        ("idle_in_transaction_session_timeout", "30s"),
        # Indexes have the queue's two orders. A plan from stale statistics must not sort the whole backlog.
        ("enable_seqscan", "off"),
        ("enable_sort", "off"),
        ("plan_cache_mode", "force_custom_plan"),
    ),
    statement_seconds=15,
    needs_session=True,
    connect_seconds=5,
)
"""Claims and settles deliveries."""

SHARE = Profile(
    "bridge-share/{}",
    "the target",
    (
        *_WRITES_TARGET,
        ("lock_timeout", "1s"),
        # A machine that is gone must not hold its claims: the server asks after a second, and gives up after four.
        ("tcp_keepalives_idle", "1"),
        ("tcp_keepalives_interval", "1"),
        ("tcp_keepalives_count", "3"),
        ("tcp_user_timeout", "4s"),
    ),
    statement_seconds=2,
    needs_session=True,
    connect_seconds=3,
)
"""Holds the claims of the streams that this bridge runs, where several share a file."""

# The text of a result that any server reads as the same value, whatever it is set to. A moment's text has its offset.
# `ISO` alone leaves the order of day and month as it is; lc_monetary decides what an amount is, not only how it looks.
_LOOKUP: _Settings = (
    ("client_encoding", "UTF8"),
    ("datestyle", "ISO"),
    ("intervalstyle", "postgres"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("quote_all_identifiers", "off"),
)

# --- either server ----------------------------------------------------------------------------------------

ENRICH = Profile(
    "bridge-enrich/{}",
    "the server of an enrichment",
    (*_LOOKUP, ("default_transaction_read_only", "on")),
    statement_seconds=10,
    prepares=True,
)
"""Lookups with the customer's SQL."""

BACKLOG = Profile(
    "bridge-backlog/{}",
    "the server",
    (*_READS_SOURCE, ("lock_timeout", "1s"), *_READ_ONLY),
    statement_seconds=3,
    connect_seconds=3,
)
"""Reads the backlog while a stream is halted."""

PROVE_SOURCE = Profile(
    "bridge-prove/{}", "the source", (*_READS_SOURCE, ("lock_timeout", "10s"), *_READ_ONLY)
)
"""Long reads of `bridge prove`."""

PROVE_TARGET = Profile(
    "bridge-prove/{}", "the target", (*_UNFILTERED, ("lock_timeout", "10s"), *_READ_ONLY), needs_session=True
)
"""The same on a target."""

COMMAND = Profile("bridge {}", "the source", _SOURCE)
"""A command, without timeouts: a person can interrupt it."""

DOCTOR = Profile("bridge doctor", "the server", (*_UNFILTERED, ("lock_timeout", "2s")), statement_seconds=15)
"""The checks of `bridge doctor`."""

DOCTOR_ENRICH = Profile(
    "bridge doctor",
    "the server of an enrichment",
    (*_LOOKUP, ("lock_timeout", "2s")),
    statement_seconds=15,
)
"""Tests the SQL of enrichments as ENRICH runs it."""
