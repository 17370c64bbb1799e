"""Why a server cannot be reached, and the fix for each cause.

The cause is taken from the message of libpq or of a pooler, because there is no SQLSTATE before the session exists.
Errors and `bridge doctor` use the same table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, LiteralString

from psycopg import pq, sql
from psycopg.conninfo import conninfo_to_dict

IS_MEMBER: LiteralString = """
    select exists (select from pg_catalog.pg_roles where rolname = %s and pg_has_role(current_user, oid, 'member'))"""


def grant_fix(role: str, user: str, *, member: bool) -> str:
    """For `user`, who lacks what `role` is given by the install. member: IS_MEMBER; it is that role itself or has it
    already, so the role lost its rights."""
    return "bridge install" if member else f"grant {role} to {sql.Identifier(user).as_string()};"


FixKind = Literal["sql", "config", "advice"]


@dataclass(frozen=True, slots=True)
class Cause:
    """name: the doctor's check is reach_NAME. pattern: a regular expression that finds it in the message. fix: with
    {host}, {port}, {dbname} and {user} of the dsn. kind: SQL for an administrator, a change of the dsn, or other."""

    name: str
    pattern: str
    fix: str
    kind: FixKind


_NO_WALSENDER = r"(?i)\bwal[ -]?send"
"""A login that worked, for a role without REPLICATION; most translations leave this word as it is."""

# The first match counts.
_CAUSES = (
    Cause(
        "name",
        r"could not translate host name|failed to resolve host|Name or service not known|nodename nor servname",
        "correct `host` in the dsn: the name does not resolve on this machine; to check the DNS: getent hosts {host}",
        "config",
    ),
    Cause(
        "password",
        r"password authentication failed|no password supplied|SASL authentication failed",
        "correct the password where the dsn comes from (${{VAR}} and ${{file:/run/secrets/x}} keep it out of the "
        "file), or set the role's: \\password {user} in psql",
        "config",
    ),
    Cause(
        "database",
        r'database ".*" does not exist|no such database',
        "correct `dbname` in the dsn; to list the databases: psql -l",
        "config",
    ),
    Cause(
        "role",
        r'role ".*" does not exist|no such user|"trust" authentication failed',
        "correct `user` in the dsn, or create the role: bridge schema source has it, as outbox_bridge",
        "advice",
    ),
    Cause("login", r"is not permitted to log in", 'alter role "{user}" login;', "sql"),
    Cause(
        "login", r"permission denied for database", 'grant connect on database "{dbname}" to "{user}";', "sql"
    ),
    Cause("replication", _NO_WALSENDER, 'alter role "{user}" replication;', "sql"),
    Cause(
        "pg_hba",
        r"no pg_hba.conf entry|pg_hba.conf rejects",
        "add a line to the server's pg_hba.conf, such as: hostssl {dbname} {user} <this machine>/32 scram-sha-256 "
        "(a line for `replication` is not needed); then: select pg_reload_conf(); if there is such a line for TLS "
        "only, the server does not support this `sslmode`: use sslmode=require or stricter",
        "advice",
    ),
    Cause(
        "pooler",
        r"unsupported startup parameter: replication",
        "a pooler cannot carry replication: change source.dsn to the server itself, or set source.capture to poll",
        "config",
    ),
    Cause(
        "pooler",
        r"unsupported startup parameter",
        "a pooler refuses a parameter of this dsn: remove `options` from it (the bridge sets what it needs with "
        "statements), or add the parameter to ignore_startup_parameters of the pooler",
        "config",
    ),
    Cause(
        "pooler",
        r"statement pooling mode",
        "a pooler with pool_mode = statement allows no transactions: change the dsn to the server itself, or to a pool "
        "with pool_mode = session (or transaction, for a source with capture: poll)",
        "config",
    ),
    Cause(
        "pooler",
        r"query_wait_timeout|no more connections allowed|pgbouncer cannot connect to server",
        "the pooler has no free server connection, or cannot reach the server: raise default_pool_size or "
        "max_client_conn, or check its log",
        "advice",
    ),
    Cause(
        "tls",
        r"does not match host name",
        "use the host in the dsn that the server's certificate is issued for, or issue a certificate for this host",
        "config",
    ),
    Cause(
        "tls",
        r"certificate verify failed",
        "the server's certificate has expired or is not signed by the CA in sslrootcert: renew it, or name the file of "
        "the right CA; to see it: openssl s_client -starttls postgres -connect {host}:{port} </dev/null | "
        "openssl x509 -noout -dates -issuer -subject",
        "config",
    ),
    Cause(
        "tls",
        r"root certificate file|root\.crt",
        "set sslrootcert to the file of the CA that signed the server's certificate, or to system",
        "config",
    ),
    Cause(
        "tls",
        r"private key|could not read certificate file",
        "the client certificate and its key: sslcert and sslkey have to be one pair (while they are being replaced "
        "they are not, and this ends by itself), sslpassword is the key's, and the key's file belongs to the "
        "bridge's user and has mode 0600",
        "config",
    ),
    Cause(
        "tls",
        r"valid client certificate|certificate authentication failed|\balert\b.*(unknown ca|certificate)",
        "the server does not take the client certificate, or was given none: sslcert names one that a CA in the "
        "server's ssl_ca_file has signed, that has not expired and whose CN is {user}; to see it: openssl "
        "x509 -noout -dates -issuer -subject -in <sslcert>",
        "config",
    ),
    Cause(
        "tls",
        r"certificate|SSL|sslmode|TLS",
        "the server does not support this `sslmode`: turn TLS on in the server (ssl = on); sslmode=verify-full needs "
        "sslrootcert=<the CA's file, or system> and a certificate for the host in the dsn",
        "config",
    ),
    Cause(
        "connections",
        r"max_wal_senders",
        "all replication connections that the server allows are in use: raise max_wal_senders and restart it",
        "advice",
    ),
    Cause(
        "connections",
        r"too many (clients|connections)|remaining connection slots",
        "the server accepts no more connections: close idle ones, or raise max_connections and restart it",
        "advice",
    ),
    Cause(
        "starting",
        r"starting up|shutting down|in recovery mode|not yet accepting",
        "the server is starting or stopping: try again soon",
        "advice",
    ),
    Cause(
        "port",
        r"[Cc]onnection refused|No such file or directory",
        "nothing listens there: correct `host` and `port` in the dsn ({host}:{port}), start the server, or set its "
        "listen_addresses",
        "config",
    ),
    Cause(
        "closed",
        r"server closed the connection",
        "something answers at {host}:{port} and closes the connection before the login: a proxy without a server "
        "behind it, or not Postgres",
        "config",
    ),
    Cause(
        "timeout",
        r"timeout expired|timed out|[Nn]o route|unreachable|no answer",
        "a firewall drops the packets, the address is wrong, or something accepts the connection and does not answer: "
        "bridge doctor --network shows which, and the address to allow there",
        "advice",
    ),
)

UNKNOWN = "try the same dsn with psql; bridge doctor checks each connection"
LOST = "the bridge connects again by itself; if this continues: bridge doctor checks each connection"
"""For a connection that was open."""


def parameters(dsn: str) -> Mapping[str, str]:
    """host, port, dbname and user as libpq resolves them from the dsn and the environment."""
    defaults = {
        option.keyword.decode(): option.val.decode() for option in pq.Conninfo.get_defaults() if option.val
    }
    return {**defaults, **{name: str(value) for name, value in conninfo_to_dict(dsn).items()}}


def cause_of(message: str) -> Cause | None:
    """The step that failed; None: unknown."""
    return next((cause for cause in _CAUSES if re.search(cause.pattern, message)), None)


def advice(message: str, dsn: str) -> str:
    """The fix for a connection that failed with this message."""
    cause = cause_of(message)
    return UNKNOWN if cause is None else _filled(cause.fix, dsn)


def _filled(fix: str, dsn: str) -> str:
    known = {"host": "the local socket", "port": "5432", "dbname": "?", "user": "?", **parameters(dsn)}
    return fix.format(**{name: known[name] for name in ("host", "port", "dbname", "user")})
