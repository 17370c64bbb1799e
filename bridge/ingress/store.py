"""Insert many events into the outbox with one statement and one commit.

Like `outbox.emit` it looks before it inserts, so a used idempotency key costs no lock. The same statement records a
webhook's delivery, so that an event and its delivery exist together or not at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import LiteralString

import psycopg
from psycopg.adapt import Buffer, Dumper
from psycopg.pq import Format

from bridge.errors import BridgeError
from bridge.postgres.advice import IS_MEMBER, grant_fix
from bridge.postgres.target import text_array

DELIVERY_MEMORY = "35 days"
"""How long a webhook's delivery is remembered: as long as idempotency keys are."""

_TEXT_ARRAY_OID = 1009
_FORGET_AT_ONCE = 5000


class IngressDown(BridgeError):
    """The ingress cannot store events: it answers 503 until it can write to the source."""

    reason = "ingress_cannot_write"
    hint = "the source must be up and writable, `bridge install` run, and the printed grants given"


@dataclass(frozen=True, slots=True)
class Item:
    """One event to insert. `payload` and `headers` are JSON text that the outbox's checks accept. endpoint and
    delivery: the webhook's name and the delivery's id, both or neither."""

    type: str
    payload: bytes
    key: str | None = None
    idempotency_key: str | None = None
    headers: bytes | None = None
    endpoint: str | None = None
    delivery: str | None = None

    @property
    def names(self) -> list[tuple[str, ...]]:
        """The unique names of an item: two items with a common name are the same event."""
        names: list[tuple[str, ...]] = []
        if self.delivery is not None:
            names.append(("delivery", self.endpoint or "", self.delivery))
        if self.idempotency_key is not None:
            names.append(("key", self.type, self.idempotency_key))
        return names


@dataclass(frozen=True, slots=True)
class Stored:
    """The event's id; of the first event when this one is a duplicate of it."""

    id: str
    duplicate: bool = False


_READY: LiteralString = """
    select has_column_privilege('outbox.event', 'payload', 'insert'),
           has_table_privilege(to_regclass('outbox.suppressed'), 'insert')"""

# What is not put in is counted in the same transaction, as outbox.emit does; `repeats`: its like in the same batch.
_COUNTED: LiteralString = """
        insert into outbox.suppressed (type, count)
        select given.type, sum(given.repeats + (fresh.id is null)::integer)
        from given left join fresh on fresh.id = given.id
        group by given.type having sum(given.repeats + (fresh.id is null)::integer) > 0"""

_EVENTS: LiteralString = f"""
    with given as materialized (
        select g.*, outbox.uuid7() as id,
               (select e.id from outbox.event e
                where e.type = g.type and e.idempotency_key = g.idempotency_key) as first
        from unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::integer[])
             with ordinality as g(type, key, payload, idempotency_key, headers, repeats, n)
    ), fresh as (
        insert into outbox.event (id, type, key, payload, idempotency_key, headers)
        select id, type, key, payload::jsonb, idempotency_key, headers::jsonb
        from given where first is null order by n
        on conflict do nothing returning id
    ), counted as ({_COUNTED})
    select coalesce(given.first, fresh.id)::text, given.first is not null
    from given left join fresh on fresh.id = given.id order by n"""

_DELIVERIES: LiteralString = f"""
    with given as materialized (
        select g.*, outbox.uuid7() as id,
               (select d.event_id from outbox.webhook_delivery d
                where d.endpoint = g.endpoint and d.id = g.delivery) as delivered,
               (select e.id from outbox.event e
                where e.type = g.type and e.idempotency_key = g.idempotency_key) as first
        from unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::integer[], %s::text[], %s::text[])
             with ordinality as g(type, key, payload, idempotency_key, headers, repeats, endpoint, delivery, n)
    ), claimed as (
        insert into outbox.webhook_delivery (endpoint, id, event_id)
        select endpoint, delivery, coalesce(first, id) from given where delivered is null
        order by endpoint, delivery
        on conflict do nothing returning endpoint, id
    ), fresh as (
        insert into outbox.event (id, type, key, payload, idempotency_key, headers)
        select id, type, key, payload::jsonb, idempotency_key, headers::jsonb
        from given where first is null and (endpoint, delivery) in (select endpoint, id from claimed)
        order by n
        on conflict do nothing returning id
    ), counted as ({_COUNTED})
    select coalesce(given.delivered, given.first, fresh.id)::text,
           given.delivered is not null or given.first is not null
    from given left join fresh on fresh.id = given.id order by n"""

# For those that lost to another transaction, which has committed by now: a later snapshot shows its row.
_FIRST: LiteralString = "select outbox.first_id(%(type)s, %(idempotency_key)s)::text"

# The delivery was claimed, its event was there before under its idempotency key: the claim names that one.
_FIRST_DELIVERY: LiteralString = """
    with restored as (
        update outbox.webhook_delivery d set event_id = f.id
        from (select outbox.first_id(%(type)s, %(idempotency_key)s) as id) f
        where d.endpoint = %(endpoint)s and d.id = %(delivery)s and f.id is not null
          and not exists (select from outbox.event e where e.id = d.event_id)
        returning d.event_id
    )
    select coalesce((select event_id from restored),
                    (select d.event_id from outbox.webhook_delivery d
                     where d.endpoint = %(endpoint)s and d.id = %(delivery)s))::text"""

_FORGET: LiteralString = """
    delete from outbox.webhook_delivery where (endpoint, id) in (
        select endpoint, id from outbox.webhook_delivery
        where received_at < now() - %s::interval order by received_at limit %s for update skip locked)"""


class _TextArray:
    __slots__ = ("encoded",)

    def __init__(self, texts: Sequence[bytes | None]) -> None:
        self.encoded = text_array(texts)


class _TextArrayDumper(Dumper):
    format = Format.BINARY
    oid = _TEXT_ARRAY_OID

    def dump(self, obj: _TextArray) -> Buffer:
        return obj.encoded


async def prepare(connection: psycopg.AsyncConnection) -> None:
    """Prepare a connection for insert(). Raises psycopg errors (also if the outbox is missing), and IngressDown if the
    role may not insert."""
    connection.adapters.register_dumper(_TextArray, _TextArrayDumper)
    try:
        row = await (await connection.execute(_READY)).fetchone()
    except psycopg.errors.InsufficientPrivilege:  # it may not even look into schema outbox
        await connection.rollback()
        row = None
    if row is None or not row[0]:
        user, role = connection.info.user, "outbox_bridge"
        has = await (await connection.execute(IS_MEMBER, [role])).fetchone()
        raise IngressDown(
            f"role {user} may not insert events into the outbox",
            hint=grant_fix(role, user, member=has == (True,)),
        )
    if not row[1]:
        raise IngressDown(
            f"the source has no outbox.suppressed, or role {connection.info.user} may not insert there",
            hint="bridge install",
        )


async def insert(connection: psycopg.AsyncConnection, items: Sequence[Item]) -> list[Stored]:
    """Insert the items, in their order, in one transaction; raises psycopg's errors, and then none is stored. Items
    with and without a delivery need different statements, so do not mix them. Items with a common name are the same
    event."""
    numbers: dict[tuple[str, ...], int] = {}
    same = [
        min((numbers.setdefault(name, n) for name in item.names), default=n) for n, item in enumerate(items)
    ]
    kept = [n for n, first in enumerate(same) if first == n]
    meant = Counter(same)
    repeats = [meant[n] - 1 for n in kept]
    stored = dict(zip(kept, await _insert(connection, [items[n] for n in kept], repeats), strict=True))
    for n, first in enumerate(same):
        if n != first:
            stored[n] = Stored(stored[first].id, duplicate=True)
    return [stored[n] for n in range(len(items))]


async def _insert(connection: psycopg.AsyncConnection, items: list[Item], repeats: list[int]) -> list[Stored]:
    with_deliveries = items[0].delivery is not None
    parameters: list[object] = [
        _texts(items, lambda i: i.type),
        _texts(items, lambda i: i.key),
        _TextArray([item.payload for item in items]),
        _texts(items, lambda i: i.idempotency_key),
        _TextArray([item.headers for item in items]),
        repeats,
    ]
    if with_deliveries:
        parameters += [_texts(items, lambda i: i.endpoint), _texts(items, lambda i: i.delivery)]
    cursor = await connection.execute(_DELIVERIES if with_deliveries else _EVENTS, parameters)
    rows = await cursor.fetchall()
    return [
        Stored(*row) if row[0] is not None else await _first(connection, item)
        for item, row in zip(items, rows, strict=True)
    ]


def _texts(items: list[Item], column: Callable[[Item], str | None]) -> _TextArray:
    return _TextArray([None if (text := column(item)) is None else text.encode() for item in items])


async def _first(connection: psycopg.AsyncConnection, item: Item) -> Stored:
    """The first event with this item's idempotency key or delivery."""
    asked = {name: getattr(item, name) for name in ("type", "idempotency_key", "endpoint", "delivery")}
    query = _FIRST if item.delivery is None else _FIRST_DELIVERY
    row = await (await connection.execute(query, asked)).fetchone()
    if row is None or row[0] is None:
        raise psycopg.errors.SerializationFailure("an event was skipped for one that does not exist")
    return Stored(row[0], duplicate=True)


async def forget_deliveries(connection: psycopg.AsyncConnection) -> int:
    """Delete deliveries older than DELIVERY_MEMORY, at most some thousands. Returns how many."""
    cursor = await connection.execute(_FORGET, [DELIVERY_MEMORY, _FORGET_AT_ONCE])
    return cursor.rowcount
