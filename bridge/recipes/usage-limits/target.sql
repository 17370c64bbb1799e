-- Recipe usage-limits: run in the target database, as the owner of the table. The bridge itself never runs DDL here.
create schema if not exists events;

create table if not exists events.usage_limits (
    event_id    uuid primary key,
    customer_id text not null,
    metric      text not null,
    "limit"     numeric not null,
    used        numeric not null,
    plan        text,
    mrr         numeric,
    csm         text,
    renewal     date,
    payload     jsonb not null,
    occurred_at timestamptz not null
);

create index if not exists usage_limits_customer on events.usage_limits (customer_id, occurred_at);

-- With the bridge's role named outbox_bridge:
--   grant usage on schema events to outbox_bridge;
--   grant select, insert, update on events.usage_limits to outbox_bridge;
