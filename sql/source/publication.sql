-- What the slot decodes: inserts into the outbox, nothing else. It must exist before a slot is made.
-- An existing publication of this name is left as it is: changing one makes every stream catch up.
do $$
begin
    if not exists (select from pg_catalog.pg_publication where pubname = 'outbox_bridge') then
        create publication outbox_bridge for table outbox.event with (publish = 'insert', publish_via_partition_root = true);
        if current_setting('server_version_num')::integer >= 180000 then
            alter publication outbox_bridge set (publish_generated_columns = 'stored');  -- an outbox of your own may have some
        end if;
    end if;
end
$$;
