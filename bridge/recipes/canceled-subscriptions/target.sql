-- Recipe canceled-subscriptions: run in the target database, as the owner of the table. The bridge itself never runs DDL here.
create schema if not exists events;

create table if not exists events.canceled_subscriptions (
    event_id        uuid primary key,
    customer_id     text not null,
    subscription_id text not null,
    plan            text not null,
    mrr             numeric not null,
    reason          text,
    tenure_days     integer not null,
    csm             text,
    payload         jsonb not null,
    occurred_at     timestamptz not null
);

create index if not exists canceled_subscriptions_customer_id on events.canceled_subscriptions (customer_id, occurred_at);

-- With the bridge's role named outbox_bridge:
--   grant usage on schema events to outbox_bridge;
--   grant select, insert, update on events.canceled_subscriptions to outbox_bridge;
