-- Recipe high-value-leads: run in the target database, as the owner of the table. The bridge itself never runs DDL here.
create schema if not exists events;

create table if not exists events.high_value_leads (
    event_id    uuid primary key,
    lead_id     text not null,
    email       text not null,
    company     text,
    employees   integer not null,
    source      text not null,
    score       integer not null,
    grade       text not null,
    payload     jsonb not null,
    occurred_at timestamptz not null
);

create index if not exists high_value_leads_grade on events.high_value_leads (grade, occurred_at);

-- With the bridge's role named outbox_bridge:
--   grant usage on schema events to outbox_bridge;
--   grant select, insert, update on events.high_value_leads to outbox_bridge;
