-- Recipe support-escalations: run in the target database, as the owner of the table. The bridge itself never runs DDL here.
create schema if not exists events;

create table if not exists events.support_escalations (
    event_id    uuid primary key,
    ticket_id   text not null,
    subject     text not null,
    tier        text not null,
    channel     text not null,
    severity    text not null,
    payload     jsonb not null,
    occurred_at timestamptz not null
);

create index if not exists support_escalations_ticket_id on events.support_escalations (ticket_id);

-- With the bridge's role named outbox_bridge:
--   grant usage on schema events to outbox_bridge;
--   grant select, insert, update on events.support_escalations to outbox_bridge;
