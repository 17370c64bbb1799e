-- Recipe waitlist: run in the target database, as the owner of the table. The bridge itself never runs DDL here.
create schema if not exists events;

create table if not exists events.waitlist (
    event_id    uuid primary key,
    email       text not null,
    position    integer not null,
    referrer    text,
    created_at  timestamptz not null,
    payload     jsonb not null,
    occurred_at timestamptz not null
);

create index if not exists waitlist_email on events.waitlist (email);

-- With the bridge's role named outbox_bridge:
--   grant usage on schema events to outbox_bridge;
--   grant select, insert, update on events.waitlist to outbox_bridge;
