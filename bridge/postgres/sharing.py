"""Membership and claims of bridges that share a file: session advisory locks on each stream's target.

For each stream there are two locks, whose keys are made of its name. Every bridge that is willing to run it holds the
shared one, and the bridge that runs it the exclusive one. A lock ends with its session, so there is nothing to tidy up
and no clock to agree on: pg_locks says who is there, pg_stat_activity what his process is called and when he last said
something. protocol/sharing.py decides.

A process that is frozen, or a machine that is gone, can keep its session. It is ended after SILENT_SECONDS without a
word, and what it was doing with it. That is liveness only: whatever such a process still sends is refused by the fence.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2s
from typing import Any, LiteralString

import psycopg

from bridge.postgres.connect import connect
from bridge.postgres.delivery import AsyncLink
from bridge.postgres.ledger import BUSY, EVICT
from bridge.postgres.profiles import SHARE, SOURCE

LOOK_SECONDS = 0.5
"""Between two looks. A stream that is handed over waits for one of them."""

SILENT_SECONDS = 3.0
"""Six looks: a bridge that has said nothing for so long does not work, and another one begins within 5 s."""

_LOOK: LiteralString = """
    select l.key, l.claims, l.pid, a.application_name, l.pid = pg_backend_pid(),
        coalesce(clock_timestamp() - a.state_change > %(silent)s * interval '1 second', false)
            and a.usename = current_user
    from (select (classid::int8 << 32) | objid::int8 as key, mode = 'ExclusiveLock' as claims, pid
          from pg_catalog.pg_locks
          where locktype = 'advisory' and objsubid = 1 and granted
            and database = (select oid from pg_catalog.pg_database where datname = current_database())) l
    join pg_catalog.pg_stat_activity a on a.pid = l.pid
    where l.key = any(%(keys)s::int8[])"""

# Asked again here: it may have said something since the look.
_END_SILENT: LiteralString = """
    select pg_terminate_backend(pid) from pg_catalog.pg_stat_activity
    where pid = any(%(pids)s) and usename = current_user and pid <> pg_backend_pid()
      and starts_with(application_name, 'bridge-share/')
      and clock_timestamp() - state_change > %(silent)s * interval '1 second'"""

_END_READER: LiteralString = """
    select pg_terminate_backend(r.active_pid)
    from outbox.stream s join pg_catalog.pg_replication_slots r on r.slot_name = s.slot
    where s.stream = %s and r.database = current_database() and r.active
      and pg_has_role(current_user, (select usesysid from pg_catalog.pg_stat_activity where pid = r.active_pid),
          'usage')"""


def _key(kind: str, stream: str) -> int:
    """A 64-bit key of pg_advisory_lock()."""
    digest = blake2s(f"outbox-bridge {kind}\n{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def willing_key(stream: str) -> int:
    """Of the shared lock."""
    return _key("willing", stream)


def claim_key(stream: str) -> int:
    """Of the exclusive lock."""
    return _key("claim", stream)


@dataclass(frozen=True, slots=True)
class Member:
    """A bridge. name: made up when its process starts; host and pid: of the process, as it says."""

    name: str
    host: str = ""
    pid: int | None = None

    def part(self) -> str:
        """For the application_name, of which Postgres keeps 63 bytes: the host comes last."""
        return f"{self.name}/{self.pid}/{self.host}"


def this_process() -> Member:
    """A member of its own for each call."""
    return Member(os.urandom(4).hex(), socket.gethostname(), os.getpid())


def _member(application_name: str, backend: int) -> Member:
    """Whose session this is. One that somebody else has taken, by hand or through a pooler, is its backend's."""
    words = application_name.split("/", 3)
    if len(words) == 4 and words[0] == "bridge-share" and words[2].isdecimal():
        return Member(words[1], words[3], int(words[2]))
    return Member(f"backend {backend}")


@dataclass(frozen=True, slots=True)
class Seen:
    """One look at one target. ours: the streams whose locks this session holds. silent: the backends that say nothing
    any more, and the streams that each claims."""

    members: dict[str, Member] = field(default_factory=dict)
    willing: dict[str, set[str]] = field(default_factory=dict)
    claims: dict[str, str] = field(default_factory=dict)
    our_willing: set[str] = field(default_factory=set)
    our_claims: set[str] = field(default_factory=set)
    silent: dict[int, set[str]] = field(default_factory=dict)


def _values(streams: Iterable[str]) -> dict[str, Any]:
    keys = [key for stream in streams for key in (willing_key(stream), claim_key(stream))]
    return {"keys": keys, "silent": SILENT_SECONDS}


def _seen(rows: Sequence[tuple[Any, ...]], streams: Iterable[str]) -> Seen:
    named = {key(stream): stream for stream in streams for key in (willing_key, claim_key)}
    seen = Seen()
    for key, claims, backend, application_name, ours, silent in rows:
        stream, member = named[key], _member(application_name or "", backend)
        seen.members[member.name] = member
        if claims:
            seen.claims[stream] = member.name
        else:
            seen.willing.setdefault(stream, set()).add(member.name)
        if ours:
            (seen.our_claims if claims else seen.our_willing).add(stream)
        if silent:
            seen.silent.setdefault(backend, set()).update({stream} if claims else ())
    return seen


def look_once(target: psycopg.Connection, streams: Sequence[str]) -> Seen:
    """For commands, which hold no lock."""
    return _seen(target.execute(_LOOK, _values(streams)).fetchall(), streams)


def who_claims(target_dsn: str, streams: Sequence[str]) -> Seen:
    """The same over a connection of its own. Raises CannotConnect, Halt, psycopg.Error."""
    with connect(target_dsn, SHARE, "status") as target:
        return look_once(target, streams)


class ClaimSession:
    """The session of one target that holds this bridge's locks there. Every method is one statement, and raises
    psycopg.Error."""

    def __init__(self, link: AsyncLink, streams: Sequence[str]) -> None:
        self._link = link
        self._streams = streams

    async def look(self) -> Seen:
        cursor = await self._link.execute(_LOOK, _values(self._streams))
        return _seen(await cursor.fetchall(), self._streams)

    async def claim(self, stream: str) -> bool:
        """False: another one was faster."""
        row = await self._row("select pg_try_advisory_lock(%s)", [claim_key(stream)])
        return bool(row[0])

    async def release(self, stream: str) -> None:
        await self._row("select pg_advisory_unlock(%s)", [claim_key(stream)])

    async def be_willing(self, stream: str, *, willing: bool) -> None:
        """Nobody takes this key's exclusive lock, so it is had at once."""
        if willing:
            await self._row("select pg_try_advisory_lock_shared(%s)", [willing_key(stream)])
        else:
            await self._row("select pg_advisory_unlock_shared(%s)", [willing_key(stream)])

    async def end_silent(self, silent: dict[int, set[str]]) -> None:
        """End these sessions, and the working sessions of the streams that they claim."""
        values = {"pids": [*silent], "silent": SILENT_SECONDS}
        ended = await (await self._link.execute(_END_SILENT, values)).fetchall()
        if ended:
            for stream in set().union(*silent.values()):
                await self._link.execute(_positional(EVICT), [_working(stream)])

    async def busy(self, stream: str) -> bool:
        """Has a working session of this stream said something lately?"""
        row = await self._row(_positional(BUSY), [_working(stream), str(SILENT_SECONDS)])
        return bool(row[0])

    async def _row(self, query: LiteralString | bytes, values: Sequence[object]) -> tuple[Any, ...]:
        row = await (await self._link.execute(query, values)).fetchone()
        return row or (None,)


def _working(stream: str) -> str:
    """The prefix of the application_name of a stream's working sessions (stream/checkpoint.py)."""
    return f"bridge/{stream}/".encode()[:63].decode(errors="ignore")


def _positional(query: bytes) -> bytes:
    """A statement of the ledger, which is written for libpq, for psycopg."""
    return query.replace(b"%", b"%%").replace(b"$1", b"%s::text").replace(b"$2", b"%s::text")


def reach(source_dsn: str) -> None:
    """Log in and out. Raises CannotConnect, Halt, psycopg.Error."""
    connect(source_dsn, SOURCE, "reach").close()


def end_reader(source_dsn: str, stream: str) -> bool:
    """End whoever reads the slot of a stream that is ours now: a walsender notices only after wal_sender_timeout that
    its bridge is gone. Raises CannotConnect, psycopg.Error."""
    with connect(source_dsn, SOURCE, f"share/{stream}") as source:
        return bool(source.execute(_END_READER, [stream]).fetchall())
