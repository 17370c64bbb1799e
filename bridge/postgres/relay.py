"""What relays and the streams that they serve say at the source: outbox.relay, and columns of outbox.stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import LiteralString

import psycopg

from bridge.errors import Halt, StandBy
from bridge.postgres.replication import LIFE
from bridge.protocol.events import Lsn, format_lsn, parse_lsn
from bridge.protocol.facts import Registration, RelayFacts

_READ: LiteralString = (
    "select incarnation, partitions, publication, ready, session from outbox.relay where relay = %s"
)

_FIRST: LiteralString = """
    insert into outbox.relay (relay, incarnation, partitions, publication, ready, session)
    values (%(relay)s, %(incarnation)s, %(partitions)s, %(publication)s, %(ready)s, %(session)s)
    on conflict do nothing"""

_SAVE: LiteralString = """
    update outbox.relay set incarnation = %(incarnation)s, publication = %(publication)s, ready = %(ready)s,
        session = %(session)s, updated_at = now()
    where relay = %(relay)s and session = %(holder)s and incarnation = %(before)s and partitions = %(partitions)s"""

# A stream that begins with another relay or incarnation has confirmed nothing of it.
_PLACE: LiteralString = """
    update outbox.stream set relay = %(relay)s, incarnation = %(incarnation)s,
        confirmed = case when (relay, incarnation) is not distinct from (%(relay)s::text, %(incarnation)s::int)
            then confirmed end
    where stream = %(stream)s and session = %(session)s"""

_CONFIRM: LiteralString = """
    update outbox.stream set confirmed = %(lsn)s::pg_lsn
    where stream = %(stream)s and session = %(session)s and relay is not null
        and confirmed is distinct from %(lsn)s::pg_lsn"""

_APPLIED: LiteralString = """
    select stream, confirmed::text from outbox.stream where relay = %s and incarnation = %s"""

_SESSION: LiteralString = "select session from outbox.relay where relay = %s and incarnation = %s"


INCARNATION: LiteralString = ", (select incarnation from outbox.relay where relay = %(relay)s)"
"""A column of a look at the source."""

_PLACED: LiteralString = "select relay, incarnation, confirmed::text from outbox.stream where stream = %s"


def life_of(connection: psycopg.Connection) -> str:
    """Which run of the server this is."""
    row = connection.execute(LIFE).fetchone()
    return str(row[0]) if row else ""


def read_relay(connection: psycopg.Connection, relay: str) -> RelayFacts | None:
    """The relay's row; None: it has never begun. Raises Halt where the source is of an older release."""
    try:
        row = connection.execute(_READ, [relay]).fetchone()
    except psycopg.errors.UndefinedTable:
        raise Halt(
            "the source has no table outbox.relay, which scale.log needs",
            reason="outbox_missing",
            hint="bridge install",
        ) from None
    return None if row is None else RelayFacts(*row)


def save_relay(
    connection: psycopg.Connection, relay: str, before: RelayFacts | None, after: RelayFacts
) -> None:
    """Write the row that `before` says, flushed. Raises StandBy where it has changed since."""
    with connection.transaction():
        connection.execute("set local synchronous_commit = local")
        written = connection.execute(
            _FIRST if before is None else _SAVE,
            {
                "relay": relay,
                "incarnation": after.incarnation,
                "partitions": after.partitions,
                "publication": after.publication,
                "ready": after.ready,
                "session": after.session,
                "holder": before.session if before else None,
                "before": before.incarnation if before else None,
            },
        ).rowcount
    if not written:
        raise StandBy(f"relay {relay} was taken over by another one")


def place(connection: psycopg.Connection, registration: Registration) -> None:
    """Say whose frames a stream applies. Within the transaction that writes its row."""
    connection.execute(
        _PLACE,
        {
            "relay": registration.relay,
            "incarnation": registration.incarnation or None,
            "stream": registration.stream,
            "session": registration.session,
        },
    )


def placed(connection: psycopg.Connection, registration: Registration) -> Registration:
    """With what `place` and `confirm` have written."""
    relay, incarnation, confirmed = connection.execute(_PLACED, [registration.stream]).fetchone() or (
        None,
        None,
        None,
    )
    return replace(
        registration,
        relay=relay,
        incarnation=incarnation or 0,
        confirmed=None if confirmed is None else parse_lsn(confirmed),
    )


def confirm(connection: psycopg.Connection, stream: str, session: str, lsn: Lsn) -> None:
    """Say how far the relay's slot may be confirmed for this stream."""
    connection.execute(_CONFIRM, {"lsn": format_lsn(lsn), "stream": stream, "session": session})


def applied(
    connection: psycopg.Connection, relay: str, incarnation: int
) -> tuple[str, Mapping[str, Lsn | None]]:
    """Who holds the relay's row ("": its incarnation is another), and what its streams have confirmed."""
    row = connection.execute(_SESSION, [relay, incarnation]).fetchone()
    rows = connection.execute(_APPLIED, [relay, incarnation]).fetchall()
    found = {stream: None if lsn is None else parse_lsn(lsn) for stream, lsn in rows}
    return (str(row[0]) if row else ""), found


_LAGS: LiteralString = """
    select stream, case when confirmed is not null
        then greatest(0, pg_wal_lsn_diff(pg_current_wal_flush_lsn(), confirmed))::bigint end
    from outbox.stream where relay = %s and incarnation = %s order by length(stream), stream"""


def lags_of(connection: psycopg.Connection, relay: str, incarnation: int) -> dict[str, int | None]:
    """By partition, the WAL that its relay's slot retains for it at most; None: it reads the table."""
    return dict(connection.execute(_LAGS, [relay, incarnation]).fetchall())
