-- Relays: a process that reads one slot for many streams, and what each of them has applied. Only configurations with
-- `scale.log` use it.
-- compatible from: 1

create table if not exists outbox.relay (
    relay       text primary key,                -- its slots are <relay>_<incarnation>
    incarnation integer not null,                -- of its slot, and of the frames that it puts into the log
    partitions  integer not null check (partitions > 0),
    publication text,                            -- its identity, read before the slot was made
    ready       boolean not null default false,  -- the slot is made, and what committed before it can be seen
    session     text not null,                   -- who writes here; one that another has taken over from is refused
    updated_at  timestamptz not null default now()
);

-- Of a stream that applies a relay's frames: whose, and how far the relay's slot may be confirmed for it.
alter table outbox.stream add column if not exists relay text;
alter table outbox.stream add column if not exists incarnation integer;
alter table outbox.stream add column if not exists confirmed pg_lsn;  -- null: it has no place in the chain yet
