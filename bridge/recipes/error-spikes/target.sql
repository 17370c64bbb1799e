-- Recipe error-spikes: run in the target database, as the owner of the table. The bridge itself never runs DDL here.
create schema if not exists events;

create table if not exists events.error_spikes (
    event_id    uuid primary key,
    service     text not null,
    error       text not null,
    count       bigint not null,
    "window"    text not null,
    env         text not null,
    payload     jsonb not null,
    occurred_at timestamptz not null
);

create index if not exists error_spikes_service on events.error_spikes (service, occurred_at);

-- With the bridge's role named outbox_bridge:
--   grant usage on schema events to outbox_bridge;
--   grant select, insert, update on events.error_spikes to outbox_bridge;
