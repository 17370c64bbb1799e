-- Outbox Bridge: the outbox, its registry and emit(). Running it again changes nothing.

do $$
begin
    if to_regnamespace('outbox') is null then
        create schema outbox;
    end if;
end
$$;

-- Which of these files have been run here.
create table if not exists outbox.migration (
    version    integer primary key,
    name       text not null,
    checksum   text not null,
    applied_at timestamptz not null default now()
);

-- A time-ordered id (RFC 9562, section 5.7): new rows go to the right edge of the primary key.
-- The bodies are parsed here and now (SQL-standard function bodies), so no search_path can bend them.
do $$
begin
    if current_setting('server_version_num')::integer >= 180000 then
        create or replace function outbox.uuid7() returns uuid language sql volatile parallel safe
            return pg_catalog.uuidv7();
    else
        -- 48 bits of milliseconds over a random version 4 id; bits 52 and 53 turn the version from 4 into 7.
        create or replace function outbox.uuid7() returns uuid language sql volatile parallel safe
            return encode(
                set_bit(set_bit(
                    overlay(
                        uuid_send(gen_random_uuid())
                        placing substring(int8send(floor(extract(epoch from clock_timestamp()) * 1000)::bigint) from 3)
                        from 1 for 6),
                    52, 1), 53, 1),
                'hex')::uuid;
    end if;
end
$$;

-- The outbox. Only inserts are events; producers may set every column but seq and xid.
create table if not exists outbox.event (
    id              uuid not null default outbox.uuid7(),
    seq             bigint not null generated always as identity (cache 1),  -- order within a key: never raise the cache
    xid             xid8 not null default pg_current_xact_id(),              -- its transaction: never let a client set it
    type            text not null,
    key             text,                -- ordering key
    payload         jsonb not null,
    idempotency_key text,                -- scoped by type, remembered at least 35 days
    headers         jsonb,
    occurred_at     timestamptz not null default now(),
    constraint event_pkey primary key (id),
    constraint event_type_is_1_to_200_characters check (length(type) between 1 and 200),
    constraint event_key_is_at_most_500_characters check (length(key) <= 500),
    constraint event_idempotency_key_is_1_to_255_characters check (length(idempotency_key) between 1 and 255),
    constraint event_headers_are_an_object check (jsonb_typeof(headers) = 'object')
) with (autovacuum_vacuum_scale_factor = 0.02);
create unique index if not exists event_idempotency_key on outbox.event (type, idempotency_key)
    where idempotency_key is not null;
create index if not exists event_xid_seq on outbox.event (xid, seq);  -- catch-up, polling and pruning read by it

-- On 18 the server's own function, without a call in between.
do $$
begin
    if current_setting('server_version_num')::integer >= 180000 then
        alter table outbox.event alter column id set default pg_catalog.uuidv7();
    end if;
end
$$;

-- The streams that read this outbox: where their ledger is and what they have applied.
create table if not exists outbox.stream (
    stream          text primary key,
    target_system   text,                 -- system identifier of the target's cluster
    target_database text,
    slot            text,                 -- the present incarnation; null: polling
    floor           pg_snapshot not null, -- what this shows is applied; pruning stays below every stream's floor
    witness_id      text,                 -- the last applied event: never pruned
    reached         pg_lsn not null default '0/0',  -- the ledger's snapshots are older than this: greater there, and this is an old copy
    session         text not null default '',  -- who writes here; one that another has taken over from is refused
    updated_at      timestamptz not null default now()
);

-- What pruning has deleted so far; one row. A position that does not show all of it cannot be caught up from here.
-- Whoever lowers a floor or registers a stream commits that first, then reads this row FOR SHARE:
-- a pruning batch holds the row before it reads the registry.
create table if not exists outbox.pruned (
    singleton  boolean primary key default true check (singleton),
    xid        xid8,                     -- the greatest xid of a deleted row; null: nothing was ever deleted
    floor      pg_snapshot,              -- shows every deleted row
    deleted    bigint not null default 0,
    emptied    bigint not null default 0,      -- keyed rows that stay, without their payload
    pruned_at  timestamptz,
    batch_xid  xid8,                     -- the last batch's own transaction: its dead rows wait for older snapshots
    walked_xid xid8 not null default '0',      -- the walk by age has come this far ...
    keyed_xid  xid8 not null default '0',      -- ... and the walk that forgets keys
    walk_at    timestamptz                     -- when both last began at the first row
);
insert into outbox.pruned default values on conflict do nothing;

-- The id of the first event of this type with this idempotency key, null when there is none. It runs as the
-- owner, so that a producer can ask about a key that it knows without a right to read the outbox.
create or replace function outbox.first_id(type text, idempotency_key text) returns uuid
    language sql stable security definer set search_path = ''
    begin atomic
        select event.id from outbox.event
        where event.type = first_id.type and event.idempotency_key = first_id.idempotency_key;
    end;

-- Put one event in; the answer is its id, or the first one's when the key was used before. It looks before it
-- inserts: a used key costs no lock once the first has committed. It inserts with the caller's own rights.
create or replace function outbox.emit(
    type text, payload jsonb, idempotency_key text default null, key text default null, headers jsonb default null
) returns uuid language plpgsql volatile security invoker set search_path = '' as $$
#variable_conflict use_column
declare
    event_id uuid;
    first    uuid;
begin
    for attempt in 1..3 loop
        if emit.idempotency_key is not null then
            first := outbox.first_id(emit.type, emit.idempotency_key);
            if first is not null then
                return first;
            end if;
        end if;
        event_id := outbox.uuid7();
        -- No conflict target and no RETURNING: either would need the right to SELECT.
        insert into outbox.event (id, type, key, payload, idempotency_key, headers)
        values (event_id, emit.type, emit.key, emit.payload, emit.idempotency_key, emit.headers)
        on conflict do nothing;
        if found then
            return event_id;
        end if;
    end loop;
    raise exception 'outbox.emit: no event of type % was inserted, and none with its idempotency key is visible', emit.type
        using errcode = 'serialization_failure',
              hint = 'Run the transaction again. If this repeats, look for a trigger on outbox.event that drops rows.';
end
$$;

revoke execute on function outbox.first_id(text, text) from public;
revoke execute on function outbox.emit(text, jsonb, text, text, jsonb) from public;
