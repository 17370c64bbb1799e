-- The console: who did what, the values that a person corrected, and its charts. Run as the owner of the database.
-- compatible from: 3

-- Every action of a person by the console, its API or a command. Rows are only added.
create table if not exists bridge.audit (
    id      bigint generated always as identity primary key,
    at      timestamptz not null default now(),
    who     text not null,              -- the token's name; of a command, user@host
    via     text not null check (via in ('console', 'api', 'command')),
    action  text not null,              -- `dead retry`, `sink pause`, ...
    stream  text,
    subject jsonb not null default '{}', -- what was chosen and how many, ids at most the first 100; no values of events
    reason  text,
    result  text not null default ''
);
create index if not exists audit_at on bridge.audit (at desc);

-- A payload that a person corrected; the one that was sent stays beside it.
alter table bridge.dead_letter add column if not exists edited jsonb;

-- A minute of a stream in which something happened: what the console draws, also after a restart. Kept for a day.
create table if not exists bridge.sample (
    stream     text not null,
    at         timestamptz not null,
    events     bigint not null,         -- applied in that minute
    p50        double precision,        -- seconds from the producer's commit to the target's
    p99        double precision,
    lag        double precision,        -- seconds that the oldest event has waited
    retained   bigint,                  -- bytes of WAL that the slot keeps
    headroom   bigint,                  -- bytes until it is lost or dropped
    counts     jsonb,                   -- of the first stream of a source: outcomes of each pipeline and sink
    primary key (stream, at)
);

-- The new tables need the grants again. With a role named outbox_bridge:
--   grant select, insert, update, delete on all tables in schema bridge to outbox_bridge;
--   revoke update, delete on bridge.audit from outbox_bridge;   -- so that nobody rewrites what was done

-- To go back to a release before: start it, it may stay. Or, with the bridge stopped:
--   begin;
--   drop table if exists bridge.audit, bridge.sample;
--   alter table bridge.dead_letter drop column if exists edited;
--   delete from bridge.migration where version = 4;
--   commit;
