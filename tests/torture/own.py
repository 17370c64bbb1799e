"""An outbox of the customer's own, as applications keep them: partitioned by state, rows moved and deleted, NULLs.

Every row that a producer puts into outbox.event goes on into public.own, in the same transaction, so that producers and
truth stay as they are. The bridge reads public.own alone.
"""

from __future__ import annotations

import psycopg

from bridge.postgres.schema import install_source
from tests.support.world import Document, World

_TABLE = """
create table public.own (
    id uuid, type text, key text, payload jsonb, idempotency_key text, headers jsonb, occurred_at timestamptz,
    seq bigint generated always as identity, xid xid8 not null default pg_current_xact_id(),
    state int not null default 0
) partition by list (state);
create table public.own_new partition of public.own for values in (0);
create table public.own_done partition of public.own for values in (1);
create index on public.own (xid, seq);
create index on public.own (id);
grant select on public.own to outbox_bridge;
create function public.own_too() returns trigger language plpgsql security definer as $$
begin
    insert into public.own (id, type, key, payload, idempotency_key, headers, occurred_at)
    values (new.id, new.type, new.key, new.payload, new.idempotency_key, new.headers, new.occurred_at);
    return null;
end
$$;
create trigger own_too after insert on outbox.event for each row execute function public.own_too();
drop publication outbox_bridge;
"""

_FLOOR = "(select floor from outbox.stream limit 1)"

_MOVE = """
with newest as (select id from public.own order by seq desc limit 200)
update public.own set state = 1 - state where id in (select id from newest) and random() < 0.3"""

# Only what the floor shows: a row that is deleted before it was delivered is lost with a lost slot.
_DELETE = f"""
delete from public.own where pg_visible_in_snapshot(xid, {_FLOOR}) and (random() < 0.2 or seq = (
    select max(seq) from public.own where pg_visible_in_snapshot(xid, {_FLOOR})))"""

_NULLS = (
    "insert into public.own (type, payload) values ('usage.limit_reached', '{}')",
    "insert into public.own (id, type) values (gen_random_uuid(), 'usage.limit_reached')",
    "insert into public.own (id, payload) values (gen_random_uuid(), '{}')",
)


def use_own_outbox(world: World) -> None:
    """Before the bridges start."""
    with psycopg.connect(world.source.dsn, autocommit=True) as owner:
        owner.execute(_TABLE.encode())
        install_source(owner, "outbox_bridge", "public.own")
    names = ("id", "type", "key", "payload", "idempotency_key", "headers", "occurred_at", "seq", "xid")

    def configure(document: Document) -> None:
        document["source"].update(table="public.own", columns={name: name for name in names})

    world.configure(configure)


def move_rows(world: World) -> int:
    """Rows change their partition; how many."""
    with world.source.connect() as owner:
        return owner.execute(_MOVE.encode()).rowcount


def delete_rows(world: World) -> int:
    """The application deletes applied rows, often the newest of them; how many."""
    with world.source.connect() as owner:
        return owner.execute(_DELETE.encode()).rowcount


def insert_nulls(world: World) -> int:
    """Rows without id, payload, or type, each committed by itself; how many."""
    with world.source.connect() as owner:
        for statement in _NULLS:
            owner.execute(statement.encode())
    return len(_NULLS)


def letters_of_nulls(world: World) -> int:
    return int(world.target.value("select count(*) from bridge.dead_letter where code = 'incomplete'"))
