"""What is at the other end of a sink: an HTTP server that answers as told, and remembers what came.

Raw asyncio in a thread of its own, because most of what it must do no HTTP server would: answer a byte at a
time, or cut the connection after it has read everything. `python -m tests.support.receiver [PORT]` runs one
that says 200 to everything and prints each body: a Slack to look at.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

_PHRASES = {200: "OK", 302: "Found", 400: "Bad Request", 429: "Too Many Requests", 500: "Server Error"}


@dataclass(frozen=True)
class Received:
    """One request, complete. Header names in lower case."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def identity(self) -> str:
        """The stable id, whatever the vendor calls it."""
        return self.headers.get("webhook-id") or self.headers.get("idempotency-key", "")


@dataclass(frozen=True)
class Reply:
    """What to answer. hang: say nothing; cut: reset after the request was read; drip: a byte every 50 ms; after: so
    many seconds."""

    status: int = 200
    body: bytes = b"ok"
    headers: Mapping[str, str] = field(default_factory=dict)
    hang: bool = False
    cut: bool = False
    drip: bool = False
    after: float = 0.0


class Receiver:
    """On 127.0.0.1. `replies` are used up first, one a request; then `always`, or what `decide` returns."""

    def __init__(self, port: int = 0, on_request: Callable[[Received], None] = lambda _: None) -> None:
        self.always = Reply()
        self.replies: list[Reply] = []
        self.decide: Callable[[Received], Reply | None] = lambda _: None
        self._requests: list[Received] = []
        self._news = threading.Condition()
        self._on_request = on_request
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._accepted: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="receiver", daemon=True)
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._accept, "127.0.0.1", port))
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    @property
    def requests(self) -> list[Received]:
        """Everything that came, in order of its completion."""
        with self._news:
            return list(self._requests)

    def wait(self, count: int, deadline: float = 30.0) -> list[Received]:
        """Until `count` requests have come; all of them."""
        return self.wait_for(lambda found: len(found) >= count, deadline)

    def wait_for(self, condition: Callable[[list[Received]], bool], deadline: float = 30.0) -> list[Received]:
        """Until the condition holds of what came."""
        with self._news:
            held = self._news.wait_for(lambda: condition(self._requests), deadline)
            found = list(self._requests)
        assert held, f"not within {deadline:.0f} s; {len(found)} requests: {[one.path for one in found][:20]}"
        return found

    def close(self) -> None:
        self._call(self._shut_down())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _shut_down(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._accepted:  # also of a task that was cancelled before its first step
            writer.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._accepted.add(writer)
        task = self._loop.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                received = await _read(reader)
                with self._news:
                    reply = self.replies.pop(0) if self.replies else self.decide(received) or self.always
                    self._requests.append(received)
                    self._news.notify_all()
                self._on_request(received)
                await _answer(writer, reply)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, OSError):
            pass
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in head[1:] if line)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(head[0].split(" ")[1], headers, body)


async def _answer(writer: asyncio.StreamWriter, reply: Reply) -> None:
    await asyncio.sleep(reply.after)
    if reply.hang:
        await asyncio.Event().wait()
    if reply.cut:
        plain = writer.transport.get_extra_info("socket")
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        raise ConnectionResetError
    lines = [f"HTTP/1.1 {reply.status} {_PHRASES.get(reply.status, 'Status')}"]
    lines += [f"{name}: {value}" for name, value in reply.headers.items()]
    head = ("\r\n".join([*lines, f"content-length: {len(reply.body)}", "", ""])).encode()
    if not reply.drip:
        writer.write(head + reply.body)
        await writer.drain()
        return
    for byte in head + reply.body:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.05)


def main(arguments: list[str]) -> None:
    """A receiver to look at, until interrupted."""

    def show(received: Received) -> None:
        sys.stdout.write(f"{received.path} {received.identity} {received.body.decode(errors='replace')}\n")
        sys.stdout.flush()

    receiver = Receiver(int(arguments[0]) if arguments else 0, show)
    sys.stdout.write(f"listening on {receiver.url}\n")
    sys.stdout.flush()
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        receiver.close()


if __name__ == "__main__":
    main(sys.argv[1:])
