"""The statements of bridge.dead_letter: list, choose, claim, settle. Commands and the retry use them; write.py
inserts dead letters with their batch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString, NamedTuple

import psycopg
from psycopg import sql
from psycopg.rows import class_row, dict_row

from bridge.errors import ConfigError
from bridge.postgres.target import Statement, text_array
from bridge.protocol.events import Event


@dataclass(frozen=True, slots=True)
class Choice:
    """A selection of dead letters; every given condition must hold. ids: complete, or a prefix."""

    ids: tuple[str, ...] = ()
    pipeline: str | None = None
    destination: str | None = None
    cause: str | None = None  # the code: contract, missing_entity, 23502, ...
    state: str = "open"

    def where(self, stream: str) -> tuple[sql.Composed, list[Any]]:
        conditions = [sql.SQL("stream = %s"), sql.SQL("state = %s")]
        values: list[Any] = [stream, self.state]
        if self.ids:
            conditions.append(sql.SQL("id::text like any(%s)"))
            values.append([f"{each}%" for each in self.ids])
        if self.pipeline is not None:
            conditions.append(sql.SQL("pipeline = %s"))
            values.append(self.pipeline)
        if self.destination is not None:
            conditions.append(sql.SQL("destination = %s"))
            values.append(self.destination)
        if self.cause is not None:
            conditions.append(sql.SQL("code = %s"))
            values.append(self.cause)
        return sql.SQL(" and ").join(conditions), values


@dataclass(frozen=True, slots=True)
class Group:
    """Open dead letters with one cause. ids: of the first three, in the order of their events."""

    stream: str
    pipeline: str
    destination: str
    code: str
    cause: str
    letters: int
    parked: int  # of them, those that still retry themselves
    oldest: datetime
    newest: datetime
    ids: list[str]


@dataclass(frozen=True, slots=True)
class Letter:
    """A locked open dead letter: its unit and its stored event."""

    id: str
    pipeline: str
    destination: str
    event: Event | None  # None: neither payload nor raw was kept
    event_id: str = ""
    event_seq: int = 0


def groups(connection: psycopg.Connection, stream: str, choice: Choice) -> list[Group]:
    """Open dead letters by cause, the most frequent first."""
    where, values = choice.where(stream)
    with connection.cursor(row_factory=class_row(Group)) as cursor:
        return cursor.execute(
            sql.SQL(
                "select stream, pipeline, destination, code, cause, count(*)::int as letters,"
                " (count(*) filter (where retry_at is not null))::int as parked,"
                " min(created_at) as oldest, max(created_at) as newest,"
                " (array_agg(id::text order by event_seq))[1:3] as ids"
                " from bridge.dead_letter where {} group by 1, 2, 3, 4, 5 order by 6 desc, 8"
            ).format(where),
            values,
        ).fetchall()


def listed(connection: psycopg.Connection, stream: str, choice: Choice, limit: int) -> list[dict[str, Any]]:
    """The newest of them, without payloads and messages. edited: a person corrected it."""
    where, values = choice.where(stream)
    query = sql.SQL(
        "select id::text, stream, pipeline, destination, state, code, cause, attempts, event_id, event_type,"
        " event_key, created_at, updated_at, retry_at, to_jsonb(l) ->> 'settled_by' as settled_by,"
        " to_jsonb(l) ->> 'edited' is not null as edited"
        " from bridge.dead_letter l where {} order by event_seq desc, id limit %s"
    ).format(where)
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, [*values, limit]).fetchall()


def edit(connection: psycopg.Connection, letter_id: str, payload: str | None, by: str) -> bool:
    """Keep a corrected payload beside the one that was sent; None: forget it. False: it is not open. The ledger has
    the column."""
    return bool(
        connection.execute(
            "update bridge.dead_letter set edited = %s::jsonb, settled_by = %s, updated_at = now()"
            " where id = %s::uuid and state = 'open'",
            [payload, by, letter_id],
        ).rowcount
    )


class Kept(NamedTuple):
    """Dead letters of one kind, in any state: what may be asked for by name."""

    pipeline: str
    destination: str
    code: str
    state: str
    ids: list[str]


def known(connection: psycopg.Connection, stream: str) -> list[Kept]:
    """Every kind of which the ledger keeps a dead letter."""
    query = (
        "select pipeline, destination, code, state, array_agg(id::text) from bridge.dead_letter"
        " where stream = %s group by 1, 2, 3, 4"
    )
    return [Kept(*row) for row in connection.execute(query, [stream])]


def choose(connection: psycopg.Connection, stream: str, choice: Choice) -> list[str]:
    """The ids of the selected dead letters, in the order of their events."""
    where, values = choice.where(stream)
    query = sql.SQL("select id::text from bridge.dead_letter where {} order by event_seq, id").format(where)
    return [row[0] for row in connection.execute(query, values)]


def show(connection: psycopg.Connection, streams: Sequence[str], beginning: str) -> dict[str, Any] | None:
    """One dead letter with all its columns, in any state. Raises ConfigError if the prefix is ambiguous."""
    with connection.cursor(row_factory=dict_row) as cursor:
        found = cursor.execute(
            "select id::text, stream, pipeline, destination, state, code, cause, attempts, event_id, event_seq,"
            " event_xid::text, event_type, event_key, occurred_at, idempotency_key, headers,"
            " payload::text as payload, raw,"
            " (select body::text from bridge.delivery as d where d.id = dead_letter.id) as message,"
            " to_jsonb(dead_letter) ->> 'settled_by' as settled_by, to_jsonb(dead_letter) ->> 'edited' as edited,"
            " (select to_jsonb(d) -> 'history' from bridge.delivery as d where d.id = dead_letter.id) as history,"
            " retry_at, retry_until, created_at, updated_at"
            " from bridge.dead_letter where stream = any(%s) and id::text like %s limit 2",
            [list(streams), f"{beginning}%"],
        ).fetchall()
    if len(found) > 1:
        raise ConfigError(
            f"several dead letters begin with {beginning!r}", hint="give more characters of the id"
        )
    return found[0] if found else None


def due(connection: psycopg.Connection, streams: Collection[str], limit: int = 500) -> dict[str, list[str]]:
    """The parked dead letters that are due, of each stream that has some."""
    rows = connection.execute(
        "select stream, id::text from bridge.dead_letter where stream = any(%s) and state = 'open'"
        " and retry_at <= now() order by event_seq limit %s",
        [list(streams), limit],
    )
    found: dict[str, list[str]] = {}
    for stream, letter in rows:
        found.setdefault(stream, []).append(letter)
    return found


def open_letters(connection: psycopg.Connection, stream: str) -> dict[str, int]:
    """How many are open, by pipeline."""
    rows = connection.execute(
        "select pipeline, count(*) from bridge.dead_letter where stream = %s and state = 'open' group by 1",
        [stream],
    )
    return {row[0]: row[1] for row in rows}


def discard(connection: psycopg.Connection, ids: Sequence[str], by: str = "") -> int:
    """Mark them as not needed. Returns how many were still open. Waits for one that is being retried. by: who, and
    why; a ledger that is older does not keep it."""
    return connection.execute(
        "update bridge.dead_letter set state = 'discarded', retry_at = null, updated_at = now()"
        + _noted(connection, by)
        + " where id = any(%(ids)s::uuid[]) and state = 'open'",
        {"ids": list(ids), "by": by},
    ).rowcount


def restore(connection: psycopg.Connection, ids: Sequence[str], by: str = "") -> int:
    """Open again what was discarded. Returns how many were. by: as `discard`."""
    return connection.execute(
        "update bridge.dead_letter set state = 'open', updated_at = now()"
        + _noted(connection, by)
        + " where id = any(%(ids)s::uuid[]) and state = 'discarded'",
        {"ids": list(ids), "by": by},
    ).rowcount


def _noted(connection: psycopg.Connection, by: str) -> LiteralString:
    row = connection.execute("select to_regclass('bridge.sink_hold') is not null").fetchone()
    return ", settled_by = %(by)s" if by and row and row[0] else ""


# --- statements of a retry's own transaction --------------------------------------------------------

# What a person corrected goes before what was sent; an older ledger has no such column.
_CLAIM = (
    b"select event_id, event_seq::text, coalesce(event_xid::text, '0'), event_type, event_key,"
    b" coalesce(to_jsonb(l) ->> 'edited', payload::text), idempotency_key, headers::text, occurred_at::text,"
    b" case when to_jsonb(l) ->> 'edited' is null then raw end, pipeline, destination"
    b" from bridge.dead_letter l where id = $1::uuid and state = 'open' for update skip locked"
)
_RESOLVE = (
    b"update bridge.dead_letter set state = 'resolved', attempts = attempts + 1, retry_at = null,"
    b" updated_at = now() where id = $1::uuid"
)
# Parked: retried with growing delays, at most a minute, until retry_until; then a person must settle it.
_FAIL = (
    b"update bridge.dead_letter set code = $2, cause = $3, attempts = attempts + 1, updated_at = now(),"
    b" retry_at = case when $4::boolean and retry_at is not null and retry_until > now() then"
    b" now() + least(60, 10 * attempts) * interval '1 second' end where id = $1::uuid"
)

_STILL_DEAD = (
    b"select event_id from bridge.dead_letter where stream = $1 and pipeline = $2 and destination = $3"
    b" and state = 'open' and event_id = any($4::text[])"
)


def still_dead(stream: str, unit: tuple[str, str], event_ids: Sequence[str]) -> Statement:
    """The events whose unit is open."""
    names = [name.encode() for name in (stream, *unit)]
    return Statement(_STILL_DEAD, [*names, text_array([each.encode() for each in event_ids])], binary=True)


def claim(letter_id: str) -> Statement:
    """Lock the dead letter; no row: another retry holds it, or it is settled."""
    return Statement(_CLAIM, [letter_id.encode()])


def resolve(letter_id: str) -> Statement:
    return Statement(_RESOLVE, [letter_id.encode()])


def fail(letter_id: str, code: str, cause: str, *, parked: bool = True) -> Statement:
    """Record the new cause. parked: keep retrying it automatically."""
    return Statement(
        _FAIL, [letter_id.encode(), code.encode(), cause.encode(), b"true" if parked else b"false"]
    )


_DEAD_MESSAGE = b"select body::text from bridge.delivery where id = $1::uuid and state = 'dead' for update"
_REWRITE = b"update bridge.delivery set body = $2::jsonb where id = $1::uuid"


def dead_message(letter_id: str) -> Statement:
    """Lock the message of this dead letter, and its body; no row: its unit never became a message."""
    return Statement(_DEAD_MESSAGE, [letter_id.encode()])


def rewrite_message(letter_id: str, body: str) -> Statement:
    return Statement(_REWRITE, [letter_id.encode(), body.encode()])


def read_letter(letter_id: str, row: Sequence[bytes | None]) -> Letter:
    """A row of `claim`."""
    event_id, seq, xid, event_type, key, payload, idempotency_key, headers, at, raw, pipeline, destination = (
        row
    )
    if raw is not None:
        payload = bytes.fromhex(raw[2:].decode())
    event = None
    if payload is not None:
        event = Event(
            id=event_id or b"",
            seq=seq or b"0",
            xid=xid or b"0",
            type=event_type or b"",
            key=key,
            payload=payload,
            idempotency_key=idempotency_key,
            headers=headers,
            occurred_at=at,
        )
    return Letter(
        letter_id,
        (pipeline or b"").decode(),
        (destination or b"").decode(),
        event,
        (event_id or b"").decode(),
        int(seq or b"0"),
    )
