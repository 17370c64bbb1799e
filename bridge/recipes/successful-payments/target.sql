-- Recipe successful-payments: run in the target database, as the owner of the table. The bridge itself never runs DDL here.
create schema if not exists events;

create table if not exists events.successful_payments (
    event_id     uuid primary key,
    customer_id  text not null,
    charge_id    text not null,
    amount       bigint not null,
    currency     text not null,
    customer_mrr numeric,
    csm          text,
    renewal      date,
    payload      jsonb not null,
    occurred_at  timestamptz not null
);

create index if not exists successful_payments_customer_id on events.successful_payments (customer_id, occurred_at);

-- With the bridge's role named outbox_bridge:
--   grant usage on schema events to outbox_bridge;
--   grant select, insert, update on events.successful_payments to outbox_bridge;
