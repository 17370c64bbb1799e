-- Entities that events keep (the step upsert.entity), for those who have no table to look them up in. A field has the
-- value of the event with the greatest seq, so writing an event again, or late, changes nothing. To put rows in by hand,
-- or to delete one: docs/configuration.md, "entities".
create table if not exists outbox.entity (
    entity     text not null,                      -- its name in bridge.yaml
    key        text not null,
    fields     jsonb not null default '{}',
    seqs       jsonb not null default '{}',        -- of each field, the seq of the event that it came with
    updated_at timestamptz not null default now(),
    constraint entity_pkey primary key (entity, key),
    constraint entity_fields_are_an_object check (jsonb_typeof(fields) = 'object'),
    constraint entity_seqs_are_an_object check (jsonb_typeof(seqs) = 'object')
) with (fillfactor = 80);                          -- fields change in place
