-- Recipe failed-logins: run in the target database, as the owner of the table. The bridge itself never runs DDL here.
create schema if not exists events;

create table if not exists events.failed_logins (
    event_id    uuid primary key,
    domain      text not null,
    reason      text not null,
    attempt     integer not null,
    payload     jsonb not null,
    occurred_at timestamptz not null
);

create index if not exists failed_logins_domain on events.failed_logins (domain, occurred_at);

-- With the bridge's role named outbox_bridge:
--   grant usage on schema events to outbox_bridge;
--   grant select, insert, update on events.failed_logins to outbox_bridge;
