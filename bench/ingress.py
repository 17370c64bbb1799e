"""Requests a second through the ingress beside one commit a request, on one server, in one run.

`python -m bench.ingress [seconds]`. Both sides answer HTTP with the same server and the same checks; the one
beside it commits each request's event by itself, on a pool of as many connections as there are clients.
Clients are a process of their own and keep their connections open.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import multiprocessing
import resource
import socket
import statistics
import sys
import time

import psycopg
import psycopg_pool

from bridge.demo.servers import Cluster, Workspace
from bridge.ingress import store
from bridge.ingress.app import Ingress
from bridge.ingress.settings import IngressSettings, Keys
from bridge.ingress.store import Item
from bridge.ingress.writer import StoreOutcome
from bridge.observe.listen import bind
from bridge.postgres.schema import source_sql
from bridge.serving import serve_ingress

CLIENTS = 32
PAYLOAD = {
    "customer_id": "cus_1",
    "metric": "api-calls",
    "limit": 100000,
    "used": 95210,
    "plan": "pro",
    "note": "x" * 240,
}


class OneByOne:
    """A commit a request: what the writer is compared with."""

    def __init__(self, dsn: str) -> None:
        self.pool = psycopg_pool.AsyncConnectionPool(
            dsn, min_size=CLIENTS, max_size=CLIENTS, open=False, kwargs={"autocommit": True}
        )

    async def put(self, items: list[Item]) -> list[StoreOutcome]:
        [item] = items
        async with self.pool.connection() as connection:
            cursor = await connection.execute(
                "select outbox.emit(%s, %s::jsonb, %s)::text",
                [item.type, item.payload.decode(), item.idempotency_key],
            )
            row = await cursor.fetchone()
        return [store.Stored(row[0] if row else "")]

    async def run(self) -> None:
        await self.pool.open()
        try:
            await asyncio.Event().wait()
        finally:
            await self.pool.close()


def serve_side(dsn: str, listening: socket.socket, gathered: bool, seconds: float) -> None:
    """Serve for the length of the measurement."""

    async def main() -> None:
        settings = IngressSettings(Keys(["k"]), 1 << 20, {}, (), {}, {})
        ingress = Ingress(
            settings, {"source": dsn}, count=lambda *_: None, failed=print, works=lambda _: None
        )
        if not gathered:
            ingress.writers["source"] = OneByOne(dsn)  # type: ignore[assignment]
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(seconds, stop.set)
        await serve_ingress(ingress, listening, stop, 200, instance="bench")

    asyncio.run(main())


async def client(port: int, end: float, latencies: list[float], prefix: str) -> None:
    """Request after request on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps(PAYLOAD).encode()
    for number in itertools.count():
        began = time.perf_counter()
        if began > end:
            break
        head = (
            "POST /v1/events/usage.limit_reached HTTP/1.1\r\nhost: b\r\nauthorization: Bearer k\r\n"
            f"content-type: application/json\r\nidempotency-key: {prefix}-{number}\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 202"):
            raise RuntimeError(answer.decode())
        length = int(answer.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        await reader.readexactly(length)
        latencies.append(time.perf_counter() - began)
    writer.close()


async def measure(port: int, clients: int, seconds: float) -> list[float]:
    """Latencies in seconds of every request."""
    latencies: list[float] = []
    end = time.perf_counter() + seconds
    names = (f"{time.time_ns()}-{number}" for number in range(clients))
    await asyncio.gather(*(client(port, end, latencies, name) for name in names))
    return latencies


def main() -> None:
    """Print requests a second and latency, gathered and one by one, in turns."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    fork = multiprocessing.get_context("fork")
    with Workspace() as workspace:
        cluster = Cluster(workspace, "bench-ingress", fsync=True).init().start()
        with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
            connection.execute(source_sql().encode())
        found: dict[tuple[bool, int], list[float]] = {}  # (gathered, clients) -> requests a second
        for _, gathered, clients in itertools.product(range(3), (True, False), (1, CLIENTS)):
            listening = bind("127.0.0.1", 0, "listen")
            port = listening.getsockname()[1]
            server = fork.Process(target=serve_side, args=(cluster.dsn(), listening, gathered, seconds + 2))
            server.start()
            listening.close()
            warm = len(asyncio.run(measure(port, clients, 0.5)))
            latencies = sorted(asyncio.run(measure(port, clients, seconds)))
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            server.join()
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
            rate = len(latencies) / seconds
            found.setdefault((gathered, clients), []).append(rate)
            p50, p99 = (latencies[int(len(latencies) * q)] * 1e3 for q in (0.5, 0.99))
            name = "gathered" if gathered else "one commit a request"
            print(
                f"{name:22} {clients:3} clients {rate:8.0f}/s  p50 {p50:6.2f} ms  p99 {p99:6.2f} ms  "
                f"{cpu / (len(latencies) + warm) * 1e6:5.0f} us CPU a request"
            )
        for (gathered, clients), rates in found.items():
            name = "gathered" if gathered else "one commit a request"
            print(f"median  {name:22} {clients:3} clients {statistics.median(rates):8.0f}/s")


if __name__ == "__main__":
    main()
