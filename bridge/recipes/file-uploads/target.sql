-- Recipe file-uploads: run in the target database, as the owner of the table. The bridge itself never runs DDL here.
create schema if not exists events;

create table if not exists events.file_uploads (
    event_id    uuid primary key,
    user_id     text not null,
    file_id     text not null,
    size_bytes  bigint not null,
    mime        text not null,
    bucket      text not null,
    payload     jsonb not null,
    occurred_at timestamptz not null
);

create index if not exists file_uploads_user_id on events.file_uploads (user_id, occurred_at);

-- With the bridge's role named outbox_bridge:
--   grant usage on schema events to outbox_bridge;
--   grant select, insert, update on events.file_uploads to outbox_bridge;
