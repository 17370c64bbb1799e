-- Recipe trial-conversions: run in the target database, as the owner of the table. The bridge itself never runs DDL here.
create schema if not exists events;

create table if not exists events.trial_conversions (
    event_id        uuid primary key,
    customer_id     text not null,
    subscription_id text not null,
    plan            text not null,
    trial_days      integer not null,
    mrr             numeric not null,
    csm             text,
    payload         jsonb not null,
    occurred_at     timestamptz not null
);

create index if not exists trial_conversions_customer_id on events.trial_conversions (customer_id, occurred_at);

-- With the bridge's role named outbox_bridge:
--   grant usage on schema events to outbox_bridge;
--   grant select, insert, update on events.trial_conversions to outbox_bridge;
