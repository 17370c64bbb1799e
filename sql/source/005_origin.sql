-- Whose xids the outbox has. An xid means something only in the cluster that gave it out: rows that come from another
-- one, by a dump or by native replication, are told from this cluster's own.

-- The cluster that gave out the xids of outbox.event and outbox.pruned. A dump carries this row with it.
create table if not exists outbox.origin (
    singleton         boolean primary key default true check (singleton),
    system_identifier text not null,
    database_name     text not null,
    xid               xid8 not null default pg_current_xact_id(),  -- of the transaction that wrote this row; or it was restored
    restored_from     text,  -- the cluster that it was moved from, with its rows
    since             timestamptz not null default now()
);
insert into outbox.origin (system_identifier, database_name)
select system_identifier::text, current_database() from pg_control_system() on conflict do nothing;

-- For native replication into the outbox: a row gets the xid of the transaction that writes it here, and keeps it when
-- its publisher updates it. It also keeps its seq, and the sequence goes on behind it: seq never goes back at a switch.
-- Arguments: the columns of xid and seq, and seq's sequence (or '').
create or replace function outbox.local_xid() returns trigger
    language plpgsql security definer set search_path = '' as $$
declare
    kept    text;
    arrived bigint;
begin
    if tg_op = 'UPDATE' then
        execute format('select ($1).%I::text', tg_argv[0]) into kept using old;
    end if;
    new := jsonb_populate_record(
        new, jsonb_build_object(tg_argv[0], coalesce(kept, pg_current_xact_id()::text)));
    if tg_op = 'INSERT' and tg_argv[2] <> '' then
        execute format('select ($1).%I', tg_argv[1]) into arrived using new;
        if arrived > coalesce(pg_sequence_last_value(tg_argv[2]::regclass), 0) then
            perform setval(tg_argv[2]::regclass, arrived);
        end if;
    end if;
    return new;
end
$$;
-- Whoever may use it in a trigger could move any sequence of its owner.
revoke execute on function outbox.local_xid() from public;

-- Only the apply worker of a subscription (and a session with session_replication_role = replica) runs it: for producers
-- it is off.
do $$
begin
    execute format(
        'create or replace trigger local_xid before insert or update on outbox.event'
        ' for each row execute function outbox.local_xid(''xid'', ''seq'', %L)',
        pg_get_serial_sequence('outbox.event', 'seq'));
    alter table outbox.event enable replica trigger local_xid;
end
$$;
