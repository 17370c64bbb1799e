"""Where things go: Postgres databases, and the vendors behind sinks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WrapValidator, model_validator
from pydantic_core import PydanticCustomError

from bridge.config.quantity import Integer
from bridge.section import OpenSection, Section
from bridge.sinks.kinds import SINKS, AnySink
from bridge.sinks.model import SinkConnection

SINK_KINDS: tuple[str, ...] = tuple(SINKS)


def _is_kind(kind: str) -> str:
    if kind not in SINKS:
        raise PydanticCustomError("literal_error", "no kind", {"expected": ", ".join(map(repr, SINK_KINDS))})
    return kind


SinkKind = Annotated[str, AfterValidator(_is_kind)]


class Libpq(Section):
    """Parameters of a Postgres connection, as libpq spells them (PostgreSQL manual, 32.1.2).

    After validation `dsn` has everything, the keys beside it included: it is what psycopg connects with.
    """

    dsn: str = Field(default="", repr=False)
    """A connection string in any form libpq takes; empty means the PG* variables."""
    service: str | None = None
    """A section of pg_service.conf."""
    host: str | None = None
    """Host name, address, or directory of the server's socket."""
    port: Integer | None = None
    """The server's port."""
    dbname: str | None = None
    """The database."""
    user: str | None = None
    """The role to connect as."""
    password: str | None = Field(default=None, repr=False)
    """Its password: from a variable or file, not in the file itself."""
    passfile: str | None = None
    """A password file, instead."""
    sslmode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] | None = None
    """How far TLS is insisted on; verify-full is the one that proves who answers."""
    sslrootcert: str | None = None
    """The certificate authority's file, or `system`."""
    sslcert: str | None = None
    """The client certificate's file."""
    sslkey: str | None = None
    """The client key's file."""
    sslcrl: str | None = None
    """A file of revoked certificates."""
    channel_binding: Literal["disable", "prefer", "require"] | None = None
    """Binds the password exchange to the TLS session."""
    target_session_attrs: (
        Literal["any", "read-write", "read-only", "primary", "standby", "prefer-standby"] | None
    ) = None
    """Which server of several hosts to take."""
    connect_timeout: Integer | None = None
    """Seconds to wait for a connection."""

    @model_validator(mode="after")
    def _one_dsn(self) -> Libpq:
        from psycopg import ProgrammingError  # noqa: PLC0415  # a quarter of the start-up time of `lint`
        from psycopg.conninfo import conninfo_to_dict, make_conninfo  # noqa: PLC0415

        beside = {
            name: getattr(self, name)
            for name in Libpq.model_fields
            if name != "dsn" and getattr(self, name) is not None
        }
        if "${" in self.dsn:  # not set on this machine; offline commands connect to nothing
            return self
        try:
            merged = make_conninfo(self.dsn, **beside) if beside else self.dsn
            conninfo_to_dict(merged)
        except ProgrammingError:  # its text can quote the connection string
            raise ValueError("dsn is not a connection string that libpq can read") from None
        self.__dict__["dsn"] = merged  # frozen for everybody else
        return self

    def parameters(self) -> dict[str, str]:
        """What `dsn` says, by libpq's keywords; empty when it is not known on this machine."""
        from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415  # as above

        if "${" in self.dsn:
            return {}
        return {name: str(value) for name, value in conninfo_to_dict(self.dsn).items()}

    def place(self) -> str:
        """Which database this is, without secrets; empty when `dsn` does not say it all."""
        known = self.parameters()
        named = [
            f"{name}={known[name]}"
            for name in ("service", "host", "hostaddr", "port", "dbname")
            if name in known
        ]
        return " ".join(named)


class PostgresConnection(Libpq):
    """A database that holds target tables, or rows to enrich from."""

    type: Literal["postgres"]
    """postgres."""

    @model_validator(mode="after")
    def _says_where(self) -> PostgresConnection:
        if not self.dsn.strip():
            raise ValueError("needs a dsn: an empty one could be any database the PG* variables name")
        return self


class _Unknown(OpenSection):
    """Refuses a type that is none. Which keys stand beside it, only the right type could judge."""

    type: SinkKind


def _by_type(value: Any, _handler: Any) -> Any:
    if isinstance(value, PostgresConnection | SinkConnection):
        return value
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "postgres":
        return PostgresConnection.model_validate(value)
    return SINKS.get(str(kind), _Unknown).model_validate(value)


Connection = Annotated[PostgresConnection | AnySink, WrapValidator(_by_type)]
