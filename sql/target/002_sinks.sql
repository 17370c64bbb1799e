-- Sinks: what the ledger remembers of destinations and of each message's attempts. Run as the owner of the database.
-- compatible from: 1

-- Each destination as a bridge knew it last. Of one that is gone, its messages still have their max_age.
create table if not exists bridge.sink (
    stream      text not null,
    pipeline    text not null,
    destination text not null,
    connection  text not null,
    max_age     double precision not null,  -- seconds
    seen_at     timestamptz not null default now(),
    primary key (stream, pipeline, destination)
);

-- What a person has paused within a destination: messages with a cause, or to a recipient. They wait.
create table if not exists bridge.sink_hold (
    stream      text not null,
    pipeline    text not null,
    destination text not null,
    kind        text not null check (kind in ('cause', 'recipient')),
    value       text not null,              -- the code; of a recipient, its SHA-256
    label       text not null,              -- as it is shown: no address
    paused_by   text not null,
    reason      text,
    paused_at   timestamptz not null default now(),
    primary key (stream, pipeline, destination, kind, value)
);

-- The last answers and what persons did with the message, oldest first: {at, code, cause} or {at, did, by, reason}.
alter table bridge.delivery add column if not exists history jsonb;

-- Dead letters likewise: who discarded one and who brought it back.
alter table bridge.dead_letter add column if not exists settled_by text;

-- The new tables need the grants again. With a role named outbox_bridge:
--   grant select, insert, update, delete on all tables in schema bridge to outbox_bridge;
