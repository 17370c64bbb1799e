"""What each use of a connection sets: one frozen profile a use, so that a role's or a server's own settings change
the meaning of nothing that is read or written.

connect.py puts a profile into force. Queries of the customer's (enrichments) are the exception: they keep the role's
search_path and formats, since they were written for them.
"""

from __future__ import annotations

from dataclasses import dataclass

_ANSWER_MARGIN_SECONDS = 20.0
"""An answer that is this late beyond the server's own statement_timeout does not come any more."""

_Settings = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """name: the application_name; `{}` is what the caller adds. where: the server's name in errors.

    needs_session: refused behind a pool of transactions, since it holds more than a transaction keeps (prepared
    statements, locks, LISTEN). durable: a commit is flushed to disk even where the role's synchronous_commit is off.
    prepares: repeated statements are prepared. statement_seconds: the server ends a statement then; 0: never.
    """

    name: str
    where: str
    settings: _Settings
    statement_seconds: int = 0
    needs_session: bool = False
    durable: bool = False
    prepares: bool = False
    connect_seconds: int | None = None  # per host; None: the dsn's connect_timeout

    @property
    def answer_seconds(self) -> float | None:
        """When the link is taken for dead, though TCP says nothing; None: never."""
        return self.statement_seconds + _ANSWER_MARGIN_SECONDS if self.statement_seconds else None

    def _values(self) -> _Settings:
        return (*self.settings, ("statement_timeout", f"{self.statement_seconds}s"))

    def set_for_session(self, backend: int | None = None) -> str:
        """One statement. backend: a process id, and nothing is set in any other: no row comes back then."""
        calls = [f"pg_catalog.set_config('{name}', '{value}', false)" for name, value in self._values()]
        if self.durable:
            calls.append(_DURABLE.format("false"))
        where = (
            "" if backend is None else f" where pg_catalog.pg_backend_pid() operator(pg_catalog.=) {backend}"
        )
        return f"select {', '.join(calls)}{where}"

    def set_in_transaction(self) -> str:
        """Statements that set it until the transaction ends. By SET, which takes no snapshot: whoever began it may
        still choose its isolation level."""
        commands = [
            f"set local {name.replace('default_transaction_read_only', 'transaction_read_only')} = '{value}'"
            for name, value in self._values()
        ]
        if self.durable:
            commands.append(f"select {_DURABLE.format('true')}")
        return "; ".join(commands)


_DURABLE = (
    "case pg_catalog.current_setting('synchronous_commit') when 'off'"
    " then pg_catalog.set_config('synchronous_commit', 'on', {}) end"
)

# Texts of values, names and the plan's cost. Nothing that a query could rest on is left to the role.
_MEANING: _Settings = (
    ("search_path", ""),
    ("client_encoding", "UTF8"),
    ("datestyle", "ISO,YMD"),
    ("timezone", "UTC"),
    ("intervalstyle", "iso_8601"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("standard_conforming_strings", "on"),
    ("jit", "off"),
)
# A row-security policy must not hide what is compared or written: such a statement fails instead.
_UNFILTERED: _Settings = (*_MEANING, ("row_security", "off"))
# On the source the policies that its owner made for our role count, not what a pool's last client left.
_SOURCE: _Settings = (*_MEANING, ("row_security", "on"))
_WRITES_TARGET: _Settings = (
    *_UNFILTERED,
    ("synchronous_commit", "on"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
)
_READ_ONLY: _Settings = (("default_transaction_read_only", "on"),)


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
    durable=True,  # once the target has the batch, nothing writes it again
)
"""Writes what events keep."""

STREAM = Profile(
    "bridge-stream/{}",
    "the source for replication",
    (*_MEANING, ("lock_timeout", "0")),
    needs_session=True,
)
"""A walsender's: the stream, slots and the timeline's history."""

LISTEN = Profile("bridge-listen/{}", "the source", _SOURCE, needs_session=True)
"""Waits for notifications."""

INGRESS = Profile(
    "bridge-ingress",
    "the source",
    (*_SOURCE, ("lock_timeout", "1s"), ("idle_in_transaction_session_timeout", "10s")),
    statement_seconds=10,
    durable=True,  # 202 promises it
)
"""Puts events in."""

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
        # The queue's two orders are indexes. A plan made from stale statistics must not sort the whole backlog.
        ("enable_seqscan", "off"),
        ("enable_sort", "off"),
        ("plan_cache_mode", "force_custom_plan"),
    ),
    statement_seconds=15,
    needs_session=True,
    connect_seconds=5,
)
"""Claims and settles deliveries."""

# --- either server ----------------------------------------------------------------------------------------

ENRICH = Profile(
    "bridge-enrich/{}",
    "the server of an enrichment",
    (("client_encoding", "UTF8"), *_READ_ONLY),
    statement_seconds=10,
    prepares=True,
)
"""Lookups by the customer's own SQL: the role's search_path and formats stay."""

BACKLOG = Profile(
    "bridge-backlog/{}",
    "the server",
    (*_SOURCE, ("lock_timeout", "1s"), *_READ_ONLY),
    statement_seconds=3,
    connect_seconds=3,
)
"""Looks at what waits, beside a stream that is halted."""

PROVE_SOURCE = Profile("bridge-prove/{}", "the source", (*_UNFILTERED, ("lock_timeout", "10s"), *_READ_ONLY))
"""Long reads for the proof."""

PROVE_TARGET = Profile(
    "bridge-prove/{}", "the target", (*_UNFILTERED, ("lock_timeout", "10s"), *_READ_ONLY), needs_session=True
)
"""The same on a target, whose sessions also cast and hash."""

COMMAND = Profile("bridge {}", "the source", _SOURCE)
"""A command that a person waits for, and may interrupt."""

DOCTOR = Profile("bridge doctor", "the server", (*_MEANING, ("lock_timeout", "2s")), statement_seconds=15)
"""The doctor's questions."""

DOCTOR_ENRICH = Profile(
    "bridge doctor",
    "the server of an enrichment",
    (("client_encoding", "UTF8"), ("lock_timeout", "2s")),
    statement_seconds=15,
)
"""Tries the customer's SQL, as ENRICH runs it."""
