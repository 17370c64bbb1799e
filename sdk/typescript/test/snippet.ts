import { ingest } from "@ingestlayer/sdk";
await ingest("usage.limit_reached", {
customer_id: account.id,
metric: "api-calls",
limit: account.plan.apiLimit,
used: account.usage.apiCalls,
plan: account.plan.name,
}, {
idempotencyKey: `${account.id}:api-calls:${period}`,
});
