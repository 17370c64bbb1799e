"""The rig plays the customer: owns the tables, runs the printed SQL, and gives the bridge its role.

The only place of the tests where DDL meets a target. `outbox_bridge` has no CREATE anywhere.
"""

from __future__ import annotations

from typing import Any

import psycopg

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

CRM = """
create schema crm;
create table crm.customer (
    customer_id text primary key,
    mrr         numeric(12,2) not null,
    csm         text not null,
    renewal     date not null
);
insert into crm.customer
select
    'cus_' || n, (n % 97) * 10 + 0.50,
    (array['ada', 'grace', 'edsger', 'barbara'])[1 + n % 4], date '2027-01-01' + n
from generate_series(1, 500) as n;
grant usage on schema crm to outbox_bridge;
grant select on crm.customer to outbox_bridge;
"""

USAGE_LIMITS = """
create schema events;
create table events.usage_limits (
    event_id        uuid primary key,
    customer_id     text not null,
    metric          text,
    "limit"         numeric,
    used            numeric,
    plan            text,
    mrr             numeric(12,2),
    csm             text,
    renewal         date,
    ratio           double precision,
    payload         jsonb not null,
    idempotency_key text,
    occurred_at     timestamptz
);
"""

TARGET_GRANTS = """
grant usage on schema bridge, events to outbox_bridge;
grant select, insert, update, delete on all tables in schema bridge to outbox_bridge;
grant select, insert, update on all tables in schema events to outbox_bridge;
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
    connection.execute("revoke create on schema public from public")  # as since 15
    truth.install_target(connection)
    truth.watch(connection, "events.usage_limits")
