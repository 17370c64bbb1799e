-- Recipe signups: run in the target database, as the owner of the table. The bridge itself never runs DDL here.
create schema if not exists events;

create table if not exists events.signups (
    user_id text not null,
    email   text not null,
    plan    text not null,
    source  text,
    payload jsonb not null
);

-- With the bridge's role named outbox_bridge:
--   grant usage on schema events to outbox_bridge;
--   grant select, insert on events.signups to outbox_bridge;
