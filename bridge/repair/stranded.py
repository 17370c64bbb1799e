"""Messages of a destination that is gone: they become dead letters in time, or a person moves them to another one.

A moved message is a row of the other unit, so that all which asks by unit finds it; what it is sent with is the id that
it had, because a receiver may have seen it. Where the event has a message there already, the old one is discarded: the
event is not told twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, LiteralString
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from bridge.dispatch.schedule import LaneSpec
from bridge.expressions.document import json_text
from bridge.planning.plan import Owner
from bridge.postgres.delivery import holder
from bridge.postgres.queued import NOTED, note
from bridge.postgres.stored import message_fields, storable
from bridge.postgres.stranded import Stranded, Unit, expire, find
from bridge.sinks.joining import DIGEST, IDENTITY
from bridge.sinks.model import SendError
from bridge.stream.spec import StreamSpec

_BATCH = 500


def age(connection: psycopg.Connection, plan: StreamSpec) -> tuple[list[tuple[Stranded, int]], float | None]:
    """What became dead letters because it waited too long for a destination that is gone, and the seconds until more
    will; None: nothing waits so. Raises psycopg.Error."""
    found = find(connection, plan.stream, plan.sinks)
    died = []
    for one in found:
        count = 0
        while one.expires_in <= 0 and (some := expire(connection, plan.stream, one, holder())):
            count += some
        if count:
            died.append((one, count))
    return died, min((one.expires_in for one in found if one.expires_in > 0), default=None)


# -- to another destination -----------------------------------------------------------------------------


@dataclass(slots=True)
class Moved:
    """waiting, letters: unsent messages and open dead letters that were moved. already: discarded, because their event
    has a message there. claimed: being sent by a bridge that still has the destination; claimed_seconds: one that was
    killed keeps them no longer. unfit: code and cause to the number of messages that the other destination cannot
    send."""

    waiting: int = 0
    letters: int = 0
    already: int = 0
    claimed: int = 0
    claimed_seconds: int = 0
    unfit: dict[str, int] = field(default_factory=dict)

    def add(self, more: Moved) -> None:
        """And those."""
        for name in ("waiting", "letters", "already", "claimed"):
            setattr(self, name, getattr(self, name) + getattr(more, name))
        self.claimed_seconds = max(self.claimed_seconds, more.claimed_seconds)
        for why, count in more.unfit.items():
            self.unfit[why] = self.unfit.get(why, 0) + count


@dataclass(frozen=True, slots=True)
class Place:
    """A unit in a stream's ledger. connection: in autocommit."""

    connection: psycopg.Connection[Any]
    owner: Owner
    unit: Unit

    @property
    def stream(self) -> str:
        return self.owner.stream

    def unit_id(self, event_id: str) -> UUID:
        """Of its message about this event."""
        return self.owner.unit_id(event_id, *self.unit)


_ROWS: LiteralString = """
    select d.id, d.event_id, d.body::text, d.state from bridge.delivery d
    where d.destination = %(destination)s and d.pipeline = %(pipeline)s and d.stream = %(stream)s and d.id > %(after)s
        and (d.state = 'pending' and (d.lease_until is null or d.lease_until < now())
            or d.state = 'dead' and exists (select from bridge.dead_letter l where l.id = d.id and l.state = 'open'))
    order by d.id limit %(limit)s for update of d skip locked"""

_CLAIMED: LiteralString = """
    select count(*)::int, coalesce(ceil(extract(epoch from max(d.lease_until) - now())), 0)::int
    from bridge.delivery d where d.destination = %(destination)s and d.pipeline = %(pipeline)s
        and d.stream = %(stream)s and d.state = 'pending' and d.lease_until >= now()"""

_MOVE: LiteralString = (
    """
    update bridge.delivery d set id = u.new, pipeline = %(to_pipeline)s, destination = %(to_destination)s,
        body = u.body::jsonb, next_attempt_at = now(), lease_epoch = null, lease_until = null,
        created_at = case when d.created_at < now() - %(max_age)s * interval '1 second'
            then now() else d.created_at end,
        history = """
    + NOTED
    + """
    from unnest(%(ids)s::uuid[], %(news)s::uuid[], %(bodies)s::text[]) as u(id, new, body) where d.id = u.id"""
)

_MOVE_LETTERS: LiteralString = """
    update bridge.dead_letter l set id = u.new, pipeline = %(to_pipeline)s, destination = %(to_destination)s,
        updated_at = now()
    from unnest(%(ids)s::uuid[], %(news)s::uuid[]) as u(id, new)
    where l.id = u.id and l.state = 'open' and not exists (select from bridge.dead_letter o where o.id = u.new)"""

_GIVE_UP: LiteralString = (
    """
    with gone as (
        update bridge.delivery d set state = 'discarded', settled_at = now(), lease_epoch = null, lease_until = null,
            history = """
    + NOTED
    + """
        where d.id = any(%(ids)s) returning d.id)
    update bridge.dead_letter l set state = 'discarded', retry_at = null, updated_at = now() from gone
    where l.id = gone.id and l.state = 'open'"""
)

_COPY: LiteralString = """
    insert into bridge.delivery (id, stream, pipeline, destination, event_id, event_seq, event_type, event_key,
        occurred_at, body, attempts, last_error, history)
    select %(new)s, %(stream)s, %(pipeline)s, %(destination)s, %(event_id)s, %(event_seq)s, %(event_type)s,
        %(event_key)s, %(occurred_at)s, %(body)s::jsonb, %(attempts)s, %(last_error)s, %(history)s::jsonb
    on conflict (id) do nothing"""


def move(
    old: Place, new: Place, lane: LaneSpec, *, by: str, reason: str | None, dry_run: bool = False
) -> Moved:
    """Unsent messages and open dead letters of `old` are `new`'s now, each with the id that its receiver knows.

    lane: of `new`. Where `new` is in another ledger, each is written there first, so that what is interrupted is
    finished by running it again. Raises psycopg.Error; what was moved before stays moved.
    """
    told = Moved()
    after = UUID(int=0)
    did = f"moved from {'/'.join(old.unit)} to {'/'.join(new.unit)}"
    noted = note(did, by, reason)
    values = {"pipeline": old.unit[0], "destination": old.unit[1], "stream": old.stream}
    while True:
        with old.connection.transaction(force_rollback=dry_run):
            rows = old.connection.execute(_ROWS, {**values, "after": after, "limit": _BATCH}).fetchall()
            if rows:
                after = rows[-1][0]
                _move_rows(rows, old, new, lane, noted=noted, told=told, dry_run=dry_run)
        if len(rows) < _BATCH:
            break
    told.claimed, told.claimed_seconds = old.connection.execute(_CLAIMED, values).fetchone() or (0, 0)
    return told


def _move_rows(
    rows: Sequence[tuple[UUID, str, str, str]],
    old: Place,
    new: Place,
    lane: LaneSpec,
    *,
    noted: Jsonb,
    told: Moved,
    dry_run: bool,
) -> None:
    """In a transaction of the old ledger, which has these rows locked."""
    names = {row[0]: _renamed(row[0], row[1], old, new) for row in rows}
    there = {
        row[0]
        for row in new.connection.execute(
            "select id from bridge.delivery where id = any(%s)", [list(names.values())]
        )
    }
    here = new.connection is old.connection
    moved: dict[UUID, str] = {}
    gone: list[UUID] = []
    letters = 0
    for identity, _, body, state in rows:
        if names[identity] in there:
            told.already += 1
            gone.append(identity)
            continue
        fields = message_fields(body)
        if why := unfit(lane, fields):
            told.unfit[why] = told.unfit.get(why, 0) + 1
            continue
        fields.setdefault(IDENTITY, str(identity))
        moved[identity] = storable(json_text(fields))
        letters += state == "dead"
    told.waiting += len(moved) - letters
    told.letters += letters
    values = {
        "ids": list(moved),
        "news": [names[one] for one in moved],
        "bodies": list(moved.values()),
        "to_pipeline": new.unit[0],
        "to_destination": new.unit[1],
        "max_age": lane.max_age,
        "note": noted,
    }
    if here:
        old.connection.execute(_MOVE_LETTERS, values)
        old.connection.execute(_MOVE, values)
    elif not dry_run:
        _copy(old, new, moved, names)
        gone += moved
    old.connection.execute(_GIVE_UP, {"ids": gone, "note": noted})


def _copy(old: Place, new: Place, bodies: Mapping[UUID, str], names: Mapping[UUID, UUID]) -> None:
    """To another database. A dead letter is pending there: a person asked for it."""
    for row in old.connection.execute(
        "select id, event_id, event_seq, event_type, event_key, occurred_at, attempts, last_error, history::text"
        " from bridge.delivery where id = any(%s)",
        [list(bodies)],
    ).fetchall():
        columns = ("event_id", "event_seq", "event_type", "event_key", "occurred_at", "attempts")
        new.connection.execute(
            _COPY,
            {
                **dict(zip((*columns, "last_error", "history"), row[1:], strict=True)),
                "new": names[row[0]],
                "stream": new.stream,
                "pipeline": new.unit[0],
                "destination": new.unit[1],
                "body": bodies[row[0]],
            },
        )


def _renamed(identity: UUID, event_id: str, old: Place, new: Place) -> UUID:
    """The unit's own id; of a replayed message, whose id is another, one that is made from it."""
    return new.unit_id(event_id if identity == old.unit_id(event_id) else str(identity))


def unfit(lane: LaneSpec, fields: Mapping[str, Any]) -> str:
    """Why this destination cannot send a message with these fields; empty: it can."""
    theirs = {
        name: value for name, value in fields.items() if name not in (DIGEST, IDENTITY) and name[:1] != "_"
    }
    if empty := [group for group in lane.sink.needs() if not any(theirs.get(name) for name in group)]:
        return f"{' and '.join(empty[0])} are empty"
    try:
        lane.sink.message.of(theirs)
    except SendError as error:
        return error.outcome.cause
    return ""
