"""What a customer has and does before a bridge comes: tables, the printed SQL, roles with exact grants.

Apart from the demo's story because it is the part that the product never plays: all DDL on the target is
here, run by its owner. The tests' rig plays the same customer with the same tables.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql

from bridge.postgres.schema import source_sql, target_sql

Connection = psycopg.Connection[tuple[Any, ...]]

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
revoke create on schema public from public;
grant usage on schema bridge, events to outbox_bridge;
grant select, insert, update, delete on all tables in schema bridge to outbox_bridge;
grant select, insert, update on all tables in schema events to outbox_bridge;
"""

# Beside the product: what was committed, and what came of it. The checker compares the two.
_TRUTH = """
create schema demo;
create table demo.truth (event_id uuid primary key, phase text not null, payload jsonb not null);
grant usage on schema demo to app;
grant insert on demo.truth to app;
"""
_EFFECTS = """
create schema demo;
create table demo.effect (event_id uuid not null, operation text not null);
create function demo.effect() returns trigger language plpgsql security definer set search_path = '' as $$
begin
    insert into demo.effect values (case tg_op when 'DELETE' then old.event_id else new.event_id end, tg_op);
    return null;
end
$$;
create trigger effect after insert or update or delete on events.usage_limits
    for each row execute function demo.effect();
"""


def make_roles(connection: Connection, password: str) -> None:
    """`outbox_bridge`, and `app`, which may only put events in. Roles belong to the whole cluster."""
    for name, attributes in (("outbox_bridge", "login replication"), ("app", "login")):
        statement = sql.SQL(f"create role {{}} {attributes} password {{}}")
        connection.execute(statement.format(sql.Identifier(name), password))


def make_source(connection: Connection) -> None:
    """The outbox as `bridge schema source` prints it, customers to enrich with, and the truth."""
    connection.execute(source_sql().encode())
    connection.execute("grant outbox_producer to app")
    connection.execute(CRM)
    connection.execute(_TRUTH)


def make_target(connection: Connection) -> None:
    """The ledger as `bridge schema target` prints it, a table to fill, and the trigger that counts."""
    connection.execute(target_sql().encode())
    connection.execute(USAGE_LIMITS)
    connection.execute(TARGET_GRANTS)
    connection.execute(_EFFECTS)
