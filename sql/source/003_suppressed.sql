-- Keys that hold for a calendar period, and how many events were not put in because their key was used before.

-- The idempotency key of `period` (hour, day, week, month, year) in `time_zone`: the key, a colon and the period's name
-- (ISO 8601; an hour by its beginning in UTC, because in autumn a local one comes twice). `moment` is what
-- occurred_at is by default: the beginning of the transaction.
create or replace function outbox.period_key(
    idempotency_key text, period text, time_zone text default 'UTC', moment timestamptz default now()
) returns text language plpgsql stable security invoker parallel safe set search_path = '' as $$
declare
    local_time timestamp;
begin
    if coalesce(idempotency_key, '') = '' then
        raise exception 'outbox.period_key: the idempotency key is null or empty' using errcode = '22023';
    end if;
    if moment is null or not isfinite(moment) then
        raise exception 'outbox.period_key: the moment is null or infinite' using errcode = '22023';
    end if;
    -- Postgres would also take POSIX rules, in which UTC+2 lies west of Greenwich, and abbreviations.
    if (time_zone ~ '^(UTC|[A-Za-z_]+(/[A-Za-z_-]+)+|Etc/GMT[+-]?[0-9]{1,2})$') is not true then
        raise exception 'outbox.period_key: % is not a time zone', coalesce(quote_literal(time_zone), 'null')
            using errcode = '22023', hint = 'Name a place, as in Europe/Berlin, or UTC: select name from pg_timezone_names;';
    end if;
    if (period in ('hour', 'day', 'week', 'month', 'year')) is not true then
        raise exception 'outbox.period_key: % is not a period', coalesce(quote_literal(period), 'null')
            using errcode = '22023', hint = 'Periods are hour, day, week, month and year.';
    end if;
    local_time := moment at time zone time_zone;
    return idempotency_key || ':' || case period
        when 'hour' then to_char(
            date_trunc('hour', moment, time_zone) at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI"Z"')
        when 'day' then to_char(local_time, 'YYYY-MM-DD')
        when 'week' then to_char(local_time, 'IYYY-"W"IW')
        when 'month' then to_char(local_time, 'YYYY-MM')
        when 'year' then to_char(local_time, 'YYYY')
    end;
end
$$;

-- Events that were not put in, `count` of a type: a row is added in the transaction of the repeat, so nobody waits for
-- anybody and what is rolled back is not counted. The bridge adds rows together now and then.
create table if not exists outbox.suppressed (
    type  text not null check (length(type) between 1 and 200),
    count bigint not null default 1 check (count > 0),
    since timestamptz not null default now()
) with (autovacuum_vacuum_scale_factor = 0.02);
-- Rows are deleted when they are added together: a publication FOR ALL TABLES of yours would forbid that otherwise.
alter table outbox.suppressed replica identity full;

-- Whoever may emit counts what it does not put in.
do $$
declare
    emitter text;
begin
    for emitter in
        select case acl.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(acl.grantee)) end
        from pg_catalog.pg_proc p, aclexplode(p.proacl) acl
        where p.oid = 'outbox.emit(text, jsonb, text, text, jsonb)'::regprocedure
          and acl.privilege_type = 'EXECUTE' and acl.grantee <> p.proowner
    loop
        execute format('grant insert (type) on outbox.suppressed to %s', emitter);
    end loop;
end
$$;

-- As before, and a repeat is counted.
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
                if pg_catalog.current_setting('transaction_read_only') = 'off' then
                    insert into outbox.suppressed (type) values (emit.type);
                end if;
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
