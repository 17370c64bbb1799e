-- Which database a stream's outbox is in. Two sources of one name were taken for one stream. Run as the owner.
-- (A program that does not know this column would take one for the other: it stops at its next write.)

alter table bridge.checkpoint add column if not exists source_database text;
alter table bridge.checkpoint add column if not exists source_database_oid oid;  -- null: a release before wrote it last

-- To go back to a release before, with the bridge stopped:
--   begin;
--   alter table bridge.checkpoint drop column if exists source_database, drop column if exists source_database_oid;
--   delete from bridge.migration where version = 3;
--   commit;
