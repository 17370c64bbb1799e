-- Recipe cron-health: run in the target database, as the owner of the table. The bridge itself never runs DDL here.
create schema if not exists events;

create table if not exists events.cron_health (
    event_id     uuid primary key,
    job          text not null,
    status       text not null,
    health       text not null,
    duration_ms  bigint not null,
    expected_ms  bigint not null,
    exit_code    integer,
    scheduled_at timestamptz,
    payload      jsonb not null,
    occurred_at  timestamptz not null
);

create index if not exists cron_health_job on events.cron_health (job, occurred_at);

-- With the bridge's role named outbox_bridge:
--   grant usage on schema events to outbox_bridge;
--   grant select, insert, update on events.cron_health to outbox_bridge;
