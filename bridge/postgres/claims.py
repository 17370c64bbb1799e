"""A lane's claims: which messages are due, and the lease that makes them its own. delivery.py says how leases work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, LiteralString

from bridge.postgres.delivery import HURRIED, AsyncLink
from bridge.postgres.stored import message_fields
from bridge.sinks.joining import DIGEST, take_group, take_identity
from bridge.sinks.model import Delivery

# One row while the place is ours and nobody has paused the destination; the place stays ours until the commit.
_ME: LiteralString = """
    me as materialized (
        select from bridge.dispatcher where name = %(stream)s and epoch = %(epoch)s
            and not exists (
                select from bridge.sink_pause p where p.stream = %(stream)s and p.pipeline = %(pipeline)s
                    and p.destination = %(destination)s)
        for share)"""

_TAKE: LiteralString = """
    update bridge.delivery d
    set lease_epoch = %(epoch)s, lease_until = now() + %(lease)s * interval '1 second',
        next_attempt_at = now() + %(lease)s * interval '1 second'
    from picked, me
    where d.id = picked.id
    returning d.id::text, d.event_id, d.event_type, d.event_key, d.occurred_at, d.body::text, d.attempts,
        extract(epoch from d.created_at + %(max_age)s * interval '1 second' - now())::float8, d.event_seq,
        split_part(d.last_error, ':', 1)"""


def _claim(which: LiteralString, order: LiteralString) -> LiteralString:
    """A claim of this lane's pending messages d."""
    return (
        "with "
        + _ME
        + """, picked as materialized (
            select d.id from bridge.delivery d
            where d.destination = %(destination)s and d.state = 'pending' and d.pipeline = %(pipeline)s
              and d.stream = %(stream)s and """
        + which
        + " order by "
        + order
        + " limit %(limit)s for update skip locked)"
        + _TAKE
    )


# Events without a key: independent, oldest first. In the order of delivery_order: nothing is sorted.
_KEYLESS = _claim(
    "d.event_key is null and d.next_attempt_at <= now() and d.event_seq > %(after)s",
    "d.destination, d.event_key, d.event_seq",
)

# Whatever their keys are: of a destination whose messages go together as digests, what is due longest first.
_ANY = _claim("d.next_attempt_at <= now()", "d.destination, d.next_attempt_at")

# What a person wants sent now, if it is the first of its key.
_HURRIED = _claim(
    """d.next_attempt_at <= now() and d.history -> -1 ->> 'did' = %(hurried)s
              and not exists (
                select from bridge.delivery earlier
                where earlier.destination = d.destination and earlier.event_key = d.event_key
                  and earlier.event_seq < d.event_seq and earlier.state = 'pending'
                  and earlier.pipeline = d.pipeline and earlier.stream = d.stream)""",
    "d.destination, d.next_attempt_at desc",
)

# All that wait in one digest's group, also those that were put off.
_GROUP = _claim(
    "d.body ->> %(digest)s = %(group)s and (d.lease_until is null or d.lease_until < now())", "d.event_seq"
)

_SENT_LATELY: LiteralString = """
    select d.id::text, d.event_id, d.event_type, d.event_key, d.occurred_at, d.body::text, d.attempts, 0.0, d.event_seq,
        null, extract(epoch from now() - d.settled_at)::float8
    from bridge.delivery d
    where d.settled_at > now() - %(seconds)s * interval '1 second' and d.destination = %(destination)s
      and d.pipeline = %(pipeline)s and d.stream = %(stream)s and d.state = 'sent'
    order by d.settled_at desc limit 20000"""

# The first pending message of each key, key after key, beginning behind the last one that was taken. Only
# the first of a key can be due: later ones wait for it, whatever their own time says.
_KEYED: LiteralString = (
    """
    with recursive """
    + _ME
    + """, head(id, event_key, event_seq, next_attempt_at) as (
        (select d.id, d.event_key, d.event_seq, d.next_attempt_at from bridge.delivery d
         where d.destination = %(destination)s and d.event_key > %(after)s and d.state = 'pending'
           and d.pipeline = %(pipeline)s and d.stream = %(stream)s
         order by d.destination, d.event_key, d.event_seq limit 1)
        union all
        select n.id, n.event_key, n.event_seq, n.next_attempt_at
        from head cross join lateral (
            select d.id, d.event_key, d.event_seq, d.next_attempt_at from bridge.delivery d
            where d.destination = %(destination)s and d.event_key > head.event_key and d.state = 'pending'
              and d.pipeline = %(pipeline)s and d.stream = %(stream)s
            order by d.destination, d.event_key, d.event_seq limit 1) n
    ), due as materialized (
        select id, event_key from head where next_attempt_at <= now() limit %(limit)s
    ), picked as materialized (
        select d.id from bridge.delivery d
        where d.id = any(array(select id from due)) and d.state = 'pending' and d.next_attempt_at <= now()
        for update skip locked)"""
    + _TAKE
    + ", (select max(event_key) from due)"
)
_KEYED_FROM: LiteralString = _KEYED.replace("d.event_key > %(after)s", "d.event_key >= %(after)s")


@dataclass(frozen=True, slots=True)
class Claim:
    """The stream, epoch and lease of a claim. Times in seconds."""

    stream: str
    pipeline: str
    destination: str
    epoch: int
    lease: float
    max_age: float

    def _values(self, **more: Any) -> dict[str, Any]:
        names = ("stream", "pipeline", "destination", "epoch", "lease", "max_age")
        return {name: getattr(self, name) for name in names} | more

    async def keyless(self, connection: AsyncLink, limit: int, after: int = -(2**63)) -> list[Delivery]:
        """Due messages of events without a key, behind the event whose seq is `after`: what was settled before stays in
        the index until a vacuum, and is not walked over at each claim."""
        return list(map(_delivery, await self._take(connection, _KEYLESS, limit=limit, after=after)))

    async def keyed(
        self, connection: AsyncLink, limit: int, after: str | None
    ) -> tuple[list[Delivery], str | None]:
        """The first message of each key, if due, for keys after `after` (None: all keys), and the last of these keys
        in the database's order."""
        query = _KEYED_FROM if after is None else _KEYED
        rows = await self._take(connection, query, limit=limit, after=after or "")
        return list(map(_delivery, rows)), rows[0][10] if rows else None

    async def any(self, connection: AsyncLink, limit: int) -> list[Delivery]:
        """Due messages, whatever their keys are."""
        return list(map(_delivery, await self._take(connection, _ANY, limit=limit)))

    async def hurried(self, connection: AsyncLink, limit: int) -> list[Delivery]:
        """Messages that a person wants sent now. The ledger keeps their history."""
        return list(map(_delivery, await self._take(connection, _HURRIED, limit=limit, hurried=HURRIED)))

    async def group(self, connection: AsyncLink, group: str, limit: int) -> list[Delivery]:
        """The messages of a digest's group that nobody has claimed, due or not."""
        rows = await self._take(connection, _GROUP, limit=limit, group=group, digest=DIGEST)
        return list(map(_delivery, rows))

    async def sent_lately(self, connection: AsyncLink, seconds: float) -> list[tuple[Delivery, float]]:
        """What was sent in these last seconds, and how many seconds ago, the oldest first."""
        rows = await (await connection.execute(_SENT_LATELY, self._values(seconds=seconds))).fetchall()
        return [(_delivery(row), row[10]) for row in reversed(rows)]

    async def _take(self, connection: AsyncLink, query: LiteralString, **more: Any) -> list[tuple[Any, ...]]:
        rows = await (await connection.execute(query, self._values(**more))).fetchall()
        return sorted(rows, key=lambda row: int(row[8]))


def delivery_of(row: Mapping[str, Any]) -> Delivery:
    """A message that is looked at, not claimed: a row with columns of bridge.delivery, body as text."""
    return _delivery(
        (
            *(row["id"], row["event_id"], row["event_type"], row["event_key"], row["occurred_at"]),
            *(row["body"], row["attempts"], 0.0, row["event_seq"], None),
        )
    )


def _delivery(row: tuple[Any, ...]) -> Delivery:
    identity, event_id, event_type, key, at, body, attempts, expires_in, seq, code = row[:10]
    fields = message_fields(body)
    group = take_group(fields)
    sent_as = take_identity(fields)
    return Delivery(
        identity, event_id, event_type, key, at, fields, attempts, expires_in, group, seq, sent_as, code
    )
