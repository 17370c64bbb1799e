"""Every dispatcher of the process, with the one HTTP client and the one pacer they share."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from bridge.core.delivery import Pacer
from bridge.dispatch.dispatcher import Dispatcher
from bridge.dispatch.plan import DispatchPlan, DispatchWatcher
from bridge.sinks.http import HttpClient


class Dispatchers:
    """Starts, restarts and stops. Everything but `nudge` is called in the loop."""

    def __init__(self, watcher: DispatchWatcher) -> None:
        self._watcher = watcher
        self._loop = asyncio.get_running_loop()
        self._http = HttpClient()
        self._pacer = Pacer()
        self._running: dict[str, tuple[Dispatcher, asyncio.Task[None]]] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    def use(self, plans: Sequence[DispatchPlan]) -> None:
        """Run these: what has changed begins anew, once the old one has settled what it had claimed."""
        wanted = {plan.stream: plan for plan in plans}
        for stream in [*self._running]:
            if wanted.get(stream) != self._running[stream][0].plan:
                dispatcher, task = self._running.pop(stream)
                dispatcher.stop()
                self._leaving.add(task)
                task.add_done_callback(self._leaving.discard)
        for stream, plan in wanted.items():
            if stream not in self._running:
                dispatcher = Dispatcher(plan, self._http, self._pacer, self._watcher)
                task = self._loop.create_task(dispatcher.run(), name=f"dispatch {stream}")
                task.add_done_callback(partial(self._ended, stream))
                self._running[stream] = dispatcher, task

    def _ended(self, stream: str, task: asyncio.Task[None]) -> None:
        """A dispatcher ends only when told to; a defect is told and the others go on."""
        if not task.cancelled() and task.exception() is not None:
            self._watcher.log("error", "defect", stream=stream, error=type(task.exception()).__name__)
            running = self._running.pop(stream, None)
            if running is not None:
                self._loop.call_later(5.0, self._again, running[0].plan)

    def _again(self, plan: DispatchPlan) -> None:
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
        """Settle what was claimed, end, and close the client."""
        tasks = [task for _, task in self._running.values()]
        for dispatcher, _ in self._running.values():
            dispatcher.stop()
        if pending := {*tasks, *self._leaving}:
            await asyncio.wait(pending)
        await self._http.close()
