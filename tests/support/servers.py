"""Where the tests' servers come from: embedded, in containers, or yours.

`BRIDGE_TEST_POSTGRES=testcontainers` (image: BRIDGE_TEST_IMAGE) and `BRIDGE_TEST_DSN` choose; without
them a server of our own is started. Tests see a `Server`; those that crash one ask for a
`RestartableServer`, which a DSN cannot be; those that copy or promote one for an `EmbeddedServer`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any, Literal, Protocol

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from bridge.demo.servers import Cluster, ClusterError, Workspace
from tests.support import fixes

Provider = Literal["embedded", "testcontainers", "dsn"]
StopMode = Literal["smart", "fast", "immediate"]
_STOP_SIGNALS: dict[StopMode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}


def provider() -> Provider:
    """What the environment asks for."""
    asked = os.environ.get("BRIDGE_TEST_POSTGRES", "")
    if os.environ.get("BRIDGE_TEST_DSN"):
        return "dsn"
    if asked == "testcontainers":
        return "testcontainers"
    if asked not in ("", "embedded"):
        raise ValueError(f"BRIDGE_TEST_POSTGRES={asked}: embedded or testcontainers; or set BRIDGE_TEST_DSN")
    return "embedded"


_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = cycle(range(11_000 + 2_500 * (_WORKER % 8), 13_500 + 2_500 * (_WORKER % 8)))
for _ in range(os.getpid() % 2_500):  # beside another run
    next(_PORTS)


def free_port() -> int:
    """A port of this machine that nobody listens on, of those that are this worker's. Below the range from which the
    kernel takes ports for connections: one of those could be given away before it is listened on."""
    for port in _PORTS:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


class Server(Protocol):
    """A PostgreSQL server on which we are superuser."""

    def dsn(self, dbname: str = "postgres", user: str = "postgres", **parameters: Any) -> str: ...


class RestartableServer(Server, Protocol):
    """One that a test may stop and crash."""

    @property
    def running(self) -> bool: ...
    def start(self) -> Any: ...
    def stop(self, mode: StopMode = "fast", deadline: float = 60.0) -> float: ...
    def crash(self) -> None: ...
    def restart(self, mode: StopMode = "fast") -> None: ...
    def kill_backend(self, pid: int) -> None: ...
    def log_tail(self, lines: int = 20) -> str: ...
    def discard(self) -> None: ...


class EmbeddedServer(Cluster):
    """A cluster of the demo's, and what only tests do to one: crash, reconfigure, copy, restore, promote."""

    def stop(self, mode: StopMode = "fast", deadline: float = 60.0) -> float:
        """Stop and wait; returns the seconds it took."""
        return self.end(_STOP_SIGNALS[mode], deadline)

    def crash(self) -> None:
        """Immediate stop: no checkpoint, the next start recovers from the WAL."""
        self.stop("immediate")

    def restart(self, mode: StopMode = "fast") -> None:
        self.stop(mode)
        self.start()

    def kill_backend(self, pid: int) -> None:
        """SIGKILL to one backend makes the server end all of them and recover."""
        os.kill(pid, signal.SIGKILL)

    def configure(self, **settings: str | int) -> None:
        """Also of a running server, which reads them again."""
        super().configure(**settings)
        if self._process is not None and self.running:
            self._process.send_signal(signal.SIGHUP)

    def clone_at(self, directory: Path) -> Path:
        """Keep a copy of the data directory as it is now, for `restore`. Stopped: the very files, slots
        included. Running: a base backup, same timeline, which holds no slots."""
        if self.running:
            self._back_up(directory)
        else:
            self._execute(["cp", "-Rp", str(self.data), str(directory)])
        return directory

    def restore(self, copy: Path) -> None:
        """Replace the stopped server's data directory by a copy, as a restore from a disk image does."""
        if self.running:
            raise ClusterError("stop the server before restoring it")
        shutil.rmtree(self.data)
        self._execute(["cp", "-Rp", str(copy), str(self.data)])

    def clone(self, copy: Path, name: str) -> EmbeddedServer:
        """Another server, on its own port, over a copy made by `clone_at`."""
        return self._sibling(name).copy_from(copy)

    def standby(self, name: str = "standby", **settings: str | int) -> EmbeddedServer:
        """A streaming standby of this running server, not started yet."""
        other = self._sibling(name)
        self._back_up(other.data, "-R")
        other.configure(hot_standby="on", hot_standby_feedback="on", **settings)
        return other

    def dump(self, dbname: str, *options: str) -> Path:
        """pg_dump of a database, as SQL; the file."""
        file = self.directory / f"{dbname}.sql"
        self._run("pg_dump", "-d", self.dsn(dbname), "-f", str(file), *options)
        return file

    def load(self, dbname: str, file: Path) -> None:
        """Run a dump in a database."""
        self._run("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", self.dsn(dbname), "-f", str(file))

    def promote(self, deadline: float = 60.0) -> None:
        """End recovery: a new timeline."""
        self.execute("select pg_promote(true, %s)", [int(deadline)])

    def _back_up(self, data: Path, *more: str) -> None:
        arguments = ("-D", str(data), "-d", self.dsn(), "--checkpoint=fast", "-X", "stream")
        self._run("pg_basebackup", *arguments, *more)

    def _sibling(self, name: str) -> EmbeddedServer:
        name = f"{self.directory.name}-{name}"
        return EmbeddedServer(self.workspace, name, password=self.password, settings=self.settings)


class DsnServer:
    """A server of the user's, given as BRIDGE_TEST_DSN. We may make databases and roles, not stop it."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo

    def dsn(self, dbname: str = "postgres", user: str = "postgres", **parameters: Any) -> str:
        if user != "postgres":  # "postgres" stands for whoever the DSN names
            parameters |= {"user": user, "password": "bridge"}
        return make_conninfo(self._conninfo, dbname=dbname, **parameters)


_CONTAINER_SETTINGS: dict[str, str | int] = {
    "wal_level": "logical",
    "max_replication_slots": 40,
    "max_wal_senders": 40,
    "max_prepared_transactions": 20,
    "log_statement": "ddl",
    "fsync": "off",
}


class ContainerServer:
    """A server in a container of its own, on a port that survives its restarts."""

    def __init__(self, image: str, settings: Mapping[str, str | int] | None = None) -> None:
        # The old import path warns, and warnings are errors here.
        from testcontainers.community.postgres import PostgresContainer  # noqa: PLC0415 - only this provider

        self.port = free_port()
        container = PostgresContainer(image, username="postgres", password="bridge", dbname="postgres")
        self._container = container.with_bind_ports(5432, self.port)
        self._container.start()
        self._host: str = self._container.get_container_host_ip()
        self._wait_until_ready()
        # Not on its command line, which would win over a test's own ALTER SYSTEM.
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            for name, value in {**_CONTAINER_SETTINGS, **(settings or {})}.items():
                statement = sql.SQL("alter system set {} = {}")
                connection.execute(statement.format(sql.Identifier(name), str(value)))
        self.restart()

    @property
    def _docker(self) -> Any:
        return self._container.get_wrapped_container()

    def dsn(self, dbname: str = "postgres", user: str = "postgres", **parameters: Any) -> str:
        values = {"host": self._host, "port": self.port, "dbname": dbname, "user": user, "password": "bridge"}
        return make_conninfo("", **{**values, **parameters})

    def _wait_until_ready(self, deadline: float = 60.0) -> None:
        until = time.monotonic() + deadline
        while True:
            try:
                psycopg.connect(self.dsn(), connect_timeout=3).close()
            except psycopg.OperationalError as error:
                if time.monotonic() > until:
                    raise ClusterError(f"container not ready: {error}\n{self.log_tail()}") from error
                time.sleep(0.05)
            else:
                return

    @property
    def running(self) -> bool:
        self._docker.reload()
        return bool(self._docker.status == "running")

    def start(self) -> None:
        self._docker.start()
        self._wait_until_ready()

    def stop(self, mode: StopMode = "fast", deadline: float = 60.0) -> float:
        began = time.monotonic()
        if self.running:
            self._docker.kill(_STOP_SIGNALS[mode].name)
            self._docker.wait(timeout=deadline)
        return time.monotonic() - began

    def crash(self) -> None:
        self.stop("immediate")

    def restart(self, mode: StopMode = "fast") -> None:
        self.stop(mode)
        self.start()

    def kill_backend(self, pid: int) -> None:
        self._docker.exec_run(["sh", "-c", f"kill -KILL {pid}"])  # the built-in: slim images have no kill

    def log_tail(self, lines: int = 20) -> str:
        return str(self._docker.logs(tail=lines).decode(errors="replace"))

    def discard(self) -> None:
        self._container.stop()


class Servers:
    """The session's servers: shared ones by name, started when first asked for, and private ones."""

    def __init__(self) -> None:
        self.provider = provider()
        self._workspace: Workspace | None = None
        self._shared: dict[str, Server] = {}
        self._made = 0

    @property
    def workspace(self) -> Workspace:
        if self._workspace is None:
            self._workspace = Workspace()
        return self._workspace

    def shared(self, name: str, prepare: Callable[[Server], object]) -> Server:
        """The session's server of this name; `prepare` runs once on it. A DSN serves every name."""
        if name not in self._shared:
            if self.provider == "dsn":
                server: Server = DsnServer(os.environ["BRIDGE_TEST_DSN"])
            else:
                server = self.private(name)
            prepare(server)
            self._shared[name] = server
        return self._shared[name]

    def private(
        self, name: str, settings: dict[str, str | int] | None = None
    ) -> EmbeddedServer | ContainerServer:
        """A started server of the caller's own; the caller discards it."""
        self._made += 1
        if self.provider == "testcontainers":
            return ContainerServer(os.environ.get("BRIDGE_TEST_IMAGE", "postgres:18"), settings)
        return EmbeddedServer(self.workspace, f"{name}-{self._made}", settings=settings).init().start()

    def close(self) -> None:
        for name, server in self._shared.items():
            if isinstance(server, ContainerServer):
                server.discard()
            elif isinstance(server, DsnServer):
                drop_database(Database(server, template_of(name)))
        if self._workspace is not None:
            self._workspace.close()


class Database:
    """A database of one test, and who may connect to it as whom."""

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        self.name = name

    @property
    def dsn(self) -> str:
        """As superuser: the customer."""
        return self.server.dsn(self.name)

    @property
    def bridge_dsn(self) -> str:
        """As `outbox_bridge`, the role with exactly the printed grants."""
        return self.server.dsn(self.name, user="outbox_bridge")

    @property
    def producer_dsn(self) -> str:
        """As `app`, a member of outbox_producer (source only)."""
        return self.server.dsn(self.name, user="app")

    def connect(self, user: str = "postgres", **parameters: Any) -> psycopg.Connection[tuple[Any, ...]]:
        """An autocommit connection; the caller closes it."""
        dsn = self.server.dsn(self.name, user=user)
        return psycopg.connect(dsn, autocommit=True, connect_timeout=10, **parameters)

    def execute(self, statement: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        """One statement as superuser; its rows, if it has any."""
        with self.connect() as connection:
            cursor = connection.execute(statement.encode(), parameters)
            return cursor.fetchall() if cursor.description else []

    def typed(self, printed: str, fill: Mapping[str, str] | None = None) -> None:
        """SQL that was printed, as it was printed, typed into psql as superuser. fill: for its placeholders."""
        fixes.note(printed)
        for place, value in (fill or {}).items():
            assert place in printed
            printed = printed.replace(place, value)
            fixes.note(printed)
        ran = subprocess.run(
            ["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", self.dsn],
            input=printed,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ran.returncode == 0, f"{ran.stderr}\n{printed}"

    def value(self, statement: str, parameters: Any = None) -> Any:
        """The only column of the only row."""
        [(value,)] = self.execute(statement, parameters)
        return value


def template_of(kind: str) -> str:
    """The database that a test's `source` or `target` is copied from."""
    return f"bridge_test_{kind}"


def create_database(
    server: Server, name: str, template: str = "template1", *, encoding: str = ""
) -> Database:
    """A new database, a copy of `template`. encoding: another than the template's, which must be template0 then."""
    with psycopg.connect(server.dsn(), autocommit=True, connect_timeout=10) as connection:
        statement = sql.SQL("create database {} template {}").format(
            sql.Identifier(name), sql.Identifier(template)
        )
        if encoding:
            statement += sql.SQL(" encoding {} locale 'C'").format(encoding)
        connection.execute(statement)
    return Database(server, name)


def drop_database(database: Database) -> None:
    """Drop it with its replication slots, whoever holds them."""
    with psycopg.connect(database.server.dsn(), autocommit=True, connect_timeout=10) as connection:
        _drop_slots(connection, database.name)
        statement = sql.SQL("drop database if exists {} with (force)")
        connection.execute(statement.format(sql.Identifier(database.name)))


def _drop_slots(connection: psycopg.Connection[tuple[Any, ...]], dbname: str, deadline: float = 20.0) -> None:
    of_database = "from pg_replication_slots where database = %s"
    until = time.monotonic() + deadline
    while True:
        connection.execute(f"select pg_terminate_backend(active_pid) {of_database} and active", [dbname])
        with contextlib.suppress(psycopg.errors.ObjectInUse):  # its walsender has not gone yet
            connection.execute(f"select pg_drop_replication_slot(slot_name) {of_database}", [dbname])
            return
        if time.monotonic() > until:
            raise ClusterError(f"a slot of database {dbname} stays in use")
        time.sleep(0.02)
