-- Runs once, when the container's databases are made: what a customer does by hand on servers of their own.
\getenv password POSTGRES_PASSWORD
create role outbox_bridge login replication password :'password';
create database app;
create database warehouse;

-- The source: the outbox, its publication and the grants (the same as `bridge schema source` prints).
\connect app
\ir /sql/source/001_outbox.sql
\ir /sql/source/002_webhooks.sql
\ir /sql/source/003_suppressed.sql
\ir /sql/source/004_entity.sql
\ir /sql/source/005_origin.sql
\ir /sql/source/006_relay.sql
\ir /sql/source/publication.sql
\ir /sql/source/role_bridge.sql
\ir /sql/source/role_producer.sql
create schema crm;
create table crm.customer (customer_id text primary key, mrr numeric, csm text);
insert into crm.customer values ('cus_1', 1490, 'ada');
grant usage on schema crm to outbox_bridge;
grant select on crm.customer to outbox_bridge;

-- The target: the ledger (the same as `bridge schema target` prints), your table, and the grants.
\connect warehouse
\ir /sql/target/001_ledger.sql
\ir /sql/target/002_sinks.sql
\ir /sql/target/003_source.sql
\ir /sql/target/004_audit.sql
\ir /sql/target/004_audit.sql
create schema events;
create table events.usage_limits (
    event_id    uuid primary key,
    occurred_at timestamptz not null,
    customer_id text not null,
    mrr         numeric,
    csm         text,
    payload     jsonb not null
);
grant usage on schema bridge, events to outbox_bridge;
grant select, insert, update, delete on all tables in schema bridge to outbox_bridge;
grant select, insert, update on events.usage_limits to outbox_bridge;
