"""A dispatcher's place: one a stream, held by a lease in bridge.dispatcher, with an epoch that fences its claims.

Apart from the queue (delivery.py), which only asks whether the epoch still counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, LiteralString
from uuid import UUID

import psycopg

from bridge.postgres import wire
from bridge.postgres.catalog import connect_target

Connection = psycopg.AsyncConnection[tuple[Any, ...]]

_SESSION = {
    "search_path": "",
    "statement_timeout": "15s",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "30s",
    "synchronous_commit": "on",
    "row_security": "off",
    "timezone": "UTC",
    "datestyle": "ISO,YMD",
    "jit": "off",
    "default_transaction_read_only": "off",
    # The queue's two orders are indexes. A plan made from stale statistics must not sort the whole backlog.
    "enable_seqscan": "off",
    "enable_sort": "off",
    "plan_cache_mode": "force_custom_plan",
}

LEASE_SECONDS = 10.0
"""How long a dispatcher that says nothing keeps its place."""


async def connect(dsn: str, stream: str) -> Connection:
    """A session of the dispatcher. Raises psycopg.OperationalError, and Halt behind a pooler without sessions."""
    name = f"bridge-dispatch/{stream}"
    connection = await psycopg.AsyncConnection.connect(
        wire.complete(dsn, application_name=name), autocommit=True, prepare_threshold=None, connect_timeout=5
    )
    try:
        row = await (await connection.execute("select pg_catalog.pg_backend_pid()")).fetchone()
        if row is None or row[0] != connection.info.backend_pid:  # a pooler: of which kind?
            (await asyncio.to_thread(connect_target, dsn, name)).close()
        await connection.execute(*wire.settings(_SESSION))
    except BaseException:
        await connection.close()
        raise
    return connection


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


async def hold(connection: Connection, stream: str, holder: str) -> int | None:
    """Become the stream's dispatcher: the epoch, or None while another one is."""
    values = {"name": stream, "holder": holder, "lease": LEASE_SECONDS}
    row = await (await connection.execute(_HOLD, values)).fetchone()
    return None if row is None else int(row[0])


async def renew(connection: Connection, stream: str, epoch: int) -> bool:
    """Stay the dispatcher; False: another one took over."""
    values = {"name": stream, "epoch": epoch, "lease": LEASE_SECONDS}
    return await (await connection.execute(_RENEW, values)).fetchone() is not None


async def let_go(connection: Connection, stream: str, epoch: int, claimed: Sequence[str]) -> None:
    """Leave: what was claimed and not settled is due at once, and another dispatcher may come."""
    await connection.execute(_LET_GO, {"name": stream, "epoch": epoch, "ids": list(map(UUID, claimed))})
