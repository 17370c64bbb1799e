"""Connect to the source for one command. The daemon's connections are made where they are watched over."""

from __future__ import annotations

from typing import Any

import psycopg

from bridge.config.model import Config
from bridge.errors import CannotConnect, ConfigError

OUTBOX = "outbox.event"


def connect_source(config: Config, *, command: str) -> psycopg.Connection[tuple[Any, ...]]:
    """An autocommit connection to the source, named after the command in pg_stat_activity.

    Raises CannotConnect (exit code 3) with what libpq says; it names hosts and roles, never passwords.
    """
    dsn = config.source.dsn
    try:
        return psycopg.connect(
            dsn,
            autocommit=True,
            connect_timeout=config.source.connect_timeout or 10,
            fallback_application_name=f"bridge {command}",
        )
    except psycopg.OperationalError as error:
        raise CannotConnect(
            f"the source could not be reached: {error}".rstrip(),
            hint='see what source.dsn means: psql "$SOURCE_DSN" -c "select 1"',
        ) from error


def need_own_outbox(config: Config, *, command: str) -> None:
    """Raise ConfigError where the outbox is a table of the customer's, which this command leaves alone."""
    if config.source.table != OUTBOX:
        raise ConfigError(
            f"`bridge {command}` works on {OUTBOX}; source.table is {config.source.table}, a table of yours",
            hint="do it with your own SQL, or remove source.table to use the one `bridge install` makes",
        )
