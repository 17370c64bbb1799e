"""The server inside somebody else's loop: ports in use, stopping, slow and greedy clients. Loopback only."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator

import pytest

from bridge.errors import ConfigError
from bridge.observe import server
from bridge.observe.admin import build_admin, serve_admin
from bridge.observe.listen import bind
from bridge.observe.metrics import Metrics
from tests.support.servers import free_port

INSTANCE = "1-00000000000000ab"
LIVEZ = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"


class Client:
    """Connections to the server, closed at the end."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.writers: list[asyncio.StreamWriter] = []

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Waits until somebody listens."""
        async with asyncio.timeout(10):
            while True:
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except ConnectionRefusedError:
                    await asyncio.sleep(0)
                else:
                    self.writers.append(writer)
                    return reader, writer

    async def livez(self) -> bytes:
        """The status line of one request on a connection of its own."""
        reader, writer = await self.connect()
        writer.write(LIVEZ)
        return await status_line(reader)

    async def close(self) -> None:
        for writer in self.writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        self.writers.clear()


async def status_line(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(10):
        return await reader.readline()


async def closed(reader: asyncio.StreamReader) -> None:
    """Returns once the server has closed the connection."""
    async with asyncio.timeout(10):
        try:
            await reader.read()
        except ConnectionResetError:
            return


@contextlib.asynccontextmanager
async def serving(port: int | None = None) -> AsyncIterator[tuple[Client, asyncio.Event]]:
    client, stop = Client(port or free_port()), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        listening = bind("127.0.0.1", client.port, "admin.listen")
        group.create_task(serve_admin(build_admin(Metrics()), listening, stop, instance=INSTANCE))
        try:
            yield client, stop
        finally:
            await client.close()
            stop.set()


def test_it_answers_inside_a_task_group_and_leaves_the_signals_alone() -> None:
    async def story() -> bytes:
        before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
        async with serving() as (client, _):
            line = await client.livez()
            assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
        return line

    assert asyncio.run(story()) == b"HTTP/1.1 200 OK\r\n"


def test_a_port_in_use_is_an_error_that_names_the_address_and_the_key() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError) as raised:
            bind("127.0.0.1", port, "admin.listen")
    assert raised.value.args[0] == f"cannot listen on 127.0.0.1:{port}: Address already in use"
    assert raised.value.hint == (
        f"choose another address in `admin.listen`, or find who listens there: ss -ltnp 'sport = :{port}'"
    )


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.invalid"])
def test_an_address_that_is_not_ours_is_the_same_kind_of_error(host: str) -> None:
    with pytest.raises(ConfigError, match=rf"^cannot listen on {host}:8377: (?!Unknown)") as raised:
        bind(host, 8377, "admin.listen")
    assert raised.value.hint == (
        "choose another address in `admin.listen`: one that this machine has (ip -brief address)"
    )


def test_the_port_is_free_again_after_a_stop_and_after_a_cancellation() -> None:
    async def story() -> None:
        async with serving() as (client, stop):
            await client.livez()
            stop.set()
        bind("127.0.0.1", client.port, "admin.listen").close()
        listening = bind("127.0.0.1", client.port, "admin.listen")
        task = asyncio.create_task(
            serve_admin(build_admin(Metrics()), listening, asyncio.Event(), instance=INSTANCE)
        )
        await client.livez()
        await client.close()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        bind("127.0.0.1", client.port, "admin.listen").close()

    asyncio.run(story())


def test_a_client_that_never_ends_its_header_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.05)

    async def story() -> None:
        async with serving() as (client, _):
            silent, _ = await client.connect()
            dripping, writer = await client.connect()
            writer.write(b"GET /livez HTTP/1.1\r\nx: ")
            again, second = await client.connect()  # a good request, then a header that never ends
            second.write(LIVEZ)
            assert (await status_line(again)).endswith(b"200 OK\r\n")
            second.write(b"GET /livez HTT")
            for reader in (silent, dripping, again):
                await closed(reader)

    asyncio.run(story())


def test_a_client_that_waits_between_two_requests_is_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.05)

    async def story() -> None:
        async with serving() as (client, _):
            reader, writer = await client.connect()
            for _ in range(2):
                writer.write(LIVEZ)
                assert (await status_line(reader)).endswith(b"200 OK\r\n")
                while await status_line(reader) != b"\r\n":
                    pass
                assert await reader.readexactly(3) == b"ok\n"
                with pytest.raises(TimeoutError):  # nothing comes, not even the end of the connection
                    await asyncio.wait_for(reader.read(), 4 * server.HEADER_SECONDS)

    asyncio.run(story())


def test_a_header_that_is_too_large_is_refused() -> None:
    async def story() -> bytes:
        async with serving() as (client, _):
            reader, writer = await client.connect()
            writer.write(b"GET /livez HTTP/1.1\r\nx: " + b"a" * (server.HEADER_BYTES + 1))
            return await status_line(reader)

    assert asyncio.run(story()).startswith(b"HTTP/1.1 431")


def test_idle_connections_give_up_their_place_to_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTIONS", 3)

    async def story() -> None:
        async with serving() as (client, _):
            first, _ = await client.connect()
            for _ in range(5):
                await client.connect()
            assert (await client.livez()).endswith(b"200 OK\r\n")
            await closed(first)

    asyncio.run(story())


def test_the_second_packet_of_an_answer_does_not_wait_for_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    class Seen(server.DeadlineProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            own = transport.get_extra_info("socket")
            seen.append(own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr(server, "DeadlineProtocol", Seen)

    async def story() -> None:
        async with serving() as (client, _):
            await client.livez()

    asyncio.run(story())
    assert all(seen)
    assert seen
