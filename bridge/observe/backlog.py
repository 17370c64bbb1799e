"""The backlog that no stream reports: slot and outbox of a stream that is halted or standing by, dead letters of
every target, messages waiting for sinks, and the source's count of repeats.

A running stream reports its own facts. A halted stream reads nothing, and that is when WAL accumulates and events
wait. So this reads the source instead, every few seconds, over one connection to each server.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Literal, LiteralString, Protocol, TypeVar

import psycopg
from psycopg import sql

from bridge.config.several import one_a_source
from bridge.errors import BridgeError
from bridge.log import Log
from bridge.observe.metrics import Metrics
from bridge.observe.samples import Sample, Sampler, write
from bridge.observe.state import StreamSnapshot, StreamState
from bridge.postgres import left_behind as left
from bridge.postgres.connect import Pool
from bridge.postgres.delivery import WAITING
from bridge.postgres.outbox import COUNTS, Outbox
from bridge.postgres.parts import partition_in
from bridge.postgres.profiles import BACKLOG
from bridge.postgres.safe_error import safe_message
from bridge.postgres.whose import Owned

_T = TypeVar("_T")

EVERY_SECONDS = 15.0
SOON_SECONDS = 1.0
"""Until the next look after a reload, or where a stream was halted before it has begun: what waits for it is not
known."""
FRESH_SECONDS = 2.0
"""Most that an answer waits for a look: a command waits 4 s for it, and a server may be away."""
_REST = 4.0
"""Times as long as a look took, before one that somebody asks for: counting a long queue is work for the ledger."""

_SLOT: LiteralString = """
    select s.slot, r.slot_name is not null, coalesce(r.active, false),
           pg_wal_lsn_diff(
               case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end,
               r.restart_lsn)::bigint,
           r.safe_wal_size, s.witness_id
    from outbox.stream s left join pg_catalog.pg_replication_slots r
        on r.slot_name = s.slot and r.database = current_database()
    where s.stream = %s"""

# Rows that the registered floor does not show and that came after the stream's last event: the floor is up
# to a second old, so by itself it would call the last second's events pending. Two walks of the index on
# (xid, seq), each of its first rows only: a whole backlog read here is a core of the source's for seconds.
# The witness' id is a parameter, so that it has the column's own type and finds its index.
_PENDING: LiteralString = """
    with stream as materialized (
        select pg_snapshot_xmax(s.floor) as xmax, array(select pg_snapshot_xip(s.floor)) as xip,
               coalesce((select {seq} from {outbox} where {id} = %(witness)s), 0) as seq
        from outbox.stream s where s.stream = %(stream)s
    ), pending as (
        (select {occurred_at} as at from {outbox}
         where {xid} >= (select xmax from stream) and {seq} > (select seq from stream)
           and {occurred_at} > coalesce(to_timestamp(%(after)s), '-infinity') and {mine}
         order by {xid}, {seq} limit 100)
        union all
        (select {occurred_at} from {outbox}
         where {xid} = any((select xip from stream)::xid8[]) and {seq} > (select seq from stream)
           and {occurred_at} > coalesce(to_timestamp(%(after)s), '-infinity') and {mine}
         order by {xid}, {seq} limit 100)
    )
    select extract(epoch from min(at))::float8 from pending"""

_DEAD: LiteralString = """
    select pipeline, count(*) from bridge.dead_letter where state = 'open' and stream = %s group by pipeline"""


class Plan(Protocol):
    """What it needs to know about a stream."""

    @property
    def stream(self) -> str: ...
    @property
    def rows(self) -> Sequence[str]: ...
    @property
    def source(self) -> str: ...
    @property
    def source_dsn(self) -> str: ...
    @property
    def target_dsn(self) -> str: ...
    @property
    def outbox(self) -> Outbox: ...
    @property
    def publication(self) -> str: ...
    @property
    def family(self) -> frozenset[str]: ...
    @property
    def sinks(self) -> frozenset[tuple[str, str]]: ...
    @property
    def max_retained_wal(self) -> int: ...
    def units(self) -> Iterator[tuple[str, str]]: ...


class BacklogWatch:
    """Looks every EVERY_SECONDS, after a reload, and when it is asked. Values of unreachable servers stay as they
    are; a ledger that is another source's is not read."""

    def __init__(
        self, metrics: Metrics, plans: Callable[[], Sequence[Plan]], owned: Owned, stop: asyncio.Event
    ) -> None:
        self._metrics = metrics
        self._plans = plans
        self._backlog = Backlog(metrics, owned)
        self._stop = stop
        self._asked: list[asyncio.Future[None]] = []
        self._wish = asyncio.Event()
        self._not_before = 0.0  # a time of the loop; of a look that somebody asks for

    async def run(self) -> None:
        """Until `stop` is set."""
        loop = asyncio.get_running_loop()
        stopping = asyncio.create_task(self._stop.wait(), name="backlog-stop")
        try:
            while not self._stop.is_set():
                asked, self._asked = self._asked, []
                self._wish.clear()
                began = loop.time()
                looking = asyncio.create_task(self._look(), name="backlog")
                await asyncio.wait({looking, stopping}, return_when=asyncio.FIRST_COMPLETED)
                looking.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await looking
                self._not_before = loop.time() + _REST * (loop.time() - began)
                for one in asked:
                    if not one.done():
                        one.set_result(None)
                await self._pause(stopping)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._backlog.keep_samples(self._plans(), early=True), FRESH_SECONDS)
        finally:
            stopping.cancel()
            await self._backlog.close()

    async def _look(self) -> None:
        await self._backlog.keep_samples(self._plans())
        await self._backlog.look(self._plans())

    @property
    def sampler(self) -> Sampler:
        return self._backlog.sampler

    async def fresh(self) -> None:
        """Where something is left behind, or dead letters are open: return when that was counted again, or after
        FRESH_SECONDS. A person who has just ended it wants to see so."""
        if not self._metrics.needs_a_person() or self._stop.is_set():
            return
        counted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked.append(counted)
        self._wish.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(counted, FRESH_SECONDS)

    async def _pause(self, stopping: asyncio.Task[bool]) -> None:
        """Until the next look: EVERY_SECONDS, or a reload, or a stream of which nothing is known, or somebody asks."""
        loop = asyncio.get_running_loop()
        known = list(map(id, self._plans()))
        end = loop.time() + EVERY_SECONDS
        wishing = asyncio.create_task(self._wish.wait(), name="backlog-asked")
        try:
            while not stopping.done() and loop.time() < end:
                await asyncio.wait(
                    {stopping, wishing}, timeout=SOON_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                if wishing.done():
                    await asyncio.wait({stopping}, timeout=max(0.0, self._not_before - loop.time()))
                    return
                states = self._metrics.health.streams.values()
                new = any(idle(one.snapshot) and not one.snapshot.pending_known for one in states)
                if new or list(map(id, self._plans())) != known:
                    return
        finally:
            wishing.cancel()


class Backlog:
    """What waits, as told to the metrics. Keeps a connection to each server between its looks. Close it."""

    def __init__(self, metrics: Metrics, owned: Owned) -> None:
        self._metrics = metrics
        self._owned = owned
        self._pools: dict[str, Pool] = {}
        self._repeats: dict[str, dict[str, int]] = {}  # by source, as it answered last
        self.sampler = Sampler(metrics)

    async def close(self) -> None:
        await self._keep(set())

    async def _keep(self, wanted: Collection[str]) -> None:
        for dsn in self._pools.keys() - wanted:
            await self._pools.pop(dsn).close()

    async def keep_samples(self, plans: Sequence[Plan], *, early: bool = False) -> None:
        """The last minute of the streams that this bridge runs, in their ledgers. early: the bridge stops."""
        told = {one.stream: one for one in self.sampler.take(plans, early=early)}
        for plan in plans:
            if plan.stream in told and await self._is_ours(plan):
                await self._ask(plan, "target", partial(_write_sample, told[plan.stream]))

    async def look(self, plans: Sequence[Plan]) -> None:
        """Read once: each idle stream's source, every ledger's dead letters and deliveries, the source's repeats."""
        await self._keep({dsn for plan in plans for dsn in (plan.source_dsn, plan.target_dsn)})
        health = self._metrics.health
        dead: Counter[tuple[str, str]] = Counter()
        waiting: dict[tuple[str, str], tuple[int, float]] = {}
        complete = counted = placed = True
        behind: list[left.LeftBehind] = []
        for plan in plans:
            for row in plan.rows:
                state = health.streams.get(row)
                if state is not None and idle(state.snapshot):
                    await self._ask(plan, "source", partial(_look_at_source, state, row))
            if not await self._is_ours(plan):
                continue
            found = await self._ask(plan, "target", _dead_letters)
            complete = complete and found is not None
            source = self._metrics.label(plan.source)
            dead.update({(source, pipeline): letters for pipeline, letters in (found or {}).items()})
            messages = await self._ask(plan, "target", _waiting)
            counted = counted and messages is not None
            for destination, count, age in messages or ():
                known = waiting.get((source, destination), (0, 0.0))
                waiting[source, destination] = (known[0] + count, max(known[1], age))
            units = await self._ask(plan, "target", _units_left_behind)
            placed = placed and units is not None
            behind += units or []
        if complete:
            self._metrics.set_dead_letters(dead)
        if counted:
            self._metrics.set_waiting(waiting)
        sources = one_a_source(plans)
        told: list[left.LeftBehind] = []
        for plan in sources:
            repeats = await self._ask(plan, "source", _suppressed)
            if repeats is not None:
                self._repeats[plan.source] = repeats
            streams = await self._ask(plan, "source", _left_behind)
            placed = placed and streams is not None
            told += streams or []
        known_repeats = [self._repeats[plan.source] for plan in sources if plan.source in self._repeats]
        if known_repeats:
            health.suppressed = dict(sum(map(Counter, known_repeats), Counter[str]()))
        if placed:
            self._left_behind([*told, *behind])

    def _left_behind(self, found: Sequence[left.LeftBehind]) -> None:
        """What is new is logged as well."""
        known = {(one.kind, one.name) for one in self._metrics.health.left_behind}
        log = Log("bridge.backlog")
        for one in found:
            if (one.kind, one.name) not in known:
                log.warning("left behind", kind=one.kind, name=one.name, message=one.message, fix=one.fix)
        self._metrics.set_left_behind(found)

    async def _is_ours(self, plan: Plan) -> bool:
        """Not as long as it is not known: it has not started, or the stream reports what is wrong."""
        try:
            return await asyncio.to_thread(self._owned, plan.stream, plan.source_dsn, plan.target_dsn)
        except (BridgeError, psycopg.Error, OSError):
            return False

    async def _ask(
        self,
        plan: Plan,
        server: Literal["source", "target"],
        work: Callable[[psycopg.AsyncConnection, Plan], Awaitable[_T]],
    ) -> _T | None:
        """None if the server cannot be reached; the stream reports that itself."""
        dsn = plan.source_dsn if server == "source" else plan.target_dsn
        try:
            if dsn not in self._pools:
                self._pools[dsn] = await Pool(dsn, BACKLOG, plan.stream, least=0).__aenter__()
            async with self._pools[dsn].connection() as connection:
                return await work(connection, plan)
        except (BridgeError, psycopg.Error, OSError) as error:
            log = Log("bridge.backlog")
            log.debug("cannot look", stream=plan.stream, server=server, cause=safe_message(error))
            return None


def idle(stream: StreamSnapshot) -> bool:
    """True if the stream does not read the source now. A starting stream is about to."""
    return stream.reason is not None or stream.phase in ("standby", "halted", "stopped")


async def _look_at_source(
    state: StreamState, stream: str, connection: psycopg.AsyncConnection, plan: Plan
) -> None:
    """stream: its row in the registry."""
    row = await (await connection.execute(_SLOT, [stream])).fetchone()
    if row is None:
        return  # not registered yet: a first start
    slot, exists, active, retained, safe, witness = row
    pending = None
    if {"xid", "seq", "occurred_at"} <= plan.outbox.columns.keys():
        after = {"stream": stream, "witness": witness, "after": state.snapshot.last_event_at}
        query = pending_query(plan.outbox, partition_in(stream))
        found = await (await connection.execute(query, after)).fetchone()
        pending = found[0] if found else None
    if idle(state.snapshot):  # it may be working by now, and its own values are newer
        state.update(
            slot=slot,
            slot_active=active if slot else None,
            slot_retained_bytes=retained if exists else None,
            slot_safe_bytes=safe if exists else None,
            pending_since=pending,
        )


def pending_query(outbox: Outbox, partition: tuple[int, int] | None = None) -> sql.Composed:
    """The commit time of the oldest event that waits for %(stream)s. %(witness)s, %(after)s: the id and time of the
    stream's last event. partition: only of its rows."""
    names = {name: outbox.column(name) for name in ("id", "xid", "seq", "occurred_at")}
    return sql.SQL(_PENDING).format(outbox=outbox.name, mine=outbox.belongs_to(partition), **names)


async def _write_sample(sample: Sample, connection: psycopg.AsyncConnection, _: Plan) -> None:
    await write(connection, sample)


async def _dead_letters(connection: psycopg.AsyncConnection, plan: Plan) -> dict[str, int]:
    return dict(await (await connection.execute(_DEAD, [plan.stream])).fetchall())


async def _waiting(connection: psycopg.AsyncConnection, plan: Plan) -> list[tuple[str, int, float]]:
    """Counting a long backlog may time out; dead letters are reported all the same."""
    return await (await connection.execute(WAITING, [plan.stream])).fetchall()


async def _left_behind(connection: psycopg.AsyncConnection, plan: Plan) -> list[left.LeftBehind]:
    cursor = await connection.execute(left.SOURCE, left.source_parameters(plan.publication, plan.family))
    return left.from_source(await cursor.fetchall())


async def _units_left_behind(connection: psycopg.AsyncConnection, plan: Plan) -> list[left.LeftBehind]:
    parameters = left.target_parameters(plan.stream, plan.family, plan.units(), plan.sinks)
    rows = await (await connection.execute(left.TARGET, parameters)).fetchall()
    return left.from_target(rows, plan.stream, plan.sinks)


async def _suppressed(connection: psycopg.AsyncConnection, _: Plan) -> dict[str, int]:
    return dict(await (await connection.execute(COUNTS)).fetchall())
