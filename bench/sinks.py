"""Deliveries a second to an endpoint that answers at once, and what one costs.

`python -m bench.sinks [messages] [rounds]`. The messages wait in the ledger before `bridge run` starts; the receiver is
a process of its own, on loopback. `keyed`: every message has a key, of 1,000 keys; `keyless`: none has one.
CPU: of the bridge and of the servers, between the first message and the last.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg

from bridge.demo.servers import Cluster, Workspace
from bridge.postgres.schema import source_sql, target_sql

KEYS = 1000
CONFIG = """
version: 1
source: {{ dsn: "{dsn}" }}
admin: {{ listen: 127.0.0.1:{admin} }}
connections:
  hook:
    type: webhook
    url: http://127.0.0.1:{port}/hook
    secret: whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=
    allow: [127.0.0.0/8]
pipelines:
  p:
    event: e
    destinations:
      d: {{ connection: hook }}
"""
FILL = """
insert into bridge.delivery
    (id, stream, pipeline, destination, event_id, event_seq, event_type, event_key, occurred_at, body)
select gen_random_uuid(), 'outbox_bridge_source', 'p', 'd', gen_random_uuid()::text, n, 'e',
    case when %(keyed)s then 'cus_' || n %% %(keys)s end, now(),
    jsonb_build_object('data', jsonb_build_object('customer_id', 'cus_' || n, 'used', n, 'note', repeat('x', 100)))
from generate_series(1, %(messages)s) n
"""
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nok"


class Receiver(asyncio.Protocol):
    """Reads requests and answers each at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.rest = b""

    def data_received(self, data: bytes) -> None:
        self.rest += data
        while (end := self.rest.find(b"\r\n\r\n")) >= 0:
            head = self.rest[:end].lower()
            at = head.index(b"content-length:") + 15
            length = int(head[at:].split(b"\r\n", 1)[0])
            if len(self.rest) < end + 4 + length:
                return
            self.rest = self.rest[end + 4 + length :]
            self.transport.write(ANSWER)


def receive(listening: socket.socket) -> None:
    """Serve until it is killed."""

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Receiver, sock=listening)
        await server.serve_forever()

    asyncio.run(main())


def cpu(pid: int) -> float:
    """Seconds of CPU time that a process and its ended children have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def server_cpu(connection: psycopg.Connection[Any]) -> float:
    """CPU seconds of the server's processes that are there now."""
    pids = [row[0] for row in connection.execute("select pid from pg_stat_activity").fetchall()]
    return sum(cpu(pid) for pid in pids if Path(f"/proc/{pid}").exists())


def measure(cluster: Cluster, config: Path, messages: int, *, keyed: bool) -> tuple[float, float, float]:
    """Deliveries a second, and CPU microseconds of the bridge and of the server for each."""
    with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
        connection.execute("truncate bridge.delivery")
        connection.execute(FILL, {"keyed": keyed, "keys": KEYS, "messages": messages})
        connection.execute("vacuum analyze bridge.delivery")
        connection.execute("checkpoint")
        log = config.with_suffix(".log").open("wb")
        command = [sys.executable, "-m", "bridge", "run", "-c", str(config)]
        bridge = subprocess.Popen(command, stdout=log, stderr=log)
        sent = "select count(*) from bridge.delivery where state = 'sent'"
        try:
            marks: list[tuple[float, int, float, float]] = []
            while not marks or marks[-1][1] < messages:
                time.sleep(0.05)
                found = connection.execute(sent).fetchone()
                if found and (found[0] or not marks):
                    marks.append((time.perf_counter(), found[0], cpu(bridge.pid), server_cpu(connection)))
                if bridge.poll() is not None:
                    raise RuntimeError(config.with_suffix(".log").read_text()[-2000:])
            first = next(mark for mark in marks if mark[1])
            last = marks[-1]
        finally:
            bridge.terminate()
            bridge.wait()
            log.close()
    count = last[1] - first[1]
    return (
        count / (last[0] - first[0]),
        (last[2] - first[2]) / count * 1e6,
        (last[3] - first[3]) / count * 1e6,
    )


def main() -> None:
    """Print deliveries a second, keyed and keyless in turns."""
    messages = int(sys.argv[1]) if len(sys.argv) > 1 else 30_000
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    listening = socket.create_server(("127.0.0.1", 0), backlog=512)
    receiver = multiprocessing.get_context("fork").Process(target=receive, args=(listening,), daemon=True)
    receiver.start()
    with Workspace() as workspace:
        cluster = Cluster(workspace, "bench-sinks", fsync=True).init().start()
        with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
            connection.execute(source_sql().encode())
            connection.execute(target_sql().encode())
        config = workspace.root / "sinks.yaml"
        config.write_text(
            CONFIG.format(dsn=cluster.dsn(), admin=free_port(), port=listening.getsockname()[1])
        )
        found: dict[bool, list[tuple[float, float, float]]] = {False: [], True: []}
        for _ in range(rounds):
            for keyed, figures_of in found.items():
                figures = measure(cluster, config, messages, keyed=keyed)
                figures_of.append(figures)
                print(_line("keyed" if keyed else "keyless", figures), flush=True)
        for keyed, all_of in found.items():
            medians = tuple(statistics.median(values) for values in zip(*all_of, strict=True))
            print("median ", _line("keyed" if keyed else "keyless", medians))
    receiver.terminate()


def _line(name: str, figures: tuple[float, ...]) -> str:
    rate, bridge, server = figures
    return f"{name:8} {rate:7.0f}/s  {bridge:5.0f} us CPU of the bridge, {server:5.0f} of the server"


if __name__ == "__main__":
    main()
