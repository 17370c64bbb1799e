-- Outbox Bridge: the ledger. Run once in the target database, as its owner. The bridge itself never runs DDL here.
-- Then: grant the bridge's role what it needs, see the end of this file.

create schema if not exists bridge;

-- Which of these files have been run here.
create table if not exists bridge.migration (
    version    integer primary key,
    name       text not null,
    checksum   text not null,
    applied_at timestamptz not null default now()
);

-- One row a stream: how far it is. Changed only inside the transaction that changes the target rows.
create table if not exists bridge.checkpoint (
    stream               text primary key,
    epoch                bigint not null default 0,      -- fencing token, +1 at every start
    session              uuid not null,                  -- and a nonce: a restored ledger brings old epochs back
    mode                 text not null check (mode in ('new', 'catchup', 'stream', 'poll')),
    system_identifier    text,                           -- of the source cluster
    timeline             integer,
    publication_identity text,
    slot_incarnation     integer not null default 0,     -- slots are <slot>_<connection>_<n>
    applied_lsn          pg_lsn not null default '0/0',  -- end of the last transaction whose effects are durable here
    safe_lsn             pg_lsn not null default '0/0',  -- the slot may be confirmed up to here
    floor                pg_snapshot not null,           -- every outbox transaction this shows is applied
    floor_lsn            pg_lsn not null default '0/0',  -- WAL position read after `floor`
    next                 pg_snapshot,                    -- catch-up and polling: being applied now, by seq
    next_lsn             pg_lsn,                         -- WAL position of `next`
    next_from_slot       boolean not null default false, -- it came with a slot, which starts at next_lsn
    next_seq             bigint not null default 0,      -- applied up to here
    since                timestamptz,                    -- a stream that started at a time: older rows are not its own
    witness_id           text,                           -- the last applied event: still in the outbox, or history diverged
    witness_xid          xid8,
    accepted_gap         xid8,                           -- an operator accepted what was pruned up to here
    started_at           timestamptz not null default now(),
    updated_at           timestamptz not null default now()
) with (fillfactor = 50, autovacuum_vacuum_threshold = 1000);

-- Transactions applied that `floor` does not show yet: one short row a batch, thinned about once a second.
create table if not exists bridge.applied (
    stream      text not null,
    incarnation integer not null,   -- of the slot that brought them
    end_lsn     pg_lsn not null,
    xids        xid8[] not null,
    end_lsns    pg_lsn[] not null,  -- of each: a promotion may cut a batch in two
    seqs        int8multirange not null  -- of their rows: a publication altered amid a transaction withholds some
);
alter table bridge.applied alter column xids set storage external, alter column end_lsns set storage external;
create index if not exists applied_stream on bridge.applied (stream, end_lsn);

-- What could not be applied. id = uuid5(event, pipeline, destination).
create table if not exists bridge.dead_letter (
    id              uuid primary key,
    stream          text not null,
    pipeline        text not null,
    destination     text not null,
    event_id        text not null,
    event_seq       bigint not null,
    event_xid       xid8,
    event_type      text not null,
    event_key       text,
    occurred_at     timestamptz,
    idempotency_key text,
    headers         jsonb,
    payload         jsonb,          -- null where it is not valid jsonb: then raw has it
    raw             bytea,
    code            text not null,  -- contract, missing_entity, expression, too_large, or a SQLSTATE
    cause           text not null,
    state           text not null default 'open' check (state in ('open', 'resolved', 'discarded')),
    attempts        integer not null default 1,
    retry_at        timestamptz,    -- parked: tries itself again then
    retry_until     timestamptz,
    created_at      timestamptz not null default now(),
    updated_at      timestamptz not null default now()
);
create index if not exists dead_letter_open on bridge.dead_letter (stream, pipeline, destination) where state = 'open';
create index if not exists dead_letter_due on bridge.dead_letter (retry_at) where state = 'open' and retry_at is not null;

-- Messages for sinks, written in the apply transaction and sent by the dispatcher.
create table if not exists bridge.delivery (
    id              uuid primary key,
    stream          text not null,
    pipeline        text not null,
    destination     text not null,
    event_id        text not null,
    event_seq       bigint not null,
    event_type      text not null,
    event_key       text,
    occurred_at     timestamptz,
    body            jsonb not null,
    state           text not null default 'pending' check (state in ('pending', 'sent', 'dead', 'discarded')),
    attempts        integer not null default 0,
    next_attempt_at timestamptz not null default now(),
    lease_epoch     bigint,
    lease_until     timestamptz,
    last_error      text,
    created_at      timestamptz not null default now(),
    settled_at      timestamptz
) with (fillfactor = 80);
create index if not exists delivery_due on bridge.delivery (destination, next_attempt_at) where state = 'pending';
create index if not exists delivery_order on bridge.delivery (destination, event_key, event_seq) where state = 'pending';
create index if not exists delivery_settled on bridge.delivery (settled_at) where settled_at is not null;

-- Destinations that a person has paused: `bridge sink pause`. Their messages wait.
create table if not exists bridge.sink_pause (
    stream      text not null,
    pipeline    text not null,
    destination text not null,
    paused_by   text not null,
    reason      text,
    paused_at   timestamptz not null default now(),
    primary key (stream, pipeline, destination)
);

-- One dispatcher a target database at a time.
create table if not exists bridge.dispatcher (
    name       text primary key,
    epoch      bigint not null default 0,
    holder     text,
    held_until timestamptz
);

-- The bridge's role needs no CREATE anywhere. With a role named outbox_bridge:
--   grant usage on schema bridge to outbox_bridge;
--   grant select, insert, update, delete on all tables in schema bridge to outbox_bridge;
--   grant usage on schema events to outbox_bridge;
--   grant select, insert, update on events.usage_limits to outbox_bridge;   -- your own table
