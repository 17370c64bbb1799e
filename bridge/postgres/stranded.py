"""Messages whose destination is not in the configuration any more: renamed, removed, or a table now.

Nothing sends them. A lane's max_age is remembered in bridge.sink, so that they still become dead letters in time. They
are the stream's that wrote them: another stream's destinations are not asked. A person moves them to another
destination (repair/stranded.py) or discards them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, LiteralString, NamedTuple

import psycopg

from bridge.postgres.delivery import BURIED, AsyncLink

NO_DESTINATION = "no_destination"
"""The code of a dead letter whose pipeline or destination the configuration no longer has."""
CAUSE = "its destination is not in the configuration any more, and it waited longer than its max_age"
MAX_AGE_SECONDS = 86400.0
"""Of a destination that no bridge has recorded: the default of `max_age`."""

Unit = tuple[str, str]
"""(pipeline, destination)"""

_HAS_MEMORY: LiteralString = """
    select coalesce(has_table_privilege(to_regclass('bridge.sink'), 'select, insert, update, delete'), false)"""

_REMEMBER: LiteralString = """
    with lane as (
        select * from unnest(%(pipelines)s::text[], %(destinations)s::text[], %(connections)s::text[],
            %(max_ages)s::float8[]) as l(pipeline, destination, connection, max_age)
    ), forgotten as (
        delete from bridge.sink s where s.stream = %(stream)s and s.seen_at < now() - interval '7 days'
            and not exists (select from lane l where (l.pipeline, l.destination) = (s.pipeline, s.destination))
            and not exists (select from bridge.delivery d where d.destination = s.destination
                and d.state = 'pending' and d.pipeline = s.pipeline and d.stream = s.stream)
    )
    insert into bridge.sink as s (stream, pipeline, destination, connection, max_age)
    select %(stream)s, pipeline, destination, connection, max_age from lane
    on conflict (stream, pipeline, destination) do update
        set connection = excluded.connection, max_age = excluded.max_age, seen_at = now()"""


async def remember(connection: AsyncLink, stream: str, lanes: Sequence[tuple[str, str, str, float]]) -> bool:
    """Record (pipeline, destination, connection, max_age in seconds) of each lane. False: the ledger is older than
    bridge.sink."""
    row = await (await connection.execute(_HAS_MEMORY)).fetchone()
    if not row or not row[0]:
        return False
    names = ("pipelines", "destinations", "connections", "max_ages")
    values = {name: [lane[at] for lane in lanes] for at, name in enumerate(names)}
    await connection.execute(_REMEMBER, {"stream": stream, **values})
    return True


class Stranded(NamedTuple):
    """Unsent messages of a unit that nothing sends. expires_in: seconds until the oldest becomes a dead letter."""

    pipeline: str
    destination: str
    messages: int
    max_age: float
    expires_in: float


_FIND = """
    select g.pipeline, g.destination, g.count, m.max_age,
        extract(epoch from g.oldest + m.max_age * interval '1 second' - now())::float8
    from (
        select d.pipeline, d.destination, count(*)::int as count, min(d.created_at) as oldest
        from bridge.delivery d
        where d.state = 'pending' and d.stream = %(stream)s and not exists (
            select from unnest(%(pipelines)s::text[], %(destinations)s::text[]) as k(pipeline, destination)
            where (k.pipeline, k.destination) = (d.pipeline, d.destination))
        group by 1, 2) g
    cross join lateral (select coalesce({remembered}, %(otherwise)s::float8) as max_age) m
    order by 1, 2"""
_REMEMBERED = """(select s.max_age from bridge.sink s
        where s.stream = %(stream)s and (s.pipeline, s.destination) = (g.pipeline, g.destination))"""


def find(connection: psycopg.Connection[Any], stream: str, lanes: Collection[Unit]) -> list[Stranded]:
    """lanes: the units of the stream that are sent."""
    row = connection.execute(_HAS_MEMORY).fetchone()
    query = _FIND.format(remembered=_REMEMBERED if row and row[0] else "null")
    values = {
        "stream": stream,
        "pipelines": [pipeline for pipeline, _ in lanes],
        "destinations": [destination for _, destination in lanes],
        "otherwise": MAX_AGE_SECONDS,
    }
    return [Stranded(*one) for one in connection.execute(query.encode(), values)]


# Two that were destinations at one time wrote their messages of an event in one transaction.
_FORMER: LiteralString = """
    select g.pipeline, g.destination from (
        select distinct d.pipeline, d.destination from bridge.delivery d
        where d.stream = %(stream)s and not exists (
            select from unnest(%(pipelines)s::text[], %(destinations)s::text[]) as k(pipeline, destination)
            where (k.pipeline, k.destination) = (d.pipeline, d.destination))) g
    where not exists (
        select from bridge.delivery theirs join bridge.delivery ours using (stream, event_id, created_at)
        where theirs.stream = %(stream)s and (theirs.pipeline, theirs.destination) = (g.pipeline, g.destination)
            and (ours.pipeline, ours.destination) = (%(pipeline)s, %(destination)s))
    order by 1, 2"""


def former(
    connection: psycopg.Connection[Any], stream: str, unit: Unit, lanes: Collection[Unit]
) -> list[Unit]:
    """The units that the configuration no longer has, and that this one may have been before it was renamed: the
    ledger has their messages, and no event has one of each from the same transaction. lanes: as find()."""
    values = {
        "stream": stream,
        "pipelines": [pipeline for pipeline, _ in lanes],
        "destinations": [destination for _, destination in lanes],
        "pipeline": unit[0],
        "destination": unit[1],
    }
    return [(row[0], row[1]) for row in connection.execute(_FORMER, values)]


# Not while another process dispatches this stream: its configuration may have the destination.
_EXPIRE: LiteralString = (
    """
    with old as materialized (
        select d.id from bridge.delivery d
        where d.destination = %(destination)s and d.state = 'pending' and d.pipeline = %(pipeline)s
          and d.stream = %(stream)s and d.created_at < now() - %(max_age)s * interval '1 second'
          and (d.lease_until is null or d.lease_until < now())
          and not exists (select from bridge.dispatcher p
              where p.name = %(stream)s and p.held_until > now() and p.holder is distinct from %(holder)s)
        limit 500 for update of d skip locked
    ), dead as (
        update bridge.delivery d set state = 'dead', settled_at = now(), lease_epoch = null, lease_until = null,
            last_error = coalesce(last_error, %(cause)s)
        from old where d.id = old.id returning d.*, %(code)s as said_code, %(cause)s as said_cause)"""
    + BURIED
)


def expire(connection: psycopg.Connection[Any], stream: str, found: Stranded, holder: str) -> int:
    """Those that are too old become dead letters, up to 500 at a time. holder: this process, as a dispatcher calls
    itself. Returns how many."""
    values = {
        "stream": stream,
        "pipeline": found.pipeline,
        "destination": found.destination,
        "max_age": found.max_age,
        "holder": holder,
        "code": NO_DESTINATION,
        "cause": CAUSE,
    }
    return len(connection.execute(_EXPIRE, values).fetchall())
