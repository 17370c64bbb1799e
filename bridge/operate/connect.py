"""Connections for one command, with errors as the command line reports them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import rich_click as click

from bridge.config.model import Config
from bridge.errors import BridgeError, CannotConnect, ConfigError
from bridge.postgres.connect import connect
from bridge.postgres.profiles import CATALOG, COMMAND
from bridge.postgres.versions import refuse_newer
from bridge.postgres.whose import refuse_another

if TYPE_CHECKING:
    from bridge.dispatch.schedule import DispatchSpec
    from bridge.stream.spec import StreamSpec

OUTBOX = "outbox.event"
_MENDS = {  # by SQLSTATE
    "3F000": "bridge install",
    "42P01": "bridge install",
    "42883": "bridge install",
    "42703": "bridge install",
    "25006": "connect to the primary: add target_session_attrs=read-write to source.dsn",
}


class SourceRefused(BridgeError):
    """The source refused the command's statement."""

    reason = "source_refused"


@contextmanager
def connect_source(
    config: Config, *, command: str, grant: str = "", writes: bool = False
) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """An autocommit connection to the source, named after the command in pg_stat_activity.

    config: of one source (config/several.py).
    `grant`: the role that has the privileges that the command needs. `writes`: what the bridge itself writes there, so
    an outbox of a newer release is refused. Raises CannotConnect (exit code 3); SourceRefused for errors of statements,
    without their details, which may contain row values.
    """
    with connect(config.source.dsn, COMMAND, command) as connection:
        if writes:
            refuse_newer(connection, "source")
        with source_errors(connection, command, grant=grant):
            yield connection


@contextmanager
def source_errors(connection: psycopg.Connection[Any], command: str, *, grant: str = "") -> Iterator[None]:
    """Errors of statements on this connection to the source, as connect_source() raises them; for statements among
    others on a target."""
    try:
        yield
    except psycopg.Error as error:
        if error.sqlstate is None or connection.closed:
            raise CannotConnect(f"the connection to the source was lost during `bridge {command}`") from None
        from bridge.postgres.advice import IS_MEMBER, grant_fix  # noqa: PLC0415  only where it is needed
        from bridge.postgres.catalog import HIDDEN, hides_rows  # noqa: PLC0415

        hint = ""
        if error.sqlstate == "42501" and grant:
            has = connection.execute(IS_MEMBER, [grant]).fetchone()
            hint = grant_fix(grant, connection.info.user, member=has == (True,))
        if hides_rows(error):
            hint = HIDDEN
        raise SourceRefused(
            f"the source refused `bridge {command}`: {error.diag.message_primary} ({error.sqlstate})",
            hint=hint or _MENDS.get(error.sqlstate),
        ) from None


def need_own_outbox(config: Config, *, command: str) -> None:
    """Raise ConfigError if the outbox is the customer's own table, which this command does not change."""
    if config.source.table != OUTBOX:
        raise ConfigError(
            f"`bridge {command}` works only on {OUTBOX}, but source.table is {config.source.table}"
            ", your own table",
            hint="use your own SQL, or remove source.table to use the table that `bridge install` creates",
        )


@contextmanager
def connect_dispatch(plan: DispatchSpec, command: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """An autocommit connection to the ledger of these deliveries, to write it. Raises CannotConnect; Halt where the
    ledger is of a newer release; BridgeError for an error of a statement."""
    where = f"the ledger of stream {plan.stream}"
    with connect(plan.dsn, COMMAND, f"bridge {command}", where=where) as connection, target_errors(command):
        refuse_newer(connection, "target")
        refuse_another(plan.source_dsn, connection, plan.stream)
        yield connection


@contextmanager
def connect_ledger(
    plan: StreamSpec, command: str, *, writes: bool = False, whose: bool = True
) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """An autocommit connection to a stream's target. Raises CannotConnect, and Halt behind a pool of transactions or,
    for a command that writes the ledger, where it is of a newer release. whose: False for a command
    that asks itself whether the stream of this name is another source's; otherwise this raises Halt then."""
    where = f"the target ({plan.connection})"
    with connect(plan.target_dsn, CATALOG, f"bridge {command}", where=where) as connection:
        if writes:
            refuse_newer(connection, "target")
        if whose:
            refuse_another(plan.source_dsn, connection, plan.stream)
        yield connection


def refuse_newer_ledgers(config: Config, command: str) -> None:
    """Raise Halt where a target has a ledger of a newer release. For a command that needs no target: one that cannot be
    asked is named on standard error, and passed over."""
    from bridge.config.connection import PostgresConnection  # noqa: PLC0415

    for name, target in config.connections.items():
        if not isinstance(target, PostgresConnection):
            continue
        try:
            with connect(
                target.dsn, CATALOG, f"bridge {command}", where=f"the target ({name})"
            ) as connection:
                refuse_newer(connection, "target")
        except CannotConnect as error:
            click.echo(
                f"the target ({name}) could not be asked for the version of its ledger: {error.args[0]}",
                err=True,
            )


@contextmanager
def target_errors(command: str) -> Iterator[None]:
    """Errors of statements on a target, as the command line reports them: without row values."""
    from bridge.postgres.safe_error import safe_message  # noqa: PLC0415
    from bridge.postgres.target import Refused  # noqa: PLC0415

    try:
        yield
    except (psycopg.Error, Refused) as caught:
        error = caught.error if isinstance(caught, Refused) else caught
        if error.sqlstate is None:
            raise CannotConnect(
                f"a connection was lost during `bridge {command}`: {safe_message(error)}"
            ) from None
        hint = "bridge doctor shows what is missing, with the SQL or command that fixes it"
        if error.sqlstate in ("42P01", "3F000"):
            hint = (
                "bridge schema target | psql <target>   (as the owner of the database); then: bridge doctor"
            )
        raise BridgeError(
            f"the target refused `bridge {command}`: {safe_message(error)} (SQLSTATE {error.sqlstate})",
            hint=hint,
        ) from None
