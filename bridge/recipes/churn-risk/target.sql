-- Recipe churn-risk: run in the target database, as the owner of the table. The bridge itself never runs DDL here.
create schema if not exists events;

create table if not exists events.churn_risk (
    event_id    uuid primary key,
    customer_id text not null,
    signal      text not null,
    score       numeric not null,
    mrr         numeric not null,
    csm         text,
    renewal     date,
    payload     jsonb not null,
    occurred_at timestamptz not null
);

create index if not exists churn_risk_customer_id on events.churn_risk (customer_id, occurred_at);

-- With the bridge's role named outbox_bridge:
--   grant usage on schema events to outbox_bridge;
--   grant select, insert, update on events.churn_risk to outbox_bridge;
