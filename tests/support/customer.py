"""The rig plays the customer: owns the tables, runs the printed SQL, and gives the bridge its role.

The only place of the tests where DDL meets a target. `outbox_bridge` has no CREATE anywhere.
"""

from __future__ import annotations

from typing import Any

import psycopg

from bridge.demo.customer import CRM, TARGET_GRANTS, USAGE_LIMITS
from bridge.postgres.schema import source_sql, target_sql
from tests.support import truth
from tests.support.servers import Server

Connection = psycopg.Connection[tuple[Any, ...]]

_ROLES = """
do $$
begin
    if to_regrole('outbox_bridge') is null then
        create role outbox_bridge login replication password 'bridge';
    end if;
    if to_regrole('outbox_producer') is null then
        create role outbox_producer nologin;
    end if;
    if to_regrole('app') is null then
        create role app login password 'bridge' in role outbox_producer;
    end if;
end
$$
"""


def make_roles(server: Server) -> None:
    """The bridge's role, and an application's."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(_ROLES)


def make_source(connection: Connection) -> None:
    """The outbox as printed, the customer's own data, and the truth table beside it."""
    connection.execute(source_sql().encode())
    connection.execute(CRM)
    truth.install_source(connection)


def make_target(connection: Connection) -> None:
    """The ledger as printed, a table for usage limits, and the trigger that counts effects."""
    connection.execute(target_sql().encode())
    connection.execute(USAGE_LIMITS)
    connection.execute(TARGET_GRANTS)
    truth.install_target(connection)
    truth.watch(connection, "events.usage_limits")
