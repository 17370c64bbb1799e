-- Recipe signups: an example of the table it looks people up in. Yours may be another: change the recipe's sql.
create schema if not exists crm;

create table if not exists crm.person (
    user_id text primary key,
    company text,
    source  text
);

insert into crm.person (user_id, company, source) values
    ('usr_1', 'Acme', 'marketing-site'),
    ('usr_2', 'Globex', 'partner')
on conflict (user_id) do nothing;

-- With the bridge's role named outbox_bridge:
--   grant usage on schema crm to outbox_bridge;
--   grant select on crm.person to outbox_bridge;
