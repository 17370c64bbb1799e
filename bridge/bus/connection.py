"""One connection to NATS for code that does not run on asyncio.

    bus = Bus(settings, "outbox_bridge relay")
    bus.connect(timeout=10)                        # CannotConnect, Halt
    info = bus.call(lambda js: js.stream_info("orders"), doing="look at stream orders")
    done = bus.submit(lambda js: js.publish("orders.a", b"..."), doing="publish to orders", subject="orders.a")
    bus.close()

nats-py runs on an event loop in a thread of its own. What is asked of it is a function that is given the JetStream
context and makes a coroutine, so that nothing of nats-py is made outside of that thread. (In that thread, `await`
what is wanted instead of `call`.) A lost connection comes back by itself, subscriptions too; `on_lost` and `on_back`
are called from the thread. Every error is a BridgeError.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import random
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from bridge.bus import advice
from bridge.bus.settings import MINIMUM_VERSION, BusSettings
from bridge.errors import BridgeError, CannotConnect, ConfigError, Retry

if TYPE_CHECKING:
    from bridge.bus.publisher import Publisher

T = TypeVar("T")

CALL_SECONDS = 10.0
"""A call that is given no other limit. JetStream answers in milliseconds; an election of a leader takes 2 to 5 s."""

_VIOLATIONS_KEPT = 100


class Bus:
    """Thread-safe. Importing it loads no nats-py; `connect` does."""

    def __init__(
        self,
        settings: BusSettings,
        name: str,
        *,
        on_lost: Callable[[], None] | None = None,
        on_back: Callable[[], None] | None = None,
    ) -> None:
        """name: what the server's lists of connections show."""
        self.settings = settings
        self.name = name
        self.on_lost = on_lost
        self.on_back = on_back
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._client: Any = None
        self._jetstream: Any = None
        self._violations: deque[tuple[float, str, str]] = deque(maxlen=_VIOLATIONS_KEPT)
        self._watching: dict[str, set[asyncio.Future[None]]] = {}
        self._publisher: Publisher | None = None
        self._starting = threading.Lock()
        self._opening = asyncio.Lock()
        self.pending = 0
        """Calls that have not been answered."""

    # -- open and close ------------------------------------------------------------------------------------

    def connect(self, timeout: float = CALL_SECONDS) -> None:
        """Connect, unless it is connected, and check the server's version. Raises CannotConnect, or Halt."""
        _needs_library()
        opening = asyncio.run_coroutine_threadsafe(self._ensure_open(timeout), self._started())
        try:
            opening.result(timeout + 5)
        except BaseException:
            opening.cancel()
            raise

    def check_jetstream(self) -> None:
        """Raises Halt, with the line that is missing in the server's file, where JetStream is not enabled; Retry where
        nothing answers although it should."""
        try:
            self.call(lambda js: js.account_info(), doing="look at JetStream")
        except Retry as error:
            # The node's own greeting; of a cluster, another node may have it, and then something answers.
            if error.reason == advice.AWAY and not self._client._server_info.get("jetstream"):
                raise advice.no_jetstream(self.settings, account=False) from None
            raise

    @property
    def connected(self) -> bool:
        """Is there a connection at this moment?"""
        return self._client is not None and bool(self._client.is_connected)

    @property
    def max_payload(self) -> int:
        """Bytes of a message's headers and payload that the server takes. Only after `connect`."""
        return int(self._client.max_payload)

    @property
    def clustered(self) -> bool:
        """Is the server a node of a cluster?"""
        return self._client is not None and bool(self._client._server_info.get("cluster"))

    @property
    def server(self) -> str:
        """host:port of the node that it is connected to; empty while there is none."""
        url = self._client.connected_url if self.connected else None
        return url.netloc.rpartition("@")[2] if url is not None else ""

    @property
    def server_version(self) -> str:
        return str(self._client._server_info.get("version", "")) if self._client is not None else ""

    @property
    def client(self) -> Any:
        """nats-py's client, for coroutines that run in this bus's thread."""
        return self._client

    @property
    def jetstream(self) -> Any:
        """Its JetStream context, for the same."""
        return self._jetstream

    def soon(self, what: Callable[[], object]) -> None:
        """Call it in the thread, unless that has ended."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(what)

    def use(self, settings: BusSettings) -> None:
        """Log in with these from the next login on: a secret was replaced. The servers stay."""
        self.settings = settings
        if self._client is not None:
            self._client.log_in_with(settings)

    def close(self, timeout: float = 5.0) -> None:
        """End the connection and its thread. Calls that wait fail with Retry."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        self._loop = self._thread = None
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(self._shut(), loop).result(timeout)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout)

    # -- calls ---------------------------------------------------------------------------------------------

    def call(
        self,
        make: Callable[[Any], Awaitable[T]],
        *,
        doing: str,
        subject: str = "",
        timeout: float = CALL_SECONDS,
    ) -> T:
        """Run a coroutine that is made from the JetStream context, and wait. doing: what it does, for the error's text
        (`look at stream orders`). subject: what it publishes to, so that a refusal is noticed at once. Raises
        BridgeError."""
        return self.submit(make, doing=doing, subject=subject, timeout=timeout).result()

    def submit(
        self,
        make: Callable[[Any], Awaitable[T]],
        *,
        doing: str,
        subject: str = "",
        timeout: float = CALL_SECONDS,
    ) -> concurrent.futures.Future[T]:
        """The same without waiting."""
        loop = self._loop
        if loop is None or self._jetstream is None:
            failed: concurrent.futures.Future[T] = concurrent.futures.Future()
            failed.set_exception(self._away(doing))
            return failed
        return asyncio.run_coroutine_threadsafe(self._run(make, doing, subject, timeout), loop)

    def publishing(
        self, work: Callable[[Publisher], Awaitable[T]], timeout: float = CALL_SECONDS
    ) -> concurrent.futures.Future[T]:
        """Run `work` with the publisher, without waiting; connects first where it is not connected yet. The future has
        BridgeErrors, or what `work` raises."""
        _needs_library()

        async def connected() -> T:
            await self._ensure_open(timeout)
            if self._publisher is None:
                from bridge.bus.publisher import Publisher  # noqa: PLC0415  nats-py is an extra

                self._publisher = Publisher(self)
            return await work(self._publisher)

        return asyncio.run_coroutine_threadsafe(connected(), self._started())

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run something of longer duration in the thread; its errors are its own. Raises Retry before `connect`."""
        if self._loop is None:
            coroutine.close()
            raise self._away("run a task")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def _run(self, make: Callable[[Any], Awaitable[T]], doing: str, subject: str, timeout: float) -> T:
        began = time.monotonic()
        self.pending += 1
        task = asyncio.ensure_future(make(self._jetstream))
        refused = self._watch(subject)
        try:
            either: set[asyncio.Future[Any]] = {task, refused}
            done, _ = await asyncio.wait(either, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if task in done:
                return task.result()
            raise self.explained(TimeoutError(), doing, subject, since=began)  # noqa: TRY301
        except asyncio.CancelledError:  # close()
            raise self._away(doing) from None
        except BridgeError:
            raise
        except Exception as error:
            raise self.explained(error, doing, subject, since=began) from error
        finally:
            self.pending -= 1
            self._unwatch(subject, refused)
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task

    def explained(self, error: BaseException, doing: str, subject: str, *, since: float) -> BridgeError:
        """The BridgeError of what failed. since: when it began, by time.monotonic()."""
        silent = isinstance(error, TimeoutError | asyncio.TimeoutError)
        for when, about, what in reversed(self._violations):
            # A refused request gets no answer; the refusal itself names no request.
            if when >= since and (about == subject or (silent and not subject) or self._is_inbox(about)):
                shown = f"{self.settings.inbox}.>" if self._is_inbox(about) else about
                return advice.not_permitted(self.settings, what, shown)
        return advice.problem(self.settings, error, doing)

    def _is_inbox(self, subject: str) -> bool:
        return subject.startswith(f"{self.settings.inbox}.")

    def _away(self, doing: str) -> BridgeError:
        return Retry(
            f"NATS (connections.{self.settings.connection}): {doing}: not connected",
            reason=advice.AWAY,
            hint="the bridge connects again by itself; if this continues: bridge doctor checks each connection",
        )

    # -- in the thread -------------------------------------------------------------------------------------

    def _start(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        ready = threading.Event()

        def run() -> None:
            asyncio.set_event_loop(loop)
            loop.call_soon(ready.set)
            try:
                loop.run_forever()
            finally:
                loop.run_until_complete(loop.shutdown_asyncgens())
                loop.close()

        self._thread = threading.Thread(target=run, name=f"nats {self.settings.connection}", daemon=True)
        self._thread.start()
        ready.wait()
        return loop

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            self._loop = self._loop or self._start()
            return self._loop

    async def _ensure_open(self, timeout: float) -> None:
        async with self._opening:
            if self._client is None or self._client.is_closed:
                await self._open(timeout)

    async def _open(self, timeout: float) -> None:
        from bridge.bus.client import BusClient  # noqa: PLC0415  nats-py is an extra

        servers = list(self.settings.servers)
        random.shuffle(servers)
        end = time.monotonic() + timeout
        failure: BridgeError | None = None
        for number, server in enumerate(servers):
            left = (end - time.monotonic()) / (len(servers) - number)
            if left <= 0:
                break
            client = BusClient(self.settings, self._violated)
            try:
                others = [other for other in servers if other != server]
                await asyncio.wait_for(
                    client.open(
                        server,
                        others,
                        self.name,
                        left,
                        error_cb=_ignore,
                        disconnected_cb=self._lost,
                        reconnected_cb=self._back,
                    ),
                    left + 1,
                )
            except Exception as error:
                with contextlib.suppress(Exception):
                    await asyncio.wait_for(client.close(), 1)
                failure = advice.cannot_connect(self.settings, server, error, client._server_info)
                continue
            version = str(client._server_info.get("version", "0"))
            if _numbers(version) < MINIMUM_VERSION:
                await client.close()
                raise advice.too_old(self.settings, version)
            self._client = client
            self._jetstream = client.jetstream(domain=self.settings.domain, timeout=CALL_SECONDS)
            return
        raise failure or CannotConnect(f"NATS (connections.{self.settings.connection}): no answer")

    async def _shut(self) -> None:
        if self._client is not None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self._client.flush(2), 3)
            with contextlib.suppress(Exception):
                await self._client.close()
        current = asyncio.current_task()
        rest = [task for task in asyncio.all_tasks() if task is not current]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _lost(self) -> None:
        if self._publisher is not None:
            self._publisher.lost()
        if self.on_lost is not None and self._loop is not None:
            self.on_lost()

    async def _back(self) -> None:
        if self.on_back is not None:
            self.on_back()

    def _violated(self, subject: str, what: str) -> None:
        self._violations.append((time.monotonic(), subject, what))
        if self._publisher is not None:
            self._publisher.refused(subject)
        for waiting in self._watching.get(subject, ()):
            if not waiting.done():
                waiting.set_result(None)

    def _watch(self, subject: str) -> asyncio.Future[None]:
        refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if subject:
            self._watching.setdefault(subject, set()).add(refused)
        return refused

    def _unwatch(self, subject: str, refused: asyncio.Future[None]) -> None:
        watching = self._watching.get(subject)
        if watching is not None:
            watching.discard(refused)
            if not watching:
                del self._watching[subject]


async def _ignore(_: Exception) -> None:
    """nats-py would print it; the calls that it concerns fail with it."""


def _numbers(version: str) -> tuple[int, ...]:
    found = []
    for part in version.split(".")[:2]:
        digits = "".join(character for character in part if character.isdigit())
        found.append(int(digits or 0))
    return tuple(found)


def _needs_library() -> None:
    try:
        import nats  # noqa: F401, PLC0415
    except ImportError:
        raise ConfigError(
            "a connection of type nats needs the nats-py library", hint="pip install 'outbox-bridge[scale]'"
        ) from None
