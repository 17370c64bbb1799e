insert into events.usage_limits
    (event_id, customer_id, metric, "limit", used, plan, mrr, csm, renewal, payload)
select e.id, e.payload ->> 'customer_id', e.payload ->> 'metric', (e.payload ->> 'limit')::numeric,
    (e.payload ->> 'used')::numeric, e.payload ->> 'plan', c.mrr, c.csm, c.renewal, e.payload
from json_to_recordset($1::json) as e(id uuid, payload jsonb)
left join crm.customer as c on c.customer_id = e.payload ->> 'customer_id'
on conflict (event_id) do update set
    customer_id = excluded.customer_id, metric = excluded.metric, "limit" = excluded."limit",
    used = excluded.used, plan = excluded.plan, mrr = excluded.mrr, csm = excluded.csm,
    renewal = excluded.renewal, payload = excluded.payload
