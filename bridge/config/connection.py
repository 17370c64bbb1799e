"""Connections: Postgres databases, NATS, and vendors of sinks."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from bridge.config.nats import NatsConnection
from bridge.problem import KeyPath, Remark
from bridge.quantity import Integer
from bridge.section import OpenSection, Section
from bridge.sinks.model import SINKS, SinkConnection

# A quoted or a plain identifier (PostgreSQL manual, 4.1.1): a letter, _ or anything beyond ASCII, then digits, $ too.
# Said by what is excluded: to compile \u0080-\U0010ffff takes `re` longer than all other patterns of a start together.
_FIRST = r"[^\x00-@\[-^`{-\x7f]"
_NEXT = r"[^\x00-#%-/:-@\[-^`{-\x7f]"
_PART = rf'(?:"(?:[^"\x00]|"")+"|{_FIRST}{_NEXT}*)'
_TABLE = re.compile(rf"({_PART})\.({_PART})")


def split_table(text: str) -> tuple[str, str] | None:
    """(schema, table); quoted parts keep their case, others become lower case, as in SQL. None: not qualified."""
    match = _TABLE.fullmatch(text)
    return (_name(match[1]), _name(match[2])) if match else None


def _name(part: str) -> str:
    return part[1:-1].replace('""', '"') if part.startswith('"') else part.lower()


def table_names(text: str) -> tuple[str, str]:
    """(schema, table), by default in schema public; text that is not valid SQL is used unchanged."""
    split = split_table(text)
    if split is None:
        schema, _, table = text.rpartition(".")
        split = (schema, table) if schema else split_table(f"public.{text}") or ("public", text)
    return split


def unqualified(path: KeyPath, table: str) -> Remark:
    """A table is named without its schema."""
    name = table.rpartition(".")[2] or "events"
    return Remark(
        "error", path, "a table needs its schema", f"write {'public.' + name}", name="table-without-schema"
    )


SINK_KINDS: tuple[str, ...] = tuple(SINKS)


def _is_kind(kind: str) -> str:
    if kind not in SINKS:
        expected = ", ".join(map(repr, ("nats", *SINK_KINDS)))
        raise PydanticCustomError("literal_error", "no kind", {"expected": expected})
    return kind


SinkKind = Annotated[str, AfterValidator(_is_kind)]


class Libpq(Section):
    """Parameters of a Postgres connection, with libpq's names (PostgreSQL manual, 32.1.2).

    After validation `dsn` contains everything, including the keys beside it; psycopg connects with it.
    """

    dsn: str = Field(default="", repr=False)
    """A connection string in any form that libpq accepts; empty means the PG* variables."""
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
    """The role's password. Take it from a variable or a file; do not write it here."""
    passfile: str | None = None
    """A password file, instead of `password`."""
    sslmode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] | None = None
    """The TLS mode. Only verify-full verifies the server's identity."""
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
    """Which of several hosts to connect to."""
    connect_timeout: Integer | None = None
    """Seconds to wait for a connection."""

    @model_validator(mode="after")
    def _one_dsn(self) -> Libpq:
        beside = {
            name: getattr(self, name)
            for name in Libpq.model_fields
            if name != "dsn" and getattr(self, name) is not None
        }
        # not set on this machine: offline commands connect to nothing; or empty, as the default is
        if "${" in self.dsn or not (self.dsn or beside):
            return self
        from psycopg import ProgrammingError  # noqa: PLC0415  # a quarter of the start-up time of `lint`
        from psycopg.conninfo import conninfo_to_dict, make_conninfo  # noqa: PLC0415

        try:
            merged = make_conninfo(self.dsn, **beside) if beside else self.dsn
            conninfo_to_dict(merged)
        except ProgrammingError:  # its text can quote the connection string
            raise ValueError("dsn is not a connection string that libpq can read") from None
        self.__dict__["dsn"] = merged  # frozen for everybody else
        return self

    def parameters(self) -> dict[str, str]:
        """The parameters in `dsn`, by libpq's keywords; empty if it is not known on this machine."""
        if "${" in self.dsn or not self.dsn:
            return {}
        from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415  # as above

        return {name: str(value) for name, value in conninfo_to_dict(self.dsn).items()}

    def place(self) -> str:
        """Identifies the database, without secrets; empty if `dsn` is not complete."""
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
            raise ValueError(
                "needs a dsn: with an empty one, the PG* variables would decide which database it is"
            )
        return self


class _Unknown(OpenSection):
    """Refuses an unknown type. Other keys are not checked, because they depend on the type."""

    type: SinkKind


def _by_type(value: Any) -> Any:
    if isinstance(value, PostgresConnection | SinkConnection | NatsConnection):
        return value
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "postgres":
        return PostgresConnection.model_validate(value)
    if kind == "nats":
        return NatsConnection.model_validate(value)
    return SINKS.get(str(kind), _Unknown).model_validate(value)


class _ByType:
    """A connection in the file: `type` tells which. Only those that a file has are loaded; a schema has them all."""

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(_by_type)

    def __get_pydantic_json_schema__(
        self, _schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        models: list[type[BaseModel]] = [PostgresConnection, NatsConnection, *SINKS.values()]
        return {"anyOf": [handler(model.__pydantic_core_schema__) for model in models]}


AnyConnection = PostgresConnection | NatsConnection | SinkConnection
Connection = Annotated[AnyConnection, _ByType()]
