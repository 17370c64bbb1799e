-- Recipe successful-payments: an example of the table it looks customers up in. Yours may be another: change the recipe's sql.
create schema if not exists crm;

create table if not exists crm.customer (
    customer_id text primary key,
    mrr         numeric,
    csm         text,
    renewal     date
);

insert into crm.customer (customer_id, mrr, csm, renewal) values
    ('cus_1', 1490.00, 'ada', '2027-03-01'),
    ('cus_2', 89.90, 'grace', '2027-06-15')
on conflict (customer_id) do nothing;

-- With the bridge's role named outbox_bridge:
--   grant usage on schema crm to outbox_bridge;
--   grant select on crm.customer to outbox_bridge;
