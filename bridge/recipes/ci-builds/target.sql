-- Recipe ci-builds: run in the target database, as the owner of the table. The bridge itself never runs DDL here.
create schema if not exists events;

create table if not exists events.ci_builds (
    event_id    uuid primary key,
    repo        text not null,
    branch      text not null,
    status      text not null,
    commit      text not null,
    duration_ms bigint not null,
    payload     jsonb not null,
    occurred_at timestamptz not null
);

create index if not exists ci_builds_repo on events.ci_builds (repo, occurred_at);

-- With the bridge's role named outbox_bridge:
--   grant usage on schema events to outbox_bridge;
--   grant select, insert, update on events.ci_builds to outbox_bridge;
