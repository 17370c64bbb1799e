"""The dispatchers of a process: each holds one ledger's place, wakes its lanes, tidies up, begins anew after a fault.

They share one HTTP client and one pacer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from functools import partial

import psycopg

from bridge.attempts import Backoff, Retries
from bridge.dispatch.lane import Lane
from bridge.dispatch.schedule import DispatchSpec, DispatchWatcher, Pacer
from bridge.errors import BridgeError, CannotConnect, Halt, Retry, Verdict, verdict_of
from bridge.postgres import delivery as queue
from bridge.postgres import versions
from bridge.postgres.connect import Pool
from bridge.postgres.profiles import DISPATCH
from bridge.postgres.safe_error import safe_message
from bridge.postgres.stranded import remember
from bridge.postgres.whose import Owned
from bridge.sinks.http import HttpClient
from bridge.sinks.model import Http

POLL_SECONDS = 0.25
KEEP_SECONDS = 7 * 86400.0
"""Seconds that settled rows are kept."""
_RENEW_SECONDS = 3.0
_TIDY_SECONDS = 60.0
_STAND_BY_SECONDS = 1.0
_RECONNECT = Backoff(first=0.25, longest=5.0)
_DRAIN_SECONDS = 10.0


class _PlaceLost(Exception):
    """Another dispatcher has taken over."""


class Dispatcher:
    """Sends one stream's deliveries until told to stop."""

    def __init__(
        self, plan: DispatchSpec, http: Http, pacer: Pacer, watcher: DispatchWatcher, owned: Owned
    ) -> None:
        self.plan = plan
        self._owned = owned
        self._http = http
        self._pacer = pacer
        self._watcher = watcher
        self._stop = asyncio.Event()
        self._nudged = asyncio.Event()
        self._holder = queue.holder()
        self._said = ""

    def nudge(self) -> None:
        """Deliveries were committed. Called in the loop."""
        self._nudged.set()

    def stop(self) -> None:
        """Send the claimed messages, claim nothing more, and stop."""
        self._stop.set()
        self._nudged.set()

    async def run(self) -> None:
        """Session after session; after every fault it starts with the lease again."""
        retries = Retries(_RECONNECT)
        loop = asyncio.get_running_loop()
        async with Pool(self.plan.dsn, DISPATCH, self.plan.stream, most=2) as pool:
            while not self._stop.is_set():
                try:
                    async with pool.connection() as connection:
                        began = loop.time()
                        try:
                            await self._session(pool, connection)
                        except (psycopg.Error, OSError):
                            await connection.close()  # the pool opens another
                            raise
                        finally:
                            retries.ran(loop.time() - began)
                except (BridgeError, psycopg.Error, OSError) as error:
                    self._trouble(error)
                    await self._sleep(retries.failed())
                except _PlaceLost:
                    self._watcher.log("warning", "dispatcher lease lost", stream=self.plan.stream)

    async def _session(self, pool: Pool, connection: queue.AsyncLink) -> None:
        epoch = await self._place(connection)
        if epoch is None:
            return
        self._said = ""
        self._watcher.works(self.plan.stream)
        self._watcher.log("info", "dispatching", stream=self.plan.stream, epoch=epoch)
        keeps = await self._remember(connection)
        lanes = [
            Lane(
                lane,
                stream=self.plan.stream,
                epoch=epoch,
                connection=connection,
                http=self._http,
                pacer=self._pacer,
                watcher=self._watcher,
                stop=self._stop,
                keeps=keeps,
            )
            for lane in self.plan.lanes
        ]
        await self._look(connection, lanes, keeps=keeps)
        try:
            async with asyncio.TaskGroup() as group:
                keeping = [
                    group.create_task(self._renew(connection, epoch, lanes), name="dispatch renew"),
                    group.create_task(self._tidy(pool, epoch, lanes), name="dispatch tidy"),
                ]
                working = [group.create_task(lane.run(), name=f"lane {lane.plan.name}") for lane in lanes]
                await self._wake(connection, lanes, keeps=keeps)
                await asyncio.wait(working, timeout=_DRAIN_SECONDS)
                claimed = [one for lane in lanes for one in lane.claimed]
                for task in (*keeping, *working):
                    task.cancel()
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        await queue.let_go(connection, self.plan.stream, epoch, claimed)

    async def _place(self, connection: queue.AsyncLink) -> int | None:
        """Wait for the lease; None: told to stop."""
        soon = 0.05
        while not self._stop.is_set():
            await self._refuse_newer(connection)
            if not await self._is_ours():
                # Soon at first: the stream may begin, and the file change, at any moment.
                self._watcher.works(self.plan.stream)
                await self._sleep(soon)
                soon = min(2 * soon, _STAND_BY_SECONDS)
                continue
            epoch = await queue.hold(connection, self.plan.stream, self._holder)
            if epoch is not None:
                return epoch
            if self._said != "standing by":
                self._said = "standing by"
                self._watcher.log("info", "dispatcher stands by", stream=self.plan.stream)
            self._watcher.works(self.plan.stream)
            await self._sleep(_STAND_BY_SECONDS)
        return None

    async def _is_ours(self) -> bool:
        """Another source may have a stream of the same name in this target, whose messages we must not send: nothing is
        sent before our source has been asked, once a process."""
        plan = self.plan
        return await asyncio.to_thread(self._owned, plan.stream, plan.source_dsn, plan.dsn)

    async def _remember(self, connection: queue.AsyncLink) -> bool:
        """What the destinations are, for the day when one of them is gone. False: the ledger is older."""
        lanes = [(one.pipeline, one.destination, one.connection, one.max_age) for one in self.plan.lanes]
        keeps = await remember(connection, self.plan.stream, lanes)
        if not keeps:
            self._watcher.log(
                "warning",
                "ledger is older",
                stream=self.plan.stream,
                message="it does not keep the max_age of removed destinations, nor each message's answers",
                fix="bridge schema target | psql <target>   (as the owner of the database); then its grants",
            )
        return keeps

    async def _refuse_newer(self, connection: queue.AsyncLink) -> None:
        """Raises Halt where a newer release has migrated the ledger."""
        try:
            row = await (await connection.execute(versions.NEWER_LEDGER)).fetchone()
        except (psycopg.errors.UndefinedTable, psycopg.errors.InsufficientPrivilege):
            return  # as versions.newer
        if row is not None:
            raise versions.halt(versions.told("target", int(row[0]), str(row[1])))

    async def _wake(self, connection: queue.AsyncLink, lanes: Sequence[Lane], *, keeps: bool) -> None:
        """Look for due messages every POLL_SECONDS and at every nudge, until told to stop."""
        while not self._stop.is_set():
            self._nudged.clear()
            await self._look(connection, lanes, keeps=keeps)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._nudged.wait(), POLL_SECONDS)
        for lane in lanes:
            lane.wake()

    async def _look(self, connection: queue.AsyncLink, lanes: Sequence[Lane], *, keeps: bool) -> None:
        """Tell each lane whether messages are due, and what a person has paused."""
        names = [lane.plan.name for lane in lanes]
        alone = [lane.alone for lane in lanes]
        states = await queue.look(connection, self.plan.stream, names, alone, keeps=keeps)
        for lane, state in zip(lanes, states, strict=True):
            lane.pause(state.paused)
            lane.hold(state.holds)
            lane.hurry(state.hurried_at)
            if state.due:
                lane.wake()

    async def _renew(self, connection: queue.AsyncLink, epoch: int, lanes: Sequence[Lane]) -> None:
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            for lane in lanes:
                lane.tell()
            await self._refuse_newer(connection)
            if not await queue.renew(connection, self.plan.stream, epoch):
                raise _PlaceLost

    async def _tidy(self, pool: Pool, epoch: int, lanes: Sequence[Lane]) -> None:
        """From time to time, over a second connection, so that claims and lease renewals do not wait for it."""
        while True:
            with contextlib.suppress(CannotConnect):  # no room for a second one: the next time
                async with pool.connection() as connection:
                    await self._tidied(connection, epoch, lanes)
            await asyncio.sleep(_TIDY_SECONDS)

    async def _tidied(self, connection: queue.AsyncLink, epoch: int, lanes: Sequence[Lane]) -> None:
        """Expire messages past max_age and prune settled rows, in small batches with pauses."""
        for lane in lanes:
            while count := await queue.expire(
                connection, self.plan.stream, lane.plan.name, epoch, lane.plan.max_age
            ):
                for _ in range(count):
                    self._watcher.delivered(lane.plan, "dead", 0.0)
                await asyncio.sleep(POLL_SECONDS)
        while await queue.prune(connection, self.plan.stream, KEEP_SECONDS):
            await asyncio.sleep(POLL_SECONDS)

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)

    def _trouble(self, error: BridgeError | psycopg.Error | OSError) -> None:
        told = error if isinstance(error, BridgeError) else _told(error)
        self._watcher.troubled(self.plan.stream, told)
        if self._said != str(told):
            self._said = str(told)
            self._watcher.log("warning", "dispatcher fault", reason=told.reason, message=str(told.args[0]))


def _told(error: psycopg.Error | OSError) -> BridgeError:
    """The BridgeError for an error of the dispatcher's session."""
    message = safe_message(error)
    if isinstance(error, OSError) or (isinstance(error, psycopg.OperationalError) and error.sqlstate is None):
        return CannotConnect(
            f"the ledger of the deliveries: {message}", hint="bridge doctor checks each connection"
        )
    if verdict_of(error.sqlstate) is Verdict.RETRY:
        return Retry(f"{message} (SQLSTATE {error.sqlstate})")
    return Halt(
        f"deliveries cannot be claimed: {message} (SQLSTATE {error.sqlstate})",
        reason="privilege_missing" if error.sqlstate == "42501" else "server_refused",
        hint="the dispatcher needs the grants at the end of `bridge schema target`; it retries",
    )


class Dispatchers:
    """Starts, restarts and stops. Everything but `nudge` is called in the loop."""

    def __init__(self, watcher: DispatchWatcher, owned: Owned) -> None:
        self._watcher = watcher
        self._owned = owned
        self._loop = asyncio.get_running_loop()
        self._http = HttpClient()
        self._pacer = Pacer()
        self._running: dict[str, tuple[Dispatcher, asyncio.Task[None]]] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    def use(self, plans: Sequence[DispatchSpec]) -> None:
        """Run these plans: a changed dispatcher restarts after the old one has settled its claims."""
        wanted = {plan.stream: plan for plan in plans}
        for stream in [*self._running]:
            if wanted.get(stream) != self._running[stream][0].plan:
                dispatcher, task = self._running.pop(stream)
                dispatcher.stop()
                self._leaving.add(task)
                task.add_done_callback(self._leaving.discard)
        for stream, plan in wanted.items():
            if stream not in self._running:
                dispatcher = Dispatcher(plan, self._http, self._pacer, self._watcher, self._owned)
                task = self._loop.create_task(dispatcher.run(), name=f"dispatch {stream}")
                task.add_done_callback(partial(self._ended, stream))
                self._running[stream] = dispatcher, task

    def _ended(self, stream: str, task: asyncio.Task[None]) -> None:
        """A dispatcher ends only when told to; a defect is logged, and the others continue."""
        if not task.cancelled() and task.exception() is not None:
            self._watcher.log("error", "defect", stream=stream, error=type(task.exception()).__name__)
            running = self._running.pop(stream, None)
            if running is not None:
                self._loop.call_later(5.0, self._again, running[0].plan)

    def _again(self, plan: DispatchSpec) -> None:
        if not self._loop.is_closed() and plan.stream not in self._running:
            self.use([*(running.plan for running, _ in self._running.values()), plan])

    def nudge(self, stream: str) -> None:
        """A stream committed deliveries. Called from its thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._nudge, stream)

    def _nudge(self, stream: str) -> None:
        if stream in self._running:
            self._running[stream][0].nudge()

    async def stop(self) -> None:
        """Settle the claimed messages, stop, and close the client."""
        tasks = [task for _, task in self._running.values()]
        for dispatcher, _ in self._running.values():
            dispatcher.stop()
        if pending := {*tasks, *self._leaving}:
            await asyncio.wait(pending)
        await self._http.close()
