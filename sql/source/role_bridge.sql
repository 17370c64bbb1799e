-- The bridge. REPLICATION lets it create and read its slot; it is a cluster-wide right to read everything
-- (BASE_BACKUP works with it): with `capture: poll` the role does not need it, make it `login` alone.
-- Give it a password or a certificate as you do for other roles, and SELECT on what your enrichments read.
do $$
begin
    if not exists (select from pg_catalog.pg_roles where rolname = 'outbox_bridge') then
        if exists (select from pg_catalog.pg_roles where rolname = 'rds_replication') then
            create role outbox_bridge login;  -- Amazon RDS and Aurora: nobody there may create REPLICATION
            grant rds_replication to outbox_bridge;
        else
            create role outbox_bridge login replication;
        end if;
    end if;
exception when duplicate_object or unique_violation then
    null;  -- made meanwhile, from another database of the cluster
end
$$;
grant usage on schema outbox to outbox_bridge;
grant select, delete on outbox.event to outbox_bridge;                  -- capture, catch-up, pruning
grant update (payload, headers) on outbox.event to outbox_bridge;       -- pruning empties keyed rows
grant update (seq) on outbox.event to outbox_bridge;                    -- rows whose seq went back get the next ones,
grant select, usage, update on sequence outbox.event_seq_seq to outbox_bridge;  -- above those that were applied
grant insert (id, type, key, payload, idempotency_key, headers, occurred_at) on outbox.event to outbox_bridge;  -- ingress
grant execute on function outbox.first_id(text, text), outbox.emit(text, jsonb, text, text, jsonb) to outbox_bridge;
grant select, insert, update, delete on outbox.stream, outbox.pruned to outbox_bridge;
grant select, insert, delete on outbox.webhook_delivery to outbox_bridge;  -- ingress
grant update (event_id) on outbox.webhook_delivery to outbox_bridge;
grant select, insert, delete on outbox.suppressed to outbox_bridge;  -- ingress; adding its rows together
grant update (count) on outbox.suppressed to outbox_bridge;
grant select, insert, update on outbox.entity to outbox_bridge;  -- entities that events keep
grant select, insert, update, delete on outbox.relay to outbox_bridge;  -- with a log (scale.log)
grant select on outbox.migration to outbox_bridge;
grant select, update on outbox.origin to outbox_bridge;  -- a restored outbox made this cluster's own
