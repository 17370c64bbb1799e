"""Why a server could not be reached, told apart by what libpq or a pooler says (before the session stands there is no
SQLSTATE), and what to do about each cause. Errors and `bridge doctor` use the same table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

FixKind = Literal["sql", "config", "advice"]


@dataclass(frozen=True, slots=True)
class Cause:
    """name: the doctor's check, as reach_NAME. pattern: in the message. fix: {host}, {port}, {dbname} and {user} are
    the dsn's. kind: SQL for an administrator, a change of the dsn, or something for a person."""

    name: str
    pattern: str
    fix: str
    kind: FixKind


# The first that matches counts.
_CAUSES = (
    Cause(
        "name",
        r"could not translate host name|failed to resolve host|Name or service not known|nodename nor servname",
        "correct `host` in the dsn: this machine does not know that name; what the DNS says: getent hosts {host}",
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
        "correct `dbname` in the dsn; which there are: psql -l",
        "config",
    ),
    Cause(
        "role",
        r'role ".*" does not exist|no such user',
        "correct `user` in the dsn, or create the role: bridge schema source has it, as outbox_bridge",
        "advice",
    ),
    Cause("login", r"is not permitted to log in", 'alter role "{user}" login;', "sql"),
    Cause(
        "login", r"permission denied for database", 'grant connect on database "{dbname}" to "{user}";', "sql"
    ),
    Cause(
        "pg_hba",
        r"no pg_hba.conf entry|pg_hba.conf rejects",
        "add a line to the server's pg_hba.conf, such as: hostssl {dbname} {user} <this machine>/32 scram-sha-256 "
        "(and one whose database is `replication` is not needed); then: select pg_reload_conf(); where it has one for "
        "TLS alone, the server and `sslmode` do not meet: sslmode=require or stricter",
        "advice",
    ),
    Cause(
        "pooler",
        r"unsupported startup parameter: replication",
        "a pooler stands between, and cannot carry replication: let source.dsn name the server itself, or set "
        "source.capture to poll",
        "config",
    ),
    Cause(
        "pooler",
        r"unsupported startup parameter",
        "a pooler stands between and refuses what this dsn asks for: take `options` out of it (the bridge sets what it "
        "needs by statements), or add it to the pooler's ignore_startup_parameters",
        "config",
    ),
    Cause(
        "pooler",
        r"statement pooling mode",
        "a pooler lends a server for one statement alone: let the dsn name the server itself, or a pool with "
        "pool_mode = session (a source that is polled: session or transaction)",
        "config",
    ),
    Cause(
        "pooler",
        r"query_wait_timeout|no more connections allowed|pgbouncer cannot connect to server",
        "the pooler has no server left for us, or cannot reach it: raise default_pool_size or max_client_conn, or see "
        "its log",
        "advice",
    ),
    Cause(
        "tls",
        r"does not match host name",
        "name in the dsn the very host that the server's certificate is for, or have a certificate made for this one",
        "config",
    ),
    Cause(
        "tls",
        r"certificate verify failed",
        "the server's certificate has expired or is not signed by the CA in sslrootcert: renew it, or name the file of "
        "the right CA; what it says: openssl s_client -starttls postgres -connect {host}:{port} </dev/null | "
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
        r"certificate|SSL|sslmode|TLS",
        "the server and `sslmode` do not meet: turn TLS on in the server (ssl = on); sslmode=verify-full needs "
        "sslrootcert=<the CA's file, or system> and a certificate for the very host that the dsn names",
        "config",
    ),
    Cause(
        "connections",
        r"too many (clients|connections)|remaining connection slots",
        "the server takes no more connections: end idle ones, or raise max_connections and restart it",
        "advice",
    ),
    Cause(
        "starting",
        r"starting up|shutting down|in recovery mode|not yet accepting",
        "the server is starting or stopping: try again in a moment",
        "advice",
    ),
    Cause(
        "port",
        r"[Cc]onnection refused|No such file or directory",
        "nobody listens there: correct `host` and `port` in the dsn ({host}:{port}), start the server, or set its "
        "listen_addresses",
        "config",
    ),
    Cause(
        "closed",
        r"server closed the connection",
        "something answers at {host}:{port} and hangs up before the login: a proxy without a server behind it, "
        "or no Postgres at all",
        "config",
    ),
    Cause(
        "timeout",
        r"timeout expired|timed out|[Nn]o route|unreachable|no answer",
        "a firewall drops the packets, the address is wrong, or something takes the connection and says nothing: "
        "bridge doctor --network tells which, and the address to allow there",
        "advice",
    ),
)

UNKNOWN = "try the same dsn with psql, which tells the same; bridge doctor looks at each connection"
LOST = "the connection is made again by itself; where that goes on, bridge doctor looks at each"
"""For one that stood, and broke."""


def parameters(dsn: str) -> Mapping[str, str]:
    """host, port, dbname and user as libpq takes them, from the dsn and the environment."""
    defaults = {
        option.keyword.decode(): option.val.decode() for option in pq.Conninfo.get_defaults() if option.val
    }
    return {**defaults, **{name: str(value) for name, value in conninfo_to_dict(dsn).items()}}


def cause_of(message: str) -> Cause | None:
    """Which step of the way failed, by the words of libpq; None: not known."""
    return next((cause for cause in _CAUSES if re.search(cause.pattern, message)), None)


def advice(message: str, dsn: str) -> str:
    """What to do about a connection that could not be made."""
    cause = cause_of(message)
    return UNKNOWN if cause is None else filled(cause.fix, dsn)


def filled(fix: str, dsn: str) -> str:
    """A cause's fix, for this dsn."""
    known = {"host": "the local socket", "port": "5432", "dbname": "?", "user": "?", **parameters(dsn)}
    return fix.format(**{name: known[name] for name in ("host", "port", "dbname", "user")})
