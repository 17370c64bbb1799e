-- Applications: grant outbox_producer to your_application. It can put events in and read none of them.
do $$
begin
    if not exists (select from pg_catalog.pg_roles where rolname = 'outbox_producer') then
        create role outbox_producer nologin;
    end if;
exception when duplicate_object or unique_violation then
    null;  -- made meanwhile, from another database of the cluster
end
$$;
grant usage on schema outbox to outbox_producer;
grant insert (id, type, key, payload, idempotency_key, headers, occurred_at) on outbox.event to outbox_producer;
grant execute on function outbox.first_id(text, text), outbox.emit(text, jsonb, text, text, jsonb) to outbox_producer;
grant insert (type) on outbox.suppressed to outbox_producer;  -- emit counts a repeat
