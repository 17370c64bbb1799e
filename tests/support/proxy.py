"""A TCP proxy that breaks connections in the ways networks do, and loses the answer to a COMMIT.

An asyncio loop in a thread of its own; every method is called from the test's thread and has taken
effect when it returns. Connect through `proxy.dsn` (sslmode=disable: it reads the protocol).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Literal

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.wire import Conversation, Messages, Predicate, Startup

Direction = Literal["up", "down"]  # up: client to server


class LostAnswer:
    """A COMMIT whose answer is to be lost, and the news that it was."""

    def __init__(self, predicate: Predicate, nth: int) -> None:
        self.predicate = predicate
        self.remaining = nth
        self._happened = threading.Event()

    @property
    def happened(self) -> bool:
        return self._happened.is_set()

    def wait(self, deadline: float = 30.0) -> None:
        """Until the server has committed and the client was cut off; AssertionError otherwise."""
        assert self._happened.wait(deadline), f"no commit was lost within {deadline:.0f} s"

    def due(self) -> bool:
        """One more matching commit was seen: is it the one?"""
        self.remaining -= 1
        if self.remaining == 0:
            self._happened.set()
        return self.remaining == 0


class _Connection:
    def __init__(self, writers: dict[Direction, asyncio.StreamWriter]) -> None:
        self.writers = writers  # by where the bytes go: "up" to the server, "down" to the client
        self.half_open = False

    def reset(self, *directions: Direction) -> None:
        """RST, not FIN."""
        for direction in directions or ("up", "down"):
            transport = self.writers[direction].transport
            plain = transport.get_extra_info("socket")
            if plain is not None:
                with contextlib.suppress(OSError):
                    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()


class FaultProxy:
    """In front of the server that `dsn` names."""

    def __init__(self, dsn: str) -> None:
        parameters = conninfo_to_dict(dsn)
        self._upstream = (str(parameters["host"]), int(parameters["port"] or 5432))
        self._latency = 0.0
        self._rate: float | None = None
        self._blackhole = asyncio.Event()
        self._cut: dict[Direction, int] = {}
        self._lost: LostAnswer | None = None
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepted: set[asyncio.StreamWriter] = set()
        self._reservation = socket.socket()
        self._reservation.bind(("127.0.0.1", 0))
        self._reservation.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # keeps the port while refusing
        self.port: int = self._reservation.getsockname()[1]
        self.dsn = make_conninfo(
            dsn, host="127.0.0.1", port=self.port, sslmode="disable", gssencmode="disable", connect_timeout=5
        )
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault proxy", daemon=True)
        self._thread.start()
        self._call(self._listen())

    # -- faults; each stays until clear() ---------------------------------------------------------------

    def latency(self, seconds: float) -> None:
        """Delay every chunk, each way."""
        self._latency = seconds

    def rate(self, bytes_per_second: float) -> None:
        """Let no more than this through, each way and connection."""
        self._rate = bytes_per_second

    def refuse(self) -> None:
        """Close the port: new connections are refused; present ones live."""
        self._call(self._close_port())

    def blackhole(self) -> None:
        """Accept and acknowledge, forward nothing, say nothing."""
        self._soon(self._blackhole.set)

    def cut_after(self, size: int, direction: Direction = "down") -> None:
        """Reset the connection over which the `size`-th byte from now passes."""
        self._soon(lambda: self._cut.__setitem__(direction, size))

    def reset_all(self) -> int:
        """Reset every connection, both ways; how many there were."""

        def reset() -> int:
            for connection in self._connections:
                connection.reset()
            return len(self._connections)

        return int(self._soon(reset))

    def half_open(self) -> int:
        """The server's side is reset, the client's stays open and silent: it cannot know."""

        def half() -> int:
            for connection in self._connections:
                connection.half_open = True
                connection.reset("up")
            return len(self._connections)

        return int(self._soon(half))

    def lose_commit_answer(self, contains: bytes | Predicate = b"", nth: int = 1) -> LostAnswer:
        """Let the nth commit from now reach the server, wait until the server has answered it, swallow
        the answer and reset the client. Counted are transactions that had a statement (its SQL, or its
        bound parameters) with `contains` in it: explicit COMMIT or implicit at Sync, not rollbacks."""
        predicate = contains if callable(contains) else lambda text: contains in text
        self._lost = LostAnswer(predicate, nth)
        return self._lost

    def clear(self) -> None:
        """No more faults. What a blackhole swallowed stays lost: its connections are reset."""
        self._latency, self._rate, self._lost = 0.0, None, None

        def clear() -> None:
            self._cut.clear()
            if self._blackhole.is_set():
                self._blackhole.clear()
                for connection in self._connections:
                    connection.reset()
            for connection in self._connections:
                if connection.half_open:
                    connection.reset()

        self._soon(clear)
        self._call(self._listen())

    @property
    def connections(self) -> int:
        """How many are open."""
        return int(self._soon(lambda: len(self._connections)))

    def close(self) -> None:
        self._call(self._shut_down())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self._reservation.close()

    # -- the loop's side --------------------------------------------------------------------------------

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def _soon(self, work: Callable[[], Any]) -> Any:
        async def run() -> Any:
            return work()

        return self._call(run())

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(
                self._accept, "127.0.0.1", self.port, reuse_address=True
            )

    async def _close_port(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _shut_down(self) -> None:
        await self._close_port()
        for connection in list(self._connections):
            connection.reset()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._accepted:  # also of a task that was cancelled before its first step
            writer.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._accepted.add(writer)
        task = self._loop.create_task(self._carry(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection(*self._upstream)
        except OSError:
            writer.transport.abort()
            return
        connection = _Connection({"up": up_writer, "down": writer})
        self._connections.add(connection)
        tap = _Tap(self, connection)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, connection, "up", tap.client_sends))
                group.create_task(self._pump(up_reader, connection, "down", tap.server_sends))
        except* (OSError, _Cut):
            pass
        finally:
            connection.reset() if connection.half_open else self._hang_up(connection)
            self._connections.discard(connection)

    def _hang_up(self, connection: _Connection) -> None:
        for writer in connection.writers.values():
            writer.close()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        connection: _Connection,
        direction: Direction,
        tap: Callable[[bytes], bytes],
    ) -> None:
        writer = connection.writers[direction]
        while True:
            try:
                data = await reader.read(65536)
            except OSError:
                data = b""
            if not data:
                if connection.half_open and direction == "down":
                    await asyncio.Event().wait()  # the client's side stays open until clear() or close()
                raise _Cut
            if self._latency:
                await asyncio.sleep(self._latency)
            if self._rate:
                await asyncio.sleep(len(data) / self._rate)
            if self._blackhole.is_set() or connection.half_open:
                continue
            data = self._cut_here(connection, direction, data)
            writer.write(tap(data))
            await writer.drain()

    def _cut_here(self, connection: _Connection, direction: Direction, data: bytes) -> bytes:
        left = self._cut.get(direction)
        if left is None:
            return data
        self._cut[direction] = left - len(data)
        if left > len(data):
            return data
        del self._cut[direction]
        connection.reset()
        raise _Cut


class _Cut(Exception):
    """This connection has ended."""


class _Tap:
    """Reads both directions of one connection and holds back the answer that is to be lost."""

    def __init__(self, proxy: FaultProxy, connection: _Connection) -> None:
        self._proxy = proxy
        self._connection = connection
        self._startup: Startup | None = Startup()
        self._single_bytes = 0
        self._up, self._down = Messages(), Messages()
        self._conversation = Conversation(self._interesting)
        self._held = b""

    def _interesting(self, text: bytes) -> bool:
        lost = self._proxy._lost
        return lost is not None and lost.remaining > 0 and lost.predicate(text)

    def client_sends(self, data: bytes) -> bytes:
        rest: bytes | None = data
        if self._startup is not None:
            before = self._startup.negotiations
            rest = self._startup.feed(data)
            self._single_bytes += self._startup.negotiations - before
            if rest is None:
                return data
            self._startup = None
        for kind, message in self._up.feed(rest or b""):
            self._conversation.ask(kind, message)
        return data

    def server_sends(self, data: bytes) -> bytes:
        through = data[: self._single_bytes]
        data = data[self._single_bytes :]
        self._single_bytes -= len(through)
        for kind, message in self._down.feed(data):
            self._held += message
            committed = self._conversation.answer(kind, message)
            lost = self._proxy._lost
            if committed and lost is not None and lost.due():
                self._connection.reset()
                raise _Cut
            if not self._conversation.suspect or committed is not None:
                through, self._held = through + self._held, b""
        return through
