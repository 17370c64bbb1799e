"""The streams that run in this process: a worker each, and a dispatcher for each that has messages to send."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING

from bridge.dispatch.schedule import DispatchSpec
from bridge.errors import CannotConnect, ConfigError
from bridge.log import Log
from bridge.observe.metrics import Metrics
from bridge.observe.state import READY_PHASES, StreamSnapshot, StreamState
from bridge.observe.watch import DispatchWatch, StreamWatch
from bridge.postgres.whose import Owned
from bridge.problem import suggestion
from bridge.stream.planned import FailureGuard
from bridge.stream.spec import RelaySpec, StreamSpec, together
from bridge.stream.worker import Worker

if TYPE_CHECKING:  # only a configuration that has sinks pays for their libraries
    from bridge.bus.shared import Buses
    from bridge.dispatch.dispatcher import Dispatchers
    from bridge.stream.relay_worker import RelayWorker

GRACE_SECONDS = 20.0
"""Seconds that SIGTERM waits for batches in flight. The end of the process rolls back those that have not settled."""

_BEGUN_SECONDS = 1.0
_FIRST_BATCH_SECONDS = 0.1
"""How long all else waits for the streams to begin, and for the first batch of one that has. A process runs one thread
at a time: what is imported meanwhile is time of the first row."""


def chosen(plans: Sequence[StreamSpec], only: Collection[str]) -> list[StreamSpec]:
    """The streams that were named, of one over a log all partitions; empty: all. Raises ConfigError for one that the
    file does not have."""
    names = list(dict.fromkeys(name for plan in plans for name in (plan.name, plan.stream)))
    for name in only:
        if name not in names:
            raise ConfigError(f"no stream {name} in this file", hint=suggestion(name, names))
    return [plan for plan in plans if not only or plan.stream in only or plan.name in only]


def _begun(now: StreamSnapshot) -> bool:
    waited = time.time() - now.since >= _FIRST_BATCH_SECONDS
    return now.batches > 0 or now.reason is not None or (now.phase != "starting" and waited)


class Streams:
    """Starts, reloads and ends them. Everything but `plans` is called in the loop."""

    def __init__(
        self,
        metrics: Metrics,
        owned: Owned,
        ended: Callable[[str, BaseException | None], None],
        *,
        guarded: bool,
    ) -> None:
        """ended: called with a stream whose thread has ended, and its error; None: it was asked to. guarded: as
        Daemon."""
        self._metrics = metrics
        self._owned = owned
        self._told = ended
        self._guarded = guarded
        self._workers: dict[str, Worker] = {}
        self._relays: dict[str, RelayWorker] = {}
        self._buses: Buses | None = None
        self._shared: dict[str, StreamSpec] = {}  # empty: not shared
        self._ending: set[str] = set()
        self._together: tuple[list[StreamSpec], list[StreamSpec]] = [], []
        self._sends: Sequence[DispatchSpec] = ()
        self._dispatchers: Dispatchers | None = None
        self._log = Log("bridge.daemon")

    def plans(self) -> list[StreamSpec]:
        """Of what runs here now. From any thread."""
        return [worker.plan for worker in list(self._workers.values())]

    def targets(self) -> list[StreamSpec]:
        """The same, with one plan for the partitions of a target that run here. From any thread."""
        plans = self.plans()
        known, found = self._together
        if len(known) != len(plans) or any(a is not b for a, b in zip(known, plans, strict=True)):
            found = together(plans)
            self._together = plans, found
        return found

    def use(self, plans: Sequence[StreamSpec]) -> None:
        """Run exactly these."""
        wanted = {plan.stream: plan for plan in plans}
        for name in [name for name in self._workers if name not in wanted]:
            self._workers.pop(name).stop()
            self._metrics.health.remove(name)
        for name, plan in wanted.items():
            if name in self._workers:
                self._workers[name].reload(plan)
            else:
                self.start(plan)

    def use_relays(self, plans: Sequence[RelaySpec]) -> None:
        """Run exactly these relays."""
        wanted = {plan.relay: plan for plan in plans}
        for name in [name for name in self._relays if name not in wanted]:
            self._relays.pop(name).stop()
            self._metrics.health.remove(name)
        for name, plan in wanted.items():
            if name in self._relays:
                self._relays[name].reload(plan)
            else:
                self._start_relay(plan)

    def _with_buses(self, plan: StreamSpec | RelaySpec) -> Buses | None:
        if isinstance(plan, StreamSpec) and plan.log is None:
            return None
        if self._buses is None:
            from bridge.bus.shared import Buses  # noqa: PLC0415  only where there is a log

            self._buses = Buses(f"outbox-bridge {socket.gethostname()}")
        return self._buses

    def _start_relay(self, plan: RelaySpec) -> None:
        from bridge.observe.relay_watch import RelayWatch  # noqa: PLC0415  only where there is a log
        from bridge.stream.relay_worker import RelayWorker  # noqa: PLC0415

        loop = asyncio.get_running_loop()

        def ended() -> None:
            loop.call_soon_threadsafe(self._relay_ended, plan.relay)

        state = StreamState(
            plan.relay,
            plan.bus.connection,
            plan.source,
            alive=lambda: plan.relay in self._relays and self._relays[plan.relay].thread.is_alive(),
            max_retained_wal=plan.max_retained_wal,
            is_relay=True,
        )
        worker = RelayWorker(plan, RelayWatch(self._metrics, state), ended, self._with_buses(plan))
        self._relays[plan.relay] = worker
        self._metrics.health.add(state)
        worker.start()

    def _relay_ended(self, relay: str) -> None:
        if relay in self._relays:
            self._told(relay, self._relays[relay].failed)

    def share(self, plans: Sequence[StreamSpec]) -> None:
        """What begin() may start, and what runs here as it is from now on (sharing.py says what runs)."""
        self._shared = {plan.stream: plan for plan in plans}
        for name, worker in self._workers.items():
            if name in self._shared and name not in self._ending:
                worker.reload(self._shared[name])

    def begin(self, stream: str) -> None:
        """Start it, unless it runs."""
        if stream in self._shared and stream not in self._workers:
            self.start(self._shared[stream])
            self._dispatch()

    def end(self, stream: str) -> None:
        """Stop it, if it runs. Its thread settles the batch in flight first; until it has ended, it runs."""
        if stream in self._workers and stream not in self._ending:
            self._ending.add(stream)
            self._workers[stream].stop()
            self._dispatch()

    def runs(self, stream: str) -> bool:
        return stream in self._workers

    def stands_by(self, stream: str) -> bool:
        state = self._metrics.health.streams.get(stream)
        return state is not None and state.snapshot.phase == "standby"

    def cannot_connect(self) -> set[str]:
        """Of those that run here, the ones that reach no server of theirs."""
        return {name for name, now in self._snapshots() if now.reason == CannotConnect.reason}

    def ready(self) -> set[str]:
        """Of those that run here, the ones that work, or would."""
        return {name for name, now in self._snapshots() if now.phase in READY_PHASES and now.reason is None}

    async def begun(self, stop: asyncio.Event) -> None:
        """Wait until each has applied a batch, has nothing to apply or says what is wrong; a second at most."""
        loop = asyncio.get_running_loop()
        end = loop.time() + _BEGUN_SECONDS
        while (
            loop.time() < end and not stop.is_set() and not all(_begun(now) for _, now in self._snapshots())
        ):
            await asyncio.sleep(0.01)

    def _snapshots(self) -> list[tuple[str, StreamSnapshot]]:
        states = self._metrics.health.streams
        return [(name, states[name].snapshot) for name in self._workers if name in states]

    def start(self, plan: StreamSpec) -> None:
        loop = asyncio.get_running_loop()

        def ended() -> None:
            loop.call_soon_threadsafe(self._ended, plan.stream)

        state = StreamState(
            plan.stream,
            plan.connection,
            plan.source,
            alive=lambda: self._alive(plan.stream),
            max_retained_wal=plan.max_retained_wal,
            group=plan.group,
        )
        watch = StreamWatch(self._metrics, state, lambda _: self._nudge(plan.name))
        outlives = partial(self._needed_without, plan.stream)
        guard, buses = FailureGuard(on=self._guarded), self._with_buses(plan)
        worker = Worker(plan, watch, guard, ended, buses, outlives=outlives)
        self._workers[plan.stream] = worker
        self._metrics.health.add(state)
        worker.start()

    def _needed_without(self, stream: str) -> bool:
        """Does another stream work here? Then a fence of this one must not end the process. Shared streams are for
        sharing.py to begin again. From the stream's thread."""
        others = [one for name, one in list(self._workers.items()) if name != stream]
        return not self._shared and any(one.thread.is_alive() and not one.fenced for one in others)

    def _ended(self, stream: str) -> None:
        worker = self._workers.get(stream)
        if worker is None:
            return
        if self._shared:
            del self._workers[stream]
            self._ending.discard(stream)
            self._metrics.health.remove(stream)
            self._dispatch()
        self._told(stream, worker.failed)

    def _alive(self, stream: str) -> bool:
        return stream in self._workers and self._workers[stream].thread.is_alive()

    def dispatch(self, plans: Sequence[DispatchSpec]) -> None:
        """From now on, send the deliveries of these; of shared streams, where they run."""
        self._sends = plans
        self._dispatch()

    def _dispatch(self) -> None:
        here = {worker.plan.name for name, worker in self._workers.items() if name not in self._ending}
        plans = [plan for plan in self._sends if not self._shared or plan.stream in here]
        if plans and self._dispatchers is None:
            from bridge.dispatch.dispatcher import Dispatchers  # noqa: PLC0415  as at TYPE_CHECKING

            self._dispatchers = Dispatchers(DispatchWatch(self._metrics), self._owned)
        if self._dispatchers is not None:
            self._dispatchers.use(plans)

    def _nudge(self, stream: str) -> None:
        """A stream committed deliveries; called from its thread."""
        if self._dispatchers is not None:
            self._dispatchers.nudge(stream)

    async def drain(self) -> None:
        """Stop everything; batches in flight get GRACE_SECONDS."""
        self._sends = ()
        sending = [self._dispatchers.stop()] if self._dispatchers is not None else []
        await asyncio.gather(self._drain(), *sending)

    async def _drain(self) -> None:
        workers: list[Worker | RelayWorker] = [*self._workers.values(), *self._relays.values()]
        for worker in workers:
            worker.stop()
        end = asyncio.get_running_loop().time() + GRACE_SECONDS
        for worker in workers:
            left = max(0.0, end - asyncio.get_running_loop().time())
            await asyncio.to_thread(worker.thread.join, left)
            if worker.thread.is_alive():
                self._log.warning(
                    "grace period is over: batches in flight are rolled back", thread=worker.name
                )
        if self._buses is not None:
            await asyncio.to_thread(self._buses.close)
