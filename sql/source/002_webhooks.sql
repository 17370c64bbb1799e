-- Webhook deliveries that have become events: what tells a repeated or replayed delivery from a new one.
-- A row is written in its event's transaction. The bridge forgets rows after 35 days.
create table if not exists outbox.webhook_delivery (
    endpoint    text not null,           -- the webhook's name in bridge.yaml
    id          text not null,           -- the delivery's id, or the SHA-256 of its body
    event_id    uuid not null,
    received_at timestamptz not null default now(),
    constraint webhook_delivery_pkey primary key (endpoint, id)
);
create index if not exists webhook_delivery_received_at on outbox.webhook_delivery (received_at);  -- forgetting reads by it
