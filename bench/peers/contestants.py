"""Who takes part beside native replication: the bridge as its users run it, and peers from the registries.

A peer is a driver (drivers/): a small program on the peer's library that does the bridge's work, started as a
process of its own. It has a database of its own on the target, with the same table and customers to look up.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict

from bench.contestants import EVENT_TABLE, LIMITS_TABLE, Native, Ours, drop_slot, walsender
from bench.servers import LANDING, Servers
from bridge.demo.process import ended, spawn
from bridge.demo.world import CRM, USAGE_LIMITS

COMMIT_CLOCK: LiteralString = "pg_xact_commit_timestamp(xmin)"


@dataclass(frozen=True, slots=True)
class Spec:
    """A peer: how it is started, and what is said of it.

    command: without the environment SOURCE_URL, TARGET_URL, SLOT, PUBLICATION and STATE (a directory of its own).
    slot: it reads a replication slot. A queue has none: `enqueue` is the body of a trigger of the outbox that puts
    the event (new.id, new.payload) in; `setup` is the driver's argument that makes its schema; `forget` empties it.
    copy: it only copies the outbox's rows. configured: for the table's note.
    """

    key: str
    name: str
    command: tuple[str, ...]
    version: str
    configured: str
    slot: bool = True
    setup: bool = False
    enqueue: str = ""
    forget: str = ""
    forget_target: str = ""
    copy: bool = False


class NativeWorker(Native):
    """Native replication, whose process is the apply worker: killed, it takes the target down and up again."""

    pid: int | None = None  # the postmaster's child: no process beside the servers

    def kill(self) -> None:
        """SIGKILL; the postmaster ends all its processes, recovers, and starts a new worker by itself."""
        worker = self.processes().get("target")
        if worker is None:
            raise TimeoutError(f"{self.name}: no apply worker to kill")
        os.kill(worker, signal.SIGKILL)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            time.sleep(0.1)
            try:
                self._servers.on_target(self.database, "select 1")
            except psycopg.OperationalError:
                continue
            return
        raise TimeoutError(f"{self.name}: the target did not come up again")

    def keep_up(self) -> None:
        """The postmaster does."""


class Product(Ours):
    """The bridge. Its slot stays, so it first reads what the others' rounds have written."""

    @property
    def pid(self) -> int | None:
        return self.bridge.pid

    def prepare(self) -> None:
        """At the end of the WAL, and stopped."""
        self.bridge.start().wait_ready()
        ahead = self._servers.on_source("select pg_current_wal_lsn()")[0][0]
        read = (
            "select 1 from pg_replication_slots where slot_name like 'outbox_bridge_warehouse_%%'"
            " and confirmed_flush_lsn >= %s"
        )
        end = time.monotonic() + 120
        while not self._servers.on_source(read, [ahead]):
            if time.monotonic() > end:
                raise TimeoutError(f"the bridge does not catch up\n{self.bridge.log_tail()}")
            time.sleep(0.1)
        self.bridge.terminate()
        self._servers.on_target(self.database, "truncate events.usage_limits")

    def kill(self) -> None:
        self.bridge.kill()
        self.bridge.start()

    def keep_up(self) -> None:
        if not self.bridge.running:
            self.bridge.start()


class Peer:
    """A driver's process."""

    clock: LiteralString = COMMIT_CLOCK

    def __init__(self, servers: Servers, spec: Spec, directory: Path) -> None:
        self.name = spec.name
        self.spec = spec
        self.database = f"peer_{spec.key}"
        self.table = EVENT_TABLE if spec.copy else LIMITS_TABLE
        self._servers = servers
        self._state = directory / spec.key
        self._state.mkdir(exist_ok=True)
        self._log = self._state / "driver.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PG")},
            "SOURCE_URL": url(servers.source_dsn),
            "TARGET_URL": url(servers.database_dsn(self.database)),
            "SLOT": f"peer_{spec.key}",
            "PUBLICATION": "outbox_bridge",
            "STATE": str(self._state),
        }
        servers.target.execute(f"create database {self.database}")
        with psycopg.connect(servers.database_dsn(self.database), autocommit=True) as connection:
            for statement in (LANDING,) if spec.copy else (CRM, USAGE_LIMITS):
                connection.execute(statement.encode())
        if spec.setup:
            self._setup()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def _setup(self) -> None:
        with self._log.open("ab") as log:
            done = subprocess.run(
                [*self.spec.command, "setup"],
                cwd=self._state,
                env=self._environment,
                stdout=log,
                stderr=log,
                timeout=60,
                check=False,
            )
        if done.returncode:
            raise RuntimeError(f"{self.name}: setup failed\n{self.log_tail()}")
        self._servers.on_source(
            f"create function public.enqueue_{self.spec.key}() returns trigger language plpgsql as"
            f" $$ begin {self.spec.enqueue}; return null; end $$"
        )

    def prepare(self) -> None:
        """A new slot; of a queue an empty one, and the trigger that fills it."""
        self._servers.on_target(self.database, f"truncate {self.table[0]}.{self.table[1]}")
        for file in self._state.iterdir():
            if file.is_file() and file != self._log:
                file.unlink()  # offsets and checkpoints; a folder has logs
        if self.spec.forget_target:
            self._servers.on_target(self.database, self.spec.forget_target)
        if self.spec.forget:
            self._servers.on_source(self.spec.forget)
        if self.spec.slot:
            self._servers.on_source(
                "select pg_create_logical_replication_slot(%s, 'pgoutput')", [self._environment["SLOT"]]
            )
        else:
            self._servers.on_source(
                f"create trigger enqueue after insert on outbox.event for each row"
                f" execute function public.enqueue_{self.spec.key}()"
            )

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = spawn(list(self.spec.command), log, env=self._environment, cwd=self._state)

    def stop(self) -> None:
        """SIGTERM, or after ten seconds SIGKILL; then its slot or its trigger goes."""
        self._end(signal.SIGTERM)
        if self.spec.slot:
            drop_slot(self._servers, self._environment["SLOT"])
        else:
            self._servers.on_source("drop trigger enqueue on outbox.event")

    def _end(self, number: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        ended(process)
        self._process = None

    def kill(self) -> None:
        self._end(signal.SIGKILL)
        self.start()

    def keep_up(self) -> None:
        """Start it again where it ended, as a supervisor does."""
        if self._process is not None and self._process.poll() is not None:
            ended(self._process)
            self.start()

    def processes(self) -> dict[str, int]:
        return {
            **({"bridge": self._process.pid} if self._process else {}),
            **(walsender(self._servers, self._environment["SLOT"]) if self.spec.slot else {}),
        }

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of the driver's output."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])


def url(dsn: str) -> str:
    """A conninfo string as the URL that other languages' drivers read."""
    parts = conninfo_to_dict(dsn)
    user, password = quote(str(parts["user"]), safe=""), quote(str(parts["password"]), safe="")
    return f"postgres://{user}:{password}@{parts['host']}:{parts['port']}/{parts['dbname']}"
