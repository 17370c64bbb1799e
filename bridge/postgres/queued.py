"""The messages of a ledger as a person asks for them: search, hurry, discard, restore. claims.py has the dispatcher's
own questions.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Literal, LiteralString, NamedTuple

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from bridge.errors import BridgeError
from bridge.postgres.delivery import HISTORY, HURRIED

State = Literal["pending", "sent", "dead", "discarded"]
_PART = 1000
"""Messages read, and changed in one transaction: as many wait as a receiver was away for, and none is locked for
long."""


@dataclass(frozen=True, slots=True)
class Search:
    """Every given condition must hold. unit: (pipeline, destination), None: any of that place. ids: of messages,
    complete or a prefix. cause: the code of the last answer, as `http_503`; older: seconds since it was written."""

    pipeline: str | None = None
    destination: str | None = None
    ids: tuple[str, ...] = ()
    event: str | None = None
    event_type: str | None = None
    key: str | None = None
    cause: str | None = None
    older: float | None = None
    state: State = "pending"

    def where(self, stream: str) -> tuple[sql.Composed, dict[str, Any]]:
        """Conditions on bridge.delivery d."""
        parts: list[sql.Composable] = [sql.SQL("d.stream = %(stream)s"), sql.SQL("d.state = %(state)s")]
        values: dict[str, Any] = {"stream": stream, "state": self.state}
        for column, value in (
            ("pipeline", self.pipeline),
            ("destination", self.destination),
            ("event_id", self.event),
            ("event_type", self.event_type),
            ("event_key", self.key),
        ):
            if value is not None:
                parts.append(sql.SQL("{} = {}").format(sql.Identifier("d", column), sql.Placeholder(column)))
                values[column] = value
        if self.ids:
            parts.append(sql.SQL("d.id::text like any(%(ids)s)"))
            values["ids"] = [f"{each}%" for each in self.ids]
        if self.cause is not None:
            parts.append(sql.SQL("split_part(d.last_error, ':', 1) = %(cause)s"))
            values["cause"] = self.cause
        if self.older is not None:
            parts.append(sql.SQL("d.created_at < now() - %(older)s * interval '1 second'"))
            values["older"] = self.older
        return sql.SQL(" and ").join(parts), values


def keeps_history(connection: psycopg.Connection[Any]) -> bool:
    """False: the ledger is older than 002_sinks.sql."""
    row = connection.execute("select to_regclass('bridge.sink_hold') is not null").fetchone()
    return bool(row and row[0])


def need_history(connection: psycopg.Connection[Any], command: str) -> None:
    """Raise BridgeError if the ledger is older than what the command writes."""
    if not keeps_history(connection):
        raise BridgeError(
            f"`bridge {command}` needs version 2 of the ledger, which keeps who did what with a message",
            reason="ledger_version",
            hint="bridge schema target | psql <target>   (as the owner of the database); then its grants",
        )


def search(
    connection: psycopg.Connection[Any], stream: str, asked: Search, limit: int | None
) -> Generator[dict[str, Any], None, None]:
    """The messages in the order of their events; `behind`: an earlier one of its key must be sent or dead first.
    A part of them at a time, in a transaction that is open until the last or close()."""
    where, values = asked.where(stream)
    history = sql.SQL("d.history" if keeps_history(connection) else "null::jsonb")
    query = sql.SQL(
        "select d.id::text, d.stream, d.pipeline, d.destination, d.event_id, d.event_seq, d.event_type, d.event_key,"
        " d.occurred_at, d.state, d.attempts, d.created_at, d.next_attempt_at, d.last_error, d.settled_at,"
        " d.body::text as body, {history} as history, now() as now,"
        " coalesce(d.lease_until > now(), false) as claimed,"
        " d.state = 'pending' and exists (select from bridge.delivery earlier"
        "   where earlier.destination = d.destination and earlier.event_key = d.event_key"
        "   and earlier.event_seq < d.event_seq and earlier.state = 'pending'"
        "   and earlier.pipeline = d.pipeline and earlier.stream = d.stream) as behind"
        " from bridge.delivery d where {where} order by d.event_seq, d.id limit %(limit)s"
    ).format(history=history, where=where)
    with connection.transaction(), connection.cursor(name="found", row_factory=dict_row) as cursor:
        cursor.itersize = _PART
        yield from cursor.execute(query, {**values, "limit": limit})


def named(connection: psycopg.Connection[Any], stream: str, asked: Search) -> list[tuple[str, str, str]]:
    """(id, pipeline, destination) of the messages, in the order of their events, without their bodies."""
    where, values = asked.where(stream)
    query = sql.SQL(
        "select d.id::text, d.pipeline, d.destination from bridge.delivery d where {} order by d.event_seq, d.id"
    ).format(where)
    return connection.execute(query, values).fetchall()


def states(connection: psycopg.Connection[Any], stream: str, ids: Collection[str]) -> list[tuple[str, str]]:
    """(id, state) of the messages whose ids begin so."""
    query = "select id::text, state from bridge.delivery where stream = %s and id::text like any(%s)"
    return connection.execute(query, [stream, [f"{each}%" for each in ids]]).fetchall()


def counts(connection: psycopg.Connection[Any], stream: str, asked: Search) -> Iterator[tuple[Any, ...]]:
    """(pipeline, destination, code of the last answer, messages, seconds of the oldest), the most frequent first."""
    where, values = asked.where(stream)
    query = sql.SQL(
        "select d.pipeline, d.destination, coalesce(split_part(d.last_error, ':', 1), ''), count(*)::int,"
        " extract(epoch from now() - min(d.created_at))::float8 from bridge.delivery d where {}"
        " group by 1, 2, 3 order by 4 desc, 1, 2, 3"
    ).format(where)
    yield from connection.execute(query, values)


class Kind(NamedTuple):
    """Messages of one kind: what may be asked for by name. code: of the last answer; empty: none yet."""

    pipeline: str
    destination: str
    event_type: str
    code: str
    state: str


def kinds(connection: psycopg.Connection[Any], stream: str) -> list[Kind]:
    """Every kind of which the ledger keeps a message."""
    query = (
        "select distinct pipeline, destination, coalesce(event_type, ''),"
        " coalesce(split_part(last_error, ':', 1), ''), state from bridge.delivery where stream = %s"
    )
    return [Kind(*row) for row in connection.execute(query, [stream])]


def note(did: str, by: str, reason: str | None) -> Jsonb:
    """What a person did, as a message's history keeps it."""
    return Jsonb({"did": did, "by": by, **({"reason": reason} if reason else {})})


NOTED: LiteralString = HISTORY.replace("{}", "%(note)s")
"""A message's history with one `note` more, as SQL."""
_WAITS: LiteralString = "d.state = 'pending' and (d.lease_until is null or d.lease_until < now())"


def _changed(
    connection: psycopg.Connection[Any],
    changes: LiteralString,
    those: LiteralString,
    ids: Collection[str],
    told: Jsonb,
) -> int:
    """Of these messages, change those. Each part is a transaction of its own. Returns how many rows."""
    statement: LiteralString = (
        "update bridge.delivery d set "
        + changes
        + ", history = "
        + NOTED
        + " where d.id = any(%(ids)s::uuid[]) and "
        + those
    )
    every = list(ids)
    parts = (every[at : at + _PART] for at in range(0, len(every), _PART))
    return sum(connection.execute(statement, {"ids": part, "note": told}).rowcount for part in parts)


def hurry(connection: psycopg.Connection[Any], ids: Collection[str], by: str, reason: str | None) -> int:
    """Those that wait are due now, whatever they waited for, and their dispatcher tries who is left alone. Returns how
    many; one that is being sent is left out."""
    return _changed(connection, "next_attempt_at = now()", _WAITS, ids, note(HURRIED, by, reason))


def discard(connection: psycopg.Connection[Any], ids: Collection[str], by: str, reason: str | None) -> int:
    """Those that wait are not sent. Returns how many; one that is being sent is left out."""
    changes: LiteralString = "state = 'discarded', settled_at = now(), lease_epoch = null, lease_until = null"
    return _changed(connection, changes, _WAITS, ids, note("discarded", by, reason))


def restore(connection: psycopg.Connection[Any], ids: Collection[str], by: str, reason: str | None) -> int:
    """Those that were discarded wait again, with a new max_age. One whose event has a dead letter is that letter's:
    `bridge dead restore`. Returns how many."""
    changes: LiteralString = (
        "state = 'pending', settled_at = null, created_at = now(), next_attempt_at = now()"
    )
    those: LiteralString = (
        "d.state = 'discarded'"
        " and not exists (select from bridge.dead_letter l where l.id = d.id and l.state <> 'resolved')"
    )
    return _changed(connection, changes, those, ids, note("restored", by, reason))
