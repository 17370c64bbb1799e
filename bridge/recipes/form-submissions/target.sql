-- Recipe form-submissions: run in the target database, as the owner of the table. The bridge itself never runs DDL here.
create schema if not exists events;

create table if not exists events.form_submissions (
    event_id      uuid primary key,
    form_id       text not null,
    submission_id text not null,
    email         text,
    fields        jsonb not null,
    page          text,
    payload       jsonb not null,
    occurred_at   timestamptz not null
);

create index if not exists form_submissions_form_id on events.form_submissions (form_id, occurred_at);

-- With the bridge's role named outbox_bridge:
--   grant usage on schema events to outbox_bridge;
--   grant select, insert, update on events.form_submissions to outbox_bridge;
