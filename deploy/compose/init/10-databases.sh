#!/bin/sh
# Runs once, when the container's database is made: what a customer does by hand on servers of their own.
set -eu
run() { psql -v ON_ERROR_STOP=1 -q -U "$POSTGRES_USER" "$@"; }

run -d postgres -c "create role outbox_bridge login replication password '$POSTGRES_PASSWORD'" \
    -c "create database app" -c "create database warehouse"

# The source: the outbox, its publication and the grants (the same as `bridge schema source` prints).
for file in 001_outbox publication role_bridge role_producer; do
    run -d app -f "/sql/source/$file.sql"
done
run -d app <<'SQL'
create schema crm;
create table crm.customer (customer_id text primary key, mrr numeric, csm text);
insert into crm.customer values ('cus_1', 1490, 'ada');
grant usage on schema crm to outbox_bridge;
grant select on crm.customer to outbox_bridge;
SQL

# The target: the ledger (the same as `bridge schema target` prints), your table, and the grants.
run -d warehouse -f /sql/target/001_ledger.sql
run -d warehouse <<'SQL'
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
SQL
