-- Optional, for `capture: poll`: a notification at each commit wakes the bridge at once instead of after
-- source.poll_interval. With a slot it is of no use. What it costs producers: docs/producers.md, "Waking a bridge that
-- polls". To take it away: drop trigger outbox_bridge_notify on outbox.event; drop function outbox.notify();
create or replace function outbox.notify() returns trigger language plpgsql set search_path = '' as $$
begin
    -- A full queue would make every COMMIT here fail; long before, the timer is enough.
    if pg_catalog.pg_notification_queue_usage() < 0.5 then
        perform pg_catalog.pg_notify('outbox_bridge', '');
    end if;
    return null;
end
$$;
revoke execute on function outbox.notify() from public;
create or replace trigger outbox_bridge_notify after insert on outbox.event
    for each statement execute function outbox.notify();
