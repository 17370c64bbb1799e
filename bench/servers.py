"""The two servers that everything is measured between, and what their owners put there.

One source, one target, TCP on 127.0.0.1 for everybody, the same settings for native replication and for the
bridge.
"""

from __future__ import annotations

from typing import Any

import psycopg

from bridge.demo.world import CRM, USAGE_LIMITS, World

SETTINGS: dict[str, str | int] = {
    "fsync": "on",
    "synchronous_commit": "on",  # sessions and subscriptions may say otherwise: the report names them
    "full_page_writes": "on",
    "shared_buffers": "256MB",
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",  # one before each drain, none within
    "autovacuum": "off",
    "track_commit_timestamp": "on",
    "track_wal_io_timing": "on",
    "log_checkpoints": "off",
}

LANDING = """
create schema outbox;
create table outbox.event (
    id              uuid primary key,
    seq             bigint not null,
    xid             xid8 not null,
    type            text not null,
    key             text,
    payload         jsonb not null,
    idempotency_key text,
    headers         jsonb,
    occurred_at     timestamptz not null
);
"""

# An apply worker's commits carry the origin's timestamp, so a default that reads the clock says when a row came.
_CLOCK = "alter table {} add column applied_at timestamptz default clock_timestamp()"

# The same work as the pipeline of bridge/demo/bridge.yaml, done by a trigger in the apply worker.
_UPSERT = """
create function outbox.upsert() returns trigger language plpgsql set search_path = '' as $$
declare
    customer crm.customer;
begin
    select * into customer from crm.customer as c where c.customer_id = new.payload ->> 'customer_id';
    insert into events.usage_limits
        (event_id, customer_id, metric, "limit", used, plan, mrr, csm, renewal, payload)
    values (new.id, new.payload ->> 'customer_id', new.payload ->> 'metric',
        (new.payload ->> 'limit')::numeric, (new.payload ->> 'used')::numeric, new.payload ->> 'plan',
        customer.mrr, customer.csm, customer.renewal, new.payload)
    on conflict (event_id) do update set
        customer_id = excluded.customer_id, metric = excluded.metric, "limit" = excluded."limit",
        used = excluded.used, plan = excluded.plan, mrr = excluded.mrr, csm = excluded.csm,
        renewal = excluded.renewal, payload = excluded.payload;
    return null;
end
$$;
create trigger upsert before insert on outbox.event for each row execute function outbox.upsert();
alter table outbox.event enable always trigger upsert;
"""

NATIVE, NATIVE_UPSERT, WAREHOUSE = "native", "native_upsert", "warehouse"


class Servers(World):
    """The demo's two servers, set to be measured; and beside the warehouse a target database for a plain copy and one
    for copy and upsert."""

    settings = SETTINGS

    def __init__(self) -> None:
        super().__init__()
        for database, statements in (
            (NATIVE, (LANDING, _CLOCK.format("outbox.event"))),
            (NATIVE_UPSERT, (LANDING, CRM, USAGE_LIMITS, _UPSERT, _CLOCK.format("events.usage_limits"))),
        ):
            self.target.execute(f"create database {database}")
            with psycopg.connect(self.database_dsn(database), autocommit=True) as connection:
                for statement in statements:
                    connection.execute(statement.encode())

    def database_dsn(self, database: str) -> str:
        """Of one of the target's databases, as its owner."""
        return self.target.dsn(database)

    def on_source(self, statement: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        """One statement as the source's owner."""
        return self.source.execute(statement, parameters, "app")

    def on_target(self, database: str, statement: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        """One statement as the target's owner."""
        return self.target.execute(statement, parameters, database)

    def version(self) -> str:
        """`18.1`, of both."""
        return str(self.on_source("show server_version")[0][0])
