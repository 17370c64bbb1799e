-- Recipe feature-usage: run in the target database, as the owner of the table. The bridge itself never runs DDL here.
create schema if not exists events;

create table if not exists events.feature_usage (
    event_id    uuid primary key,
    user_id     text not null,
    feature     text not null,
    count       bigint not null,
    plan        text not null,
    company     text,
    payload     jsonb not null,
    occurred_at timestamptz not null
);

create index if not exists feature_usage_feature on events.feature_usage (feature, occurred_at);

-- With the bridge's role named outbox_bridge:
--   grant usage on schema events to outbox_bridge;
--   grant select, insert, update on events.feature_usage to outbox_bridge;
