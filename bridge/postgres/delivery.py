"""The delivery table's statements (settle, put off, expire, prune; claims.py has the claims), and a dispatcher's place
over them.

A claim is a lease in the row, never a transaction that stays open while HTTP goes on. A claimed row is not due
until its lease ends, so whoever comes after a crash finds it again by `next_attempt_at` alone. One dispatcher a
stream holds its place by a lease in bridge.dispatcher, with an epoch that fences its claims: every change is made
only while that row still has our epoch.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

import psycopg

from bridge.expressions.document import json_text
from bridge.postgres.sink_pause import Hold, Unit
from bridge.postgres.stored import storable
from bridge.postgres.target import Statement

AsyncLink = psycopg.AsyncConnection[tuple[Any, ...]]

LEASE_SECONDS = 10.0
"""Seconds that a silent dispatcher keeps its lease."""


_HOLD: LiteralString = """
    insert into bridge.dispatcher as d (name, epoch, holder, held_until)
    values (%(name)s, 1, %(holder)s, now() + %(lease)s * interval '1 second')
    on conflict (name) do update set epoch = d.epoch + 1, holder = excluded.holder, held_until = excluded.held_until
    where d.held_until is null or d.held_until < now()
    returning epoch"""

_RENEW: LiteralString = """
    update bridge.dispatcher set held_until = now() + %(lease)s * interval '1 second'
    where name = %(name)s and epoch = %(epoch)s returning epoch"""

_LET_GO: LiteralString = """
    with freed as (
        update bridge.delivery set lease_epoch = null, lease_until = null, next_attempt_at = now()
        where stream = %(name)s and state = 'pending' and lease_epoch = %(epoch)s and id = any(%(ids)s)
    )
    update bridge.dispatcher set held_until = null where name = %(name)s and epoch = %(epoch)s"""


def holder() -> str:
    """How this process calls itself in bridge.dispatcher."""
    return f"{socket.gethostname()}/{os.getpid()}"


async def hold(connection: AsyncLink, stream: str, holder: str) -> int | None:
    """Become the stream's dispatcher. Returns the epoch, or None while another one holds the lease."""
    values = {"name": stream, "holder": holder, "lease": LEASE_SECONDS}
    row = await (await connection.execute(_HOLD, values)).fetchone()
    return None if row is None else int(row[0])


async def renew(connection: AsyncLink, stream: str, epoch: int) -> bool:
    """Renew the lease. False: another dispatcher took over."""
    values = {"name": stream, "epoch": epoch, "lease": LEASE_SECONDS}
    return await (await connection.execute(_RENEW, values)).fetchone() is not None


async def let_go(connection: AsyncLink, stream: str, epoch: int, claimed: Sequence[str]) -> None:
    """Release the lease: claimed messages that are not settled are due at once, and another dispatcher may take
    over."""
    await connection.execute(_LET_GO, {"name": stream, "epoch": epoch, "ids": list(map(UUID, claimed))})


WAITING: LiteralString = """
    select destination, count(*), extract(epoch from now() - min(created_at))::float8
    from bridge.delivery where state = 'pending' and stream = %s group by destination"""
"""Unsent messages of one stream: destination, number of messages, age of the oldest in seconds."""

_LOOK_OLDER: LiteralString = """
    select exists (
            select from bridge.delivery d
            where d.destination = lane.destination and d.state = 'pending' and d.next_attempt_at <= now()
              and d.pipeline = lane.pipeline and d.stream = %(stream)s),
        p.paused_by || coalesce(': ' || p.reason, ''), null, null
    from unnest(%(pipelines)s::text[], %(destinations)s::text[], %(alone)s::boolean[]) with ordinality
        as lane(pipeline, destination, alone, ordinality)
    left join bridge.sink_pause p
        on p.stream = %(stream)s and p.pipeline = lane.pipeline and p.destination = lane.destination
    order by lane.ordinality"""

HURRIED = "retry now"
"""What the history of a message says that a person wants sent now."""

# Whoever is hurried is due since then: of what is due, it is looked for among what is due for the shortest time.
_LOOK: LiteralString = _LOOK_OLDER.replace(
    ", null, null",
    """,
        (select jsonb_agg(jsonb_build_array(h.kind, h.value, h.label, h.paused_by || coalesce(': ' || h.reason, '')))
         from bridge.sink_hold h where h.stream = %(stream)s and h.pipeline = lane.pipeline
            and h.destination = lane.destination),
        (select extract(epoch from max((r.last ->> 'at')::timestamptz))::float8
         from (select d.history -> -1 as last from bridge.delivery d
            where lane.alone and d.destination = lane.destination and d.state = 'pending'
              and d.next_attempt_at <= now() and d.pipeline = lane.pipeline and d.stream = %(stream)s
            order by d.destination, d.next_attempt_at desc limit 1000) r
         where r.last ->> 'did' = %(hurried)s)""",
)


class LaneState(NamedTuple):
    """Of a (pipeline, destination): are messages due, who has paused it and why, the messages within it that a person
    has paused, and when a person last said that some are to go now: seconds since 1970; known only of one that is left
    alone."""

    due: bool
    paused: str | None
    holds: Sequence[Hold] = ()
    hurried_at: float | None = None


async def look(
    connection: AsyncLink, stream: str, lanes: Sequence[Unit], alone: Sequence[bool], *, keeps: bool = True
) -> list[LaneState]:
    """The state of each (pipeline, destination), in their order. alone: whether it, or a recipient there, is left
    alone. keeps: the ledger has bridge.sink_hold and the history of messages."""
    values = {
        "stream": stream,
        "pipelines": [pipeline for pipeline, _ in lanes],
        "destinations": [destination for _, destination in lanes],
        "alone": list(alone),
        "hurried": HURRIED,
    }
    rows = await (await connection.execute(_LOOK if keeps else _LOOK_OLDER, values)).fetchall()
    return [
        LaneState(due, paused, [Hold(lane, *one) for one in holds or ()], hurried_at)
        for lane, (due, paused, holds, hurried_at) in zip(lanes, rows, strict=True)
    ]


# -- settling -------------------------------------------------------------------------------------------

_ME: LiteralString = """
    me as materialized (
        select from bridge.dispatcher where name = %(stream)s and epoch = %(epoch)s for share)"""
_SENT: LiteralString = """
    update bridge.delivery set state = 'sent', attempts = attempts + 1, settled_at = now(), last_error = null,
        lease_epoch = null, lease_until = null
    where id = any(%(ids)s) and state = 'pending' and lease_epoch = %(epoch)s returning id::text"""

HISTORY: LiteralString = """coalesce(
            case when jsonb_array_length(d.history) >= 10 then d.history - 0 else d.history end, '[]'
        ) || jsonb_build_array(jsonb_build_object('at', now()) || {})"""
"""A message's history with one entry more, of which the last ten are kept."""

_AGAIN_OLDER: LiteralString = """
    update bridge.delivery d
    set attempts = d.attempts + u.count, last_error = coalesce(u.cause, d.last_error),
        body = coalesce(u.body, d.body), lease_epoch = null, lease_until = null,
        next_attempt_at = now() + u.delay * interval '1 second'
    from unnest(%(ids)s::uuid[], %(counts)s::int[], %(causes)s::text[], %(bodies)s::jsonb[], %(delays)s::float8[])
        as u(id, count, cause, body, delay)
    where d.id = u.id and d.state = 'pending' and d.lease_epoch = %(epoch)s returning d.id::text"""

_AGAIN: LiteralString = _AGAIN_OLDER.replace(
    "body = ",
    "history = case when u.cause is null then d.history else "
    + HISTORY.replace("{}", "jsonb_build_object('said', u.cause)")
    + " end, body = ",
    1,
)

# Rows `dead` with said_code and said_cause get their dead letters.
BURIED: LiteralString = """
    insert into bridge.dead_letter as l (id, stream, pipeline, destination, event_id, event_seq, event_type,
        event_key, occurred_at, code, cause, attempts)
    select id, stream, pipeline, destination, event_id, event_seq, event_type, event_key, occurred_at,
        said_code, said_cause, greatest(attempts, 1)
    from dead
    on conflict (id) do update set state = 'open', code = excluded.code, cause = excluded.cause,
        attempts = l.attempts + excluded.attempts, retry_at = null, retry_until = null, updated_at = now()
    returning l.id::text"""

_DEAD_OLDER: LiteralString = (
    """
    with dead as (
        update bridge.delivery d set state = 'dead', attempts = d.attempts + 1, settled_at = now(),
            last_error = u.cause, body = coalesce(u.body, d.body), lease_epoch = null, lease_until = null
        from unnest(%(ids)s::uuid[], %(codes)s::text[], %(causes)s::text[], %(bodies)s::jsonb[])
            as u(id, code, cause, body)
        where d.id = u.id and d.state = 'pending' and d.lease_epoch = %(epoch)s
        returning d.*, u.code as said_code, u.cause as said_cause)"""
    + BURIED
)

_DEAD: LiteralString = _DEAD_OLDER.replace(
    "body = ",
    "history = "
    + HISTORY.replace("{}", "jsonb_build_object('said', concat(u.code, ': ', u.cause))")
    + ", body = ",
    1,
)

_EXPIRED: LiteralString = (
    """
    with """
    + _ME
    + """, old as materialized (
        select d.id from bridge.delivery d, me
        where d.destination = %(destination)s and d.state = 'pending' and d.pipeline = %(pipeline)s
          and d.stream = %(stream)s and d.created_at < now() - %(max_age)s * interval '1 second'
          and (d.lease_until is null or d.lease_until < now())
        limit 200 for update of d skip locked
    ), dead as (
        update bridge.delivery d set state = 'dead', settled_at = now(), lease_epoch = null, lease_until = null,
            last_error = coalesce(last_error, %(cause)s)
        from old where d.id = old.id returning d.*, %(code)s as said_code, %(cause)s as said_cause)"""
    + BURIED
)


EXPIRED, EXPIRED_CAUSE = "expired", "it waited longer than the destination's max_age"
"""Code and cause of a message that was never sent in time."""


@dataclass(frozen=True, slots=True)
class Again:
    """Retry after `delay` seconds. cause: None, no attempt was made. left: the fields of the next attempt, where they
    are others than before."""

    id: str
    delay: float
    cause: str | None = None
    left: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Dead:
    """Never again by itself. left: as in Again, for a person's retry."""

    id: str
    code: str
    cause: str
    left: Mapping[str, Any] | None = None


async def settle_sent(connection: AsyncLink, ids: Collection[str], epoch: int) -> set[str]:
    """Mark them sent. Returns those that were still ours."""
    values = {"ids": list(map(UUID, ids)), "epoch": epoch}
    return {str(row[0]) for row in await (await connection.execute(_SENT, values)).fetchall()}


async def settle_again(
    connection: AsyncLink, messages: Sequence[Again], epoch: int, *, keeps: bool = True
) -> set[str]:
    """Make them due later. Returns those that were still ours. keeps: the ledger has bridge.delivery.history."""
    values = {
        "ids": [UUID(one.id) for one in messages],
        "counts": [int(one.cause is not None) for one in messages],
        "causes": [one.cause for one in messages],
        "bodies": [_left(one) for one in messages],
        "delays": [one.delay for one in messages],
        "epoch": epoch,
    }
    return {
        str(row[0])
        for row in await (await connection.execute(_AGAIN if keeps else _AGAIN_OLDER, values)).fetchall()
    }


async def settle_dead(
    connection: AsyncLink, messages: Sequence[Dead], epoch: int, *, keeps: bool = True
) -> set[str]:
    """Mark them dead, and write their dead letters in the same transaction. Returns those that were still ours. keeps:
    as settle_again."""
    values = {
        "ids": [UUID(one.id) for one in messages],
        "codes": [one.code for one in messages],
        "causes": [one.cause for one in messages],
        "bodies": [_left(one) for one in messages],
        "epoch": epoch,
    }
    return {
        str(row[0])
        for row in await (await connection.execute(_DEAD if keeps else _DEAD_OLDER, values)).fetchall()
    }


def _left(message: Again | Dead) -> str | None:
    """The new body; None: it stays."""
    return None if message.left is None else storable(json_text(message.left))


async def expire(
    connection: AsyncLink, stream: str, lane: tuple[str, str], epoch: int, max_age: float
) -> int:
    """Messages of a (pipeline, destination) that waited longer than max_age seconds become dead letters, up to 200 at a
    time. Returns how many."""
    values = {
        "stream": stream,
        "pipeline": lane[0],
        "destination": lane[1],
        "epoch": epoch,
        "max_age": max_age,
        "code": EXPIRED,
        "cause": EXPIRED_CAUSE,
    }
    return len(await (await connection.execute(_EXPIRED, values)).fetchall())


# -- afterwards -----------------------------------------------------------------------------------------

_PRUNE: LiteralString = """
    with old as materialized (
        select d.id from bridge.delivery d
        where d.settled_at < now() - %(keep)s * interval '1 second' and d.stream = %(stream)s
          and d.state <> 'pending'
          and (d.state <> 'dead'
               or not exists (select from bridge.dead_letter l where l.id = d.id and l.state = 'open'))
        limit %(limit)s for update skip locked)
    delete from bridge.delivery d using old where d.id = old.id returning d.id"""


async def prune(connection: AsyncLink, stream: str, keep: float, limit: int = 500) -> int:
    """Delete up to `limit` rows that were settled `keep` seconds ago; a dead row stays until its dead letter is
    settled."""
    values = {"stream": stream, "keep": keep, "limit": limit}
    return len(await (await connection.execute(_PRUNE, values)).fetchall())


_REDELIVER = (
    b"update bridge.delivery set state = 'pending', attempts = 0, created_at = now(), next_attempt_at = now(),"
    b" settled_at = null, lease_epoch = null, lease_until = null"
    b" where id = $1::uuid and state = 'dead' returning id"
)


def redeliver(letter_id: str) -> Statement:
    """Put a dead delivery back: pending, with the same id and body, and a new max_age. Returns a row if there was
    one; no row: this dead letter's unit never became a delivery."""
    return Statement(_REDELIVER, [letter_id.encode()])
